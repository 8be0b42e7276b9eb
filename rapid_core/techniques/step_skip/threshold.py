"""Cache Reuse: skip while the estimated error of predictions, added up since the last computation,
stays small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from ...types import (
    FULL,
    Action,
    Actor,
    Aim,
    Mode,
    Must,
    Observation,
    Policy,
    Requirements,
    Window,
)

MAX_CONSECUTIVE = 3  # evaluations that may be skipped in a row, unless told otherwise
# Full evaluations after a prediction that the safety check found bad: one good measurement may be by
# chance of where it was taken, as on a part of a packed latent that turns over and over.
TRUSTED_AFTER = 2
COMPUTE = Action(must=Must.RUN)
COMPUTE_ALL = Action(must=Must.ALL)


@dataclass(frozen=True, kw_only=True)
class ThresholdPolicy(Policy):
    """The accumulated-error rule of TeaCache (Liu et al. 2024) and EasyCache, on a prediction
    instead of the last value."""

    technique: ClassVar[str] = "cache_reuse"

    threshold: float
    """Accumulated relative L1 error at which an evaluation is computed again; each evaluation's
    counts `Observation.step_weight` times."""
    start_percent: float = 0.0
    """Share of the schedule from which on evaluations may be skipped."""
    end_percent: float = 1.0
    """Share of the schedule after which all evaluations are computed."""
    max_consecutive: int = MAX_CONSECUTIVE
    """Evaluations in a row that may be skipped; other techniques may not skip more, either."""
    prediction_order: int = 1
    """Order of the polynomial that predicts; 0 keeps the last value."""
    mode: Mode = Mode.SKIP
    """What an evaluation that is not computed does: SKIP or REUSE."""
    guard: float = 0.5
    """Safety check: after a prediction that was measured worse than this relative L1 error the next
    evaluation is computed in full, whatever other techniques ask for; 0 for no check."""
    safe: bool = True
    """Whether nothing is skipped where that is known to go wrong, see `Requirements.safety`."""
    source: str = ""
    """File that the threshold is from."""

    @property
    def percents(self) -> tuple[float, float]:
        """Shares of the schedule between which evaluations may be skipped."""
        return self.start_percent, self.end_percent

    @property
    def requirements(self) -> Requirements:
        """Its mode; a threshold out of a file settles what a run computes."""
        return Requirements(
            modes=frozenset((self.mode, Mode.RUN)),
            prediction_order=self.prediction_order,
            aim=Aim.FULL_PICTURE if self.mode is Mode.SKIP else None,
            decides_schedule=bool(self.source),
            safety=self.safe,
        )

    @override
    def start(self, window: Window, image: int = 0) -> ThresholdActor:
        """An actor for one image."""
        return ThresholdActor(self, window)

    def to_record(self) -> dict[str, Any]:
        """Its settings."""
        return {"technique": self.technique, **vars(self), "mode": self.mode.value}


class ThresholdActor(Actor):
    """The error that one image has accumulated."""

    def __init__(self, policy: ThresholdPolicy, window: Window):
        self.policy = policy
        self.window = window
        self.accumulated = 0.0
        """Weighted error estimates of the evaluations since the last that was computed."""
        self._with_this = 0.0  # and of the evaluation in progress
        self._wary = 0  # evaluations to compute in full before predictions are trusted again

    def act(self, observation: Observation) -> Action:
        """Skip while the cap, the safety check and the budget of error allow it."""
        self._with_this = observation.step_weight * observation.error + self.accumulated
        if observation.sigma not in self.window:
            return FULL
        measured = observation.measured_error
        if self.policy.guard and measured is not None and not measured <= self.policy.guard:
            self._wary = TRUSTED_AFTER if self.policy.safe else 1
        if self._wary:
            return COMPUTE_ALL
        if observation.since_computed >= self.policy.max_consecutive:
            return COMPUTE
        if math.isfinite(self._with_this) and self._with_this < self.policy.threshold:
            return Action(self.policy.mode)
        return FULL

    def executed(self, action: Action) -> None:
        """The budget starts anew where the blocks ran, and goes on where they did not, whoever
        wanted it."""
        if action.mode is Mode.RUN:
            self._wary = max(0, self._wary - 1)
        self.accumulated = 0.0 if action.mode is Mode.RUN else self._with_this
