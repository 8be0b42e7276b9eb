"""What training writes down of heads' decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """What was chosen for one image: jump in (0, 1), cache 0 (recompute) or 1 (reuse), sparse 0
    (dense) to 3; None: no such head, or a void choice. pace: place in `prior.RUNGS`; lean: what was
    added to its logits."""

    jump: float | None = None
    cache: int | None = None
    sparse: int | None = None
    pace: int | None = None
    prior_logits: tuple[float, ...] = ()


class RolloutBuffer(Protocol):
    """Where training writes what was seen and chosen."""

    def add(
        self,
        image: int,
        evaluation: int,
        inputs: dict[str, Tensor],
        numbers: Tensor,
        pooled: Tensor,
        choice: Decision,
    ) -> None:
        """One decision; inputs by head (C, H, W), numbers (n,), pooled (D,)."""
        ...
