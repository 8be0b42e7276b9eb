"""Sparse attention (RAPID3's third level): each tile of image tokens attends to the tiles that
matter to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ...types import FULL, Action, ImageState, Mode, Observation, Sparsity, Window


@dataclass(frozen=True)
class SparsePolicy:
    """density: share of the pairs of image tiles that are attended to, in (0, 1], between
    start_percent and end_percent of the schedule. sparsity: how it is computed. refresh_interval:
    where differences to dense attention are kept, sparse evaluations between two that measure
    them."""

    density: float
    sparsity: Sparsity = Sparsity()
    refresh_interval: int = 2
    start_percent: float = 0.0
    end_percent: float = 1.0
    technique: str = "sparse_attention"
    regional: bool = False
    history: int = 0
    forecast_order: int = 0

    @property
    def levels(self) -> frozenset[Mode]:
        return frozenset((Mode.RUN,))

    def start(self, window: Window) -> SparseActor:
        return SparseActor(self, window)

    def settings(self) -> dict:
        return asdict(self)


class SparseActor:
    """The same density throughout the window, with dense evaluations that measure what it leaves
    out."""

    needs_logits = False

    def __init__(self, policy: SparsePolicy, window: Window):
        self.policy, self.window = policy, window

    def act(self, observation: Observation) -> tuple[Action, ...]:
        return tuple(self._one(image, observation.sigma) for image in observation.images)

    def _one(self, image: ImageState, sigma: float) -> Action:
        if sigma not in self.window:
            return FULL
        if (
            self.policy.sparsity.remembers
            and not 0 <= image.since_measured < self.policy.refresh_interval
        ):
            return Action(measures=self.policy.density)
        return Action(density=self.policy.density)
