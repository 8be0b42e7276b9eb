"""Sparse attention (RAPID3's third level): each tile of image tokens attends to the tiles that matter to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..actions import DENSE, Action, Level, Observation, Sparsity, Window


@dataclass(frozen=True)
class SparsePolicy:
    """density: share of the pairs of image tiles that are attended to, in (0, 1], between start_percent and end_percent
    of the schedule. sparsity: how it is computed."""

    density: float
    sparsity: Sparsity = Sparsity()
    start_percent: float = 0.0
    end_percent: float = 1.0
    technique: str = "sparse_attention"
    regional: bool = False
    forecast_order: int = 0

    @property
    def levels(self) -> frozenset[Level]:
        return frozenset((Level.RUN,))

    def start(self, window: Window) -> SparseActor:
        return SparseActor(self, window)

    def settings(self) -> dict:
        return asdict(self)


class SparseActor:
    """The same density throughout the window."""

    def __init__(self, policy: SparsePolicy, window: Window):
        self.action, self.window = Action(density=policy.density), window

    def act(self, observation: Observation) -> tuple[Action, ...]:
        chosen = self.action if observation.sigma in self.window else DENSE
        return (chosen,) * len(observation.images)
