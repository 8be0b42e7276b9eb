"""What a policy sees and what it answers: one decision per model evaluation and image."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Level(Enum):
    """How much of an evaluation is computed for one image, from least to most."""

    HOLD = "hold"  # nothing: the derivative is forecast (RAPID3's Step-Skip on the sampler's grid)
    REUSE = "reuse"  # patch embedding and final layer; the block stack's residual is forecast (Cache-Reuse)
    RUN = "run"  # everything


@dataclass(frozen=True)
class ImageState:
    """What is known of one image of the batch before an evaluation.

    `error` is the estimated relative L1 error of forecasting this evaluation's guided derivative (inf: unknown),
    `measured` the true one of the last evaluation that was computed although it could have been forecast."""

    computed: int
    since_computed: int
    error: float
    measured: float | None = None


@dataclass(frozen=True)
class Observation:
    """The state of a run before evaluation number `index` at noise level `sigma`."""

    index: int
    sigma: float
    images: tuple[ImageState, ...]


@dataclass(frozen=True)
class Window:
    """Noise levels between which a policy may act: start >= sigma >= end."""

    start: float
    end: float

    def __contains__(self, sigma: float) -> bool:
        return self.start >= sigma >= self.end


class Actor(Protocol):
    """A policy in one run; may keep state, which lives as long as the run."""

    def act(self, observation: Observation) -> tuple[Level, ...]:
        """One level per image."""
        ...


class Policy(Protocol):
    """Frozen settings of one technique, as a node attaches them to a model."""

    technique: str
    forecast_order: int
    start_percent: float
    end_percent: float
    levels: frozenset[Level]

    def start(self, window: Window) -> Actor:
        """A fresh actor for one run; `window` is start_percent .. end_percent as noise levels."""
        ...

    def settings(self) -> dict:
        """Settings in JSON form, for the record."""
        ...
