"""Sparse attention (RAPID3's third level): each tile of image tokens attends to the tiles that
matter to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from typing_extensions import override

from ...types import FULL, Action, Actor, Observation, Policy, Requirements, Sparsity, Window


@dataclass(frozen=True, kw_only=True)
class SparsePolicy(Policy):
    """The same density of attention throughout a part of the schedule."""

    technique: ClassVar[str] = "sparse_attention"

    density: float
    """Share of the pairs of image tiles that are attended to, in (0, 1]."""
    sparsity: Sparsity = Sparsity()
    """How attention is made sparse."""
    refresh_interval: int = 2
    """Where differences to dense attention are kept: sparse evaluations between two that measure
    them."""
    start_percent: float = 0.0
    """Share of the schedule from which on attention is sparse."""
    end_percent: float = 1.0
    """Share of the schedule after which attention is dense."""

    @property
    def percents(self) -> tuple[float, float]:
        """Shares of the schedule between which attention is sparse."""
        return self.start_percent, self.end_percent

    @property
    def requirements(self) -> Requirements:
        """Sparse attention, and nothing else."""
        return Requirements(attention=self.sparsity, attention_density=self.density)

    def with_attention(self, attention: Sparsity) -> Policy:
        """These settings with the sparse attention that a run can have."""
        return replace(self, sparsity=attention)

    @override
    def start(self, window: Window, image: int = 0) -> SparseActor:
        """An actor for one image."""
        return SparseActor(self, window)

    def to_record(self) -> dict[str, Any]:
        """Its settings; the interval only where it counts."""
        interval = {"refresh_interval": self.refresh_interval}
        return {
            "technique": self.technique,
            "density": self.density,
            "sparsity": asdict(self.sparsity),
            **(interval if self.sparsity.keeps_residual else {}),
            "start_percent": self.start_percent,
            "end_percent": self.end_percent,
        }


class SparseActor(Actor):
    """Asks for sparse attention, and now and then for dense attention that measures the
    difference."""

    def __init__(self, policy: SparsePolicy, window: Window):
        self.policy = policy
        self.window = window

    def act(self, observation: Observation) -> Action:
        """Dense outside the window; sparse within, but for the evaluations that measure."""
        if observation.sigma not in self.window:
            return FULL
        density = self.policy.density
        measured = 0 <= observation.since_measured < self.policy.refresh_interval
        if self.policy.sparsity.keeps_residual and not measured:
            return Action(measured_density=density)
        return Action(density=density)
