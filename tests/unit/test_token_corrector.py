"""Gaps of single tokens, corrected when each is computed again."""

import random
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from rapid_core.engine.corrector import Corrector
from rapid_core.engine.history import Point, predict
from rapid_core.engine.plan import HostFacts, RunPlan, plan_run
from rapid_core.engine.run import Run
from rapid_core.quadrature.multistep import correction_weights, gap_moments
from rapid_core.quadrature.spacing import max_evaluations, spacing_of
from rapid_core.techniques.region.presets import paper, per_token_error
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.token_grid import TokenGrid
from rapid_core.types import (
    FULL,
    Action,
    Actor,
    Aim,
    Mode,
    Policy,
    Requirements,
    TokenRequirements,
    Window,
)

STEPS = 20
SIGMAS = tuple((1 - i / STEPS) ** 1.5 for i in range(STEPS)) + (0.0,)
GRID = TokenGrid((2, 6, 8))
GENERATOR = torch.Generator().manual_seed(3)
A, B, C = torch.randn(3, 2, 6, 8, generator=GENERATOR, dtype=torch.float64)


def derivative(sigma, order):
    """One that depends on sigma alone, so that a run is a sum; another in every pixel."""
    return A + (order > 0) * B * sigma + (order > 1) * C * sigma**2


def full(order):
    """Where all of the steps lead."""
    return sum((SIGMAS[i + 1] - SIGMAS[i]) * derivative(SIGMAS[i], order) for i in range(STEPS))


@dataclass(frozen=True, kw_only=True)
class Script(Policy):
    """Actions by the number of their step; all tokens where there is none."""

    technique: ClassVar[str] = "script"

    actions: dict[int, Action] = field(default_factory=dict)
    aim: Aim | None = Aim.FULL_PICTURE

    @property
    def requirements(self):
        return Requirements(
            modes=frozenset((Mode.RUN, Mode.SKIP)),
            prediction_order=0,
            tokens=TokenRequirements(),
            aim=self.aim,
        )

    def start(self, window, image=0):
        return ScriptActor(self.actions)

    def to_record(self):
        return {}


class ScriptActor(Actor):
    def __init__(self, actions):
        self.actions = actions

    def act(self, observation):
        return self.actions.get(observation.step, FULL)


def some_tokens(seed, skips=True):
    """Actions of a run: three whole evaluations, then some tokens, all or none by chance, and all at
    the end."""
    chance = random.Random(seed)
    actions = {}
    for step in range(3, STEPS - 1):
        kind = chance.random()
        if kind < 0.25 and skips:
            actions[step] = Action(Mode.SKIP)
        elif kind < 0.9:
            chosen = chance.sample(range(GRID.number), chance.randint(1, GRID.number - 1))
            actions[step] = Action(tokens=torch.tensor(sorted(chosen)))
    return actions


def sample(actions, order, aim=Aim.FULL_PICTURE, policies=()):
    """A run of Euler on the toy, in the engine; tokens that are not computed keep their last value.
    Returns the latent and the run."""
    policies = (Script(actions=actions, aim=aim), *policies)
    plan = RunPlan(
        policies=policies,
        windows=(Window(2.0, -1.0),) * len(policies),
        shape=(1, 2, 6, 8),
        sigmas=SIGMAS,
        modes=frozenset((Mode.RUN, Mode.SKIP)),
        history=max(policy.requirements.history for policy in policies),
        aim=aim,
        tokens=TokenRequirements(),
        grid=GRID,
    )
    run = Run(plan)
    image = run.images[0]
    x = torch.zeros(1, 2, 6, 8, dtype=torch.float64)
    for i, sigma in enumerate(SIGMAS[:-1]):
        evaluation = run.begin(x, torch.tensor([sigma], dtype=torch.float64))
        action = evaluation.actions[0]
        found = derivative(sigma, order)
        if not action.all_tokens:
            guess = predict(image.guided.points, sigma, 0)
            ran = action.mode is Mode.RUN and GRID.mask(action.tokens)
            found = torch.where(torch.as_tensor(ran), found, guess)
        denoised = x - sigma * found
        given = run.end(evaluation, x, denoised)
        x = x + (SIGMAS[i + 1] - sigma) * (x - given) / sigma
    run.finish()
    return x[0], run


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_end_at_the_full_picture_whatever_their_gaps(order, seed):
    x, run = sample(some_tokens(seed), order)
    assert torch.allclose(x, full(order), atol=2e-5)
    plain, _ = sample(some_tokens(seed), order, aim=None)
    assert not order or (plain - full(order)).abs().max() > 0.01
    errors = run.images[0].gap_errors.values()
    assert errors and (max(errors) > 1e-8) == (order > 0)


def test_evaluations_that_another_policy_skips_belong_to_every_tokens_gap():
    last_too = (True, *spacing_of(SIGMAS).after(0, max_evaluations(1.3, STEPS) - 1))
    schedule = Schedule(last_too, SIGMAS)
    others = (SchedulePolicy(speedup=1.3, schedule=schedule),)
    x, run = sample(some_tokens(5, skips=False), 2, policies=others)
    skipped = [e for e in (run.images[0],) if e.computed < STEPS]
    assert skipped
    # The schedule skips before there are three nodes, and a line is all that can be had of that gap.
    assert (x - full(2)).abs().max() < 0.02
    x, _ = sample(some_tokens(5, skips=False), 1, policies=others)
    assert torch.allclose(x, full(1), atol=2e-5)


def test_the_best_picture_is_the_integral_of_each_token():
    """Of a line; but for the last step of each, whose far end is never computed."""
    x, _ = sample(some_tokens(1), 1, aim=Aim.BEST_PICTURE)
    integral = -(A + B / 2)
    assert (x - integral).abs().max() < 0.2 * (full(1) - integral).abs().max()


def points_at(*columns):
    """Points of a picture of two pixels; columns: sigmas of a point at both."""
    return [
        Point(torch.tensor([[sigmas]]), 2 + 3 * torch.tensor([[sigmas]]) ** 2) for sigmas in columns
    ]


def test_only_the_tokens_that_were_computed_are_told_and_begin_anew():
    corrector = Corrector(Aim.FULL_PICTURE, True)
    before = points_at((1.0, 1.0), (0.8, 0.8), (0.6, 0.6))
    wrong = torch.full((1, 1, 2), 2.0)
    corrector.estimated((0.5, 0.4), wrong, before)
    here = torch.tensor([[[True, False]]])
    after = points_at((0.8, 1.0), (0.6, 0.8), (0.4, 0.6))
    shift = corrector.shift(after, here)
    assert shift.flatten().tolist() == pytest.approx([-0.1 * 3 * 0.25, 0.0], abs=1e-6)
    assert corrector.moved.flatten().tolist() == pytest.approx([0.0, -0.2])
    corrector.estimated((0.4, 0.3), wrong, after, ~here)
    last = points_at((0.6, 0.8), (0.4, 0.6), (0.3, 0.3))
    shift = corrector.shift(last)
    expected = [0.0, -0.1 * 3 * (0.25 + 0.16)]
    assert shift.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert corrector.moments is None and corrector.moved is None


@pytest.mark.parametrize("broken", [0.6, float("inf"), float("nan")])
def test_tokens_whose_points_are_at_one_sigma_or_nowhere_are_left_alone(broken):
    corrector = Corrector(Aim.FULL_PICTURE, True)
    corrector.estimated((0.5, 0.4), torch.full((1, 1, 2), 2.0), points_at((0.6, 0.6)))
    shift = corrector.shift(points_at((0.8, broken), (0.6, 0.6), (0.4, 0.4)))
    assert shift.flatten().tolist() == pytest.approx([-0.1 * 3 * 0.25, 0.0], abs=1e-6)


def test_a_token_with_one_point_is_left_alone():
    corrector = Corrector(Aim.FULL_PICTURE, True)
    corrector.estimated((0.5, 0.4), torch.ones(1, 1, 2), points_at((0.6, 0.6)))
    assert corrector.shift(points_at((0.4, 0.6)), torch.tensor([[[True, False]]])) is None
    assert corrector.moved.flatten().tolist() == pytest.approx([0.0, -0.1])


def test_other_samplers_are_told_nothing():
    corrector = Corrector(Aim.FULL_PICTURE, False)
    given = corrector.given((0.5, 0.4), A, torch.ones_like(A))
    assert given is A


@pytest.mark.parametrize("aim", [*Aim])
def test_weights_from_moments_are_exact_for_a_parabola(aim):
    gap = [(0.5, 0.4), (0.4, 0.35), (0.35, 0.2)]
    nodes = [0.9, 0.6, 0.2]
    steps = [gap_moments(step, nodes[-2], aim) for step in gap]
    moments = tuple(sum(of_power) for of_power in zip(*steps, strict=True))
    weights = correction_weights([node - nodes[-2] for node in nodes], moments)
    total = sum(w * (1 + node + 5 * node**2) for w, node in zip(weights, nodes, strict=True))

    def primitive(sigma):
        return sigma + sigma**2 / 2 + 5 * sigma**3 / 3

    best = primitive(0.2) - primitive(0.5)
    dense = sum((b - a) * (1 + a + 5 * a * a) for a, b in gap)
    assert total == pytest.approx(best if aim is Aim.BEST_PICTURE else dense)


def test_gaps_of_few_steps_in_a_thousand_are_told_apart():
    """Sigmas of tokens are of single precision."""
    sigmas = torch.tensor([0.9010, 0.9000, 0.8950], dtype=torch.float32).view(3, 1, 1, 1)
    step = (0.8990, 0.8960)
    weights = correction_weights(
        list(sigmas - sigmas[1]), gap_moments(step, sigmas[1], Aim.FULL_PICTURE)
    )
    exact = correction_weights([0.001, 0.0, -0.005], gap_moments(step, 0.9, Aim.FULL_PICTURE))
    assert [w.item() for w in weights] == pytest.approx(exact, rel=2e-3)


def test_the_policy_with_the_schedule_says_what_is_aimed_at():
    assert paper("sd3", 0.5).requirements.aim is None
    tokens = per_token_error(0.04)
    assert tokens.requirements.aim is Aim.FULL_PICTURE
    assert tokens.to_record()["aim"] == "full picture"
    facts = HostFacts(shape=(1, 2, 6, 8), sigmas=SIGMAS)
    schedule = SchedulePolicy(speedup=2.0, aim=Aim.BEST_PICTURE)
    for policies in ((schedule, Script()), (Script(), schedule)):
        assert plan_run([*policies], facts).aim in (Aim.BEST_PICTURE, None)
