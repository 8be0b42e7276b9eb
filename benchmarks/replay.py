"""Decisions made elsewhere, on other pictures: drawn at random, or those of another picture's
run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from evaluation.decisions import Decision
from rapid_core.quadrature.spacing import max_evaluations
from rapid_core.techniques.heads.rapid3 import Rapid3Policy
from rapid_core.techniques.heads.rapid_plus import RapidPlusPolicy
from rapid_core.techniques.step_skip.schedule import SchedulePolicy
from rapid_core.types import (
    FULL,
    Action,
    Actor,
    Mode,
    Observation,
    Policy,
    Requirements,
    Window,
)


@dataclass(frozen=True, kw_only=True)
class ReplayPolicy(Policy):
    """Given decisions for every image of a batch."""

    technique: ClassVar[str] = "replay"

    decisions: tuple[tuple[Decision, ...], ...] = field(repr=False)
    """Of every evaluation, for every image."""
    policy: Policy
    """What stands for the rest of an evaluation, and what corrects it, is what it has: the one that
    made the decisions, or might have."""

    @property
    def requirements(self) -> Requirements:
        """Whatever decisions may be about."""
        needs = self.policy.requirements
        sparse = any(d.density < 1 for image in self.decisions for d in image)
        return Requirements(
            modes=frozenset(Mode),
            prediction_order=needs.prediction_order,
            history=needs.history,
            attention=needs.attention if sparse else None,
            aim=needs.aim,
            decides_schedule=True,
        )

    def start(self, window: Window, image: int = 0) -> ReplayActor:
        """An actor for one image."""
        return ReplayActor(self.decisions[image], predictions_of(self.policy), window)

    def to_record(self) -> dict[str, Any]:
        """Its technique; decisions are in the record anyway."""
        return {"technique": self.technique}


class ReplayActor(Actor):
    """The decisions of one image."""

    def __init__(self, decisions: Sequence[Decision], schedule: SchedulePolicy, window: Window):
        self.decisions = decisions
        self.schedule = schedule.start(window)

    def act(self, observation: Observation) -> Action:
        """The decision of this evaluation; the first is always computed."""
        self.schedule.settle(observation)  # whether its weights fit the run
        decision = self.decisions[observation.index]
        mode = Mode(decision.mode)
        if mode is Mode.RUN or not observation.computed:
            return FULL if decision.density == 1.0 else Action(density=decision.density)
        if mode is Mode.REUSE:
            return Action(Mode.REUSE)
        return Action(Mode.SKIP, prediction_weights=self.schedule.weights(observation))

    def executed(self, action: Action) -> None:
        """What was computed counts for the predictions."""
        self.schedule.executed(action)


def replayed(
    policy: Policy, decisions_of: Callable[[int], Sequence[Decision]]
) -> Callable[[Any, list[int]], Any]:
    """A patch for each group of pictures: the decisions that `decisions_of` names for each of
    them, in runs as they are with `policy`."""

    def each(model: Any, numbers: list[int]) -> Any:
        from rapid_core.comfy.chain import attach  # here: the host is imported after this module

        decisions = tuple(tuple(decisions_of(n)) for n in numbers)
        return attach(model, ReplayPolicy(decisions=decisions, policy=policy))

    return each


def predictions_of(policy: Policy) -> SchedulePolicy:
    """A schedule that predicts what is skipped as a schedule or heads do."""
    if isinstance(policy, SchedulePolicy):
        return policy
    if isinstance(policy, RapidPlusPolicy):
        return policy.schedule_policy
    assert isinstance(policy, Rapid3Policy)
    return SchedulePolicy(speedup=policy.speedup, prediction_order=policy.prediction_order)


def at_random(steps: int, speedup: float, number: int) -> list[Decision]:
    """As many evaluations as a speed-up allows, the first and the last among them, the others
    anywhere. number: of the picture."""
    count = max_evaluations(speedup, steps)
    inner = random.Random(f"{number}/{speedup}").sample(range(1, steps - 1), max(0, count - 2))
    computed = {0, steps - 1, *inner} if count > 1 else {0}
    run = Decision(Mode.RUN.value)
    skip = Decision(Mode.SKIP.value, 0.0)
    return [run if i in computed else skip for i in range(steps)]
