"""Decisions made elsewhere, on other pictures: drawn at random, or those of another picture's
run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.costs import Decision
from rapid_core.policy_file.format import PolicyFile
from rapid_core.policy_file.policies import heads_policy
from rapid_core.techniques.heads.rapid_plus import PlannedPolicy
from rapid_core.techniques.step_skip.schedule import SchedulePolicy, max_evaluations
from rapid_core.types import FULL, Action, Mode, Observation, Sparsity, Window

REPLAYED = Sparsity(left_out="means")


@dataclass(frozen=True)
class ReplayPolicy:
    """The decisions of `lists`, one list an image of the batch. What is held is forecast as
    `schedule` would."""

    lists: tuple[tuple[Decision, ...], ...] = field(repr=False)
    schedule: SchedulePolicy
    technique: str = "replay"
    start_percent: float = 0.0
    end_percent: float = 1.0
    regional: bool = False
    levels: frozenset[Mode] = frozenset(Mode)

    @property
    def sparsity(self) -> Sparsity | None:
        return REPLAYED if any(d.density < 1 for some in self.lists for d in some) else None

    @property
    def forecast_order(self) -> int:
        return self.schedule.forecast_order

    @property
    def history(self) -> int:
        return self.schedule.history

    def start(self, window: Window) -> ReplayActor:
        return ReplayActor(self)

    def settings(self) -> dict:
        return {"technique": self.technique}


class ReplayActor:
    """One run of it."""

    needs_logits = False

    def __init__(self, policy: ReplayPolicy):
        self.policy, self.forecasts = policy, policy.schedule.start(Window(1.0, 0.0))

    def act(self, observation: Observation) -> tuple[Action, ...]:
        if observation.index == 0:
            self.forecasts.plan(observation)  # whether its weights fit the run
        return tuple(self._one(i, observation) for i in range(len(observation.images)))

    def _one(self, number: int, observation: Observation) -> Action:
        decision, image = self.policy.lists[number][observation.index], observation.images[number]
        level = Mode(decision.level)
        if not image.computed or level is Mode.RUN:
            return FULL if decision.density == 1.0 else Action(density=decision.density)
        weights = self.forecasts.weights(number, image, observation) if level is Mode.SKIP else None
        return Action(level, weights=weights)


def replayed(schedule: SchedulePolicy, lists_of: Callable[[int], Sequence[Decision]]) -> Callable:
    """A patch for each group of pictures: the decisions that `lists_of` names for each of them;
    what is held is forecast as `schedule` would."""

    from rapid_core.comfy.chain import attach  # here: this module is imported before the host is

    def each(model: Any, numbers: list[int]) -> Any:
        return attach(model, ReplayPolicy(tuple(tuple(lists_of(n)) for n in numbers), schedule))

    return each


def forecasts_of(file: PolicyFile, speedup: float) -> SchedulePolicy:
    """A schedule that forecasts what is held as a heads file's policy does."""
    policy = heads_policy(file, speedup)
    if isinstance(policy, PlannedPolicy):
        return policy.schedule
    return SchedulePolicy(speedup, forecast_order=policy.forecast_order)


def at_random(steps: int, speedup: float, number: int) -> list[Decision]:
    """As many evaluations as a speed-up allows, the first and the last among them, the others
    anywhere."""
    count = max_evaluations(speedup, steps)
    inner = random.Random(f"{number}/{speedup}").sample(range(1, steps - 1), max(0, count - 2))
    computed = {0, steps - 1, *inner} if count > 1 else {0}
    return [
        Decision("run" if i in computed else "hold", float(i in computed)) for i in range(steps)
    ]
