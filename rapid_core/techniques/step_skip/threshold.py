"""Cache Reuse: skip while the estimated forecast error, accumulated since the last computation,
stays small."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ...types import FULL, Action, Mode, Observation, Sparsity, Window

IN_A_ROW = 3  # evaluations that may be left out, unless told otherwise


@dataclass(frozen=True)
class ThresholdPolicy:
    """Accumulated-error rule of TeaCache (Liu et al. 2024) and EasyCache, on a forecast instead of
    a held value.

    threshold: accumulated relative L1 error, each step's times its weight (`step_weights`), at
    which an evaluation is computed again. max_consecutive: evaluations in a row that may be left
    out. guard: after a forecast measured worse than this relative L1 error the next evaluation is
    computed; 0 = off."""

    threshold: float
    start_percent: float = 0.0
    end_percent: float = 1.0
    max_consecutive: int = IN_A_ROW
    forecast_order: int = 1
    level: Mode = Mode.SKIP
    guard: float = 0.5
    technique: str = "cache_reuse"
    regional: bool = False
    history: int = 0
    sparsity: Sparsity | None = None
    source: str = ""  # file that the threshold is from

    @property
    def levels(self) -> frozenset[Mode]:
        return frozenset((self.level, Mode.RUN))

    def start(self, window: Window) -> ThresholdActor:
        return ThresholdActor(self, window)

    def settings(self) -> dict:
        return {**asdict(self), "level": self.level.value}


class ThresholdActor:
    """Accumulated error per image of one run."""

    needs_logits = False

    def __init__(self, policy: ThresholdPolicy, window: Window):
        self.policy, self.window = policy, window
        self.accumulated: dict[int, float] = {}

    def act(self, observation: Observation) -> tuple[Action, ...]:
        return tuple(self._one(i, observation) for i in range(len(observation.images)))

    def _one(self, image: int, observation: Observation) -> Action:
        state = observation.images[image]
        total = observation.weight * state.error + (
            self.accumulated.get(image, 0.0) if state.since_computed else 0.0
        )
        allowed = (
            observation.sigma in self.window
            and state.since_computed < self.policy.max_consecutive
            and not (
                self.policy.guard
                and state.measured is not None
                and state.measured > self.policy.guard
            )
            and math.isfinite(total)
            and total < self.policy.threshold
        )
        self.accumulated[image] = total if allowed else 0.0
        return Action(self.policy.level) if allowed else FULL
