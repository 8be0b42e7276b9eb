"""Techniques beside one another on one model: what is insisted on holds, and each is told what was
computed."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from rapid_core.engine.merge import merge_actions
from rapid_core.engine.plan import RunPlan
from rapid_core.engine.run import Run
from rapid_core.quadrature.gram import Gram
from rapid_core.quadrature.spacing import evenly_spaced, max_evaluations
from rapid_core.techniques.region.policy import RegionPolicy
from rapid_core.techniques.region.presets import per_token_error
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from rapid_core.token_grid import TokenGrid
from rapid_core.types import FULL, Action, Actor, Mode, Must, Policy, Requirements, Window
from rapid_testing.runs import bending, products_of, weights_by_hand

STEPS = 20
GRID = TokenGrid((4, 16, 16))
MARKS = {Mode.SKIP: ".", Mode.REUSE: "r", Mode.RUN: "#"}


def falling(steps=STEPS):
    return tuple(1 - i / steps for i in range(steps)) + (0.0,)


@dataclass(frozen=True, kw_only=True)
class Fixed(Policy):
    """An answer at some evaluations, full at others."""

    technique: ClassVar[str] = "fixed"

    at: tuple[int, ...]
    action: Action = Action(Mode.SKIP)

    @property
    def requirements(self):
        return Requirements(modes=frozenset((Mode.SKIP, Mode.RUN)))

    def start(self, window, image=0):
        return FixedActor(self)

    def to_record(self):
        return {"technique": self.technique}


class FixedActor(Actor):
    def __init__(self, policy):
        self.policy = policy

    def act(self, observation):
        return self.policy.action if observation.index in self.policy.at else FULL


def run(*policies, steps=STEPS, batch=1):
    """The actions of each image of a run whose derivative bends; beside a policy that chooses
    tokens, on a grid of them."""
    needs = [policy.requirements for policy in policies]
    tokens = next((need.tokens for need in needs if need.tokens is not None), None)
    plan = RunPlan(
        policies=policies,
        windows=(Window(1.0, 0.0),) * len(policies),
        batch=batch,
        shape=(batch, *GRID.shape),
        sigmas=falling(steps),
        prediction_order=max(need.prediction_order for need in needs),
        history=max(need.history for need in needs),
        tokens=tokens,
        grid=GRID if tokens is not None else None,
    )
    state = Run(plan)
    make = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, batch, *GRID.shape, generator=make)
    x = torch.randn(batch, *GRID.shape, generator=make)
    actions = [[] for _ in range(batch)]
    for i in range(steps):
        sigma = plan.sigmas[i]
        evaluation = state.begin(x, torch.tensor([sigma]))
        derivative = a * math.sin(3 * sigma) + b * math.cos(5 * sigma)
        state.end(evaluation, x, x - sigma * derivative)
        for image, action in zip(actions, evaluation.actions, strict=True):
            image.append(action)
        x = x + (plan.sigmas[i + 1] - sigma) * derivative
    return actions


def strip(actions):
    """One character an evaluation: # computed, + on some tokens, r reused, . skipped."""
    return "".join("+" if a.tokens is not None else MARKS[a.mode] for a in actions)


LENIENT = per_token_error(10.0)  # always content with its predictions


def test_the_cap_of_cache_reuse_holds_beside_region_adaptive():
    (alone,) = run(LENIENT)
    assert "...." in strip(alone)
    for cap in (1, 2, 3):
        reuse = ThresholdPolicy(threshold=1e-9, max_consecutive=cap, guard=0.0)
        (beside,) = run(reuse, LENIENT)
        assert "." * cap in strip(beside) and "." * (cap + 1) not in strip(beside)


def test_the_safety_check_of_cache_reuse_holds_beside_region_adaptive():
    reuse = ThresholdPolicy(threshold=1e-9, max_consecutive=1, guard=1e-6)
    (alone,) = run(reuse)
    (beside,) = run(reuse, LENIENT)
    assert strip(alone) == strip(beside) == "#" * STEPS


def test_where_others_have_it_skipped_the_error_of_cache_reuse_goes_on():
    """Overruled once, it asks again at the next evaluation."""
    reuse = ThresholdPolicy(threshold=0.09, max_consecutive=100, guard=0.0)
    (alone,) = run(reuse)
    asked = [i for i, action in enumerate(alone) if i > 4 and action.mode is Mode.RUN]
    for at in asked[:3]:
        (beside,) = run(reuse, Fixed(at=(at,)))
        assert strip(beside)[:at] == strip(alone)[:at]
        assert strip(beside)[at : at + 2] == ".#"


def test_a_schedule_pays_for_what_others_insist_on():
    """A warm-up and refreshes that are computed in full are evaluations of its budget."""
    schedule = SchedulePolicy(speedup=4.0)
    steps = 40
    (alone,) = run(schedule, steps=steps)
    insisting = Fixed(at=(1, 2, 5), action=Action(must=Must.ALL))
    (beside,) = run(schedule, insisting, steps=steps)
    most = max_evaluations(4.0, steps)
    assert strip(alone).count("#") == strip(beside).count("#") == most
    assert all(beside[i].full for i in insisting.at)


def test_fitted_weights_are_of_what_was_computed_beside_others():
    sigmas = falling()
    gram = Gram.of(products_of(bending(sigmas, 4)), STEPS)
    searched = Schedule(evenly_spaced(8, STEPS), sigmas, gram)
    policy = SchedulePolicy(speedup=2.5, schedule=searched, safe=False)
    (actions,) = run(policy, Fixed(at=(4, 7), action=Action(must=Must.ALL)))
    computed = tuple(action.mode is Mode.RUN for action in actions)
    assert computed[4] and computed[7] and sum(computed) <= 8
    assert [a.prediction_weights for a in actions] == weights_by_hand(
        Schedule(computed, sigmas, gram)
    )


def test_whole_evaluations_of_region_adaptive_are_not_undercut():
    region = RegionPolicy(keep_ratio=0.5, warm_up=0.25, tail=0.1, refresh_interval=3)
    everything = Fixed(at=tuple(range(1, STEPS)))
    (beside,) = run(region, everything)
    assert strip(beside) == "#####" + "...#" * 3 + ".##"


def test_each_image_of_a_batch_is_told_of_its_own():
    reuse = ThresholdPolicy(threshold=0.3, max_consecutive=2)
    (alone,) = run(reuse)
    first, _ = run(reuse, batch=2)
    assert strip(first).count("#") < STEPS and len(alone) == len(first)
    for actions in run(reuse, LENIENT, batch=3):
        assert "..." not in strip(actions)


@pytest.mark.parametrize(
    "actions, merged",
    [
        ((Action(Mode.SKIP), FULL), Action(Mode.SKIP)),
        ((Action(Mode.SKIP), Action(must=Must.RUN)), FULL),
        ((Action(Mode.REUSE), Action(must=Must.ALL)), FULL),
        ((Action(density=0.5), Action(must=Must.ALL)), Action(density=0.5)),
    ],
)
def test_the_highest_floor_wins(actions, merged):
    assert merge_actions(actions) == merge_actions(actions[::-1]) == merged
