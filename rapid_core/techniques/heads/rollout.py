"""What training writes down of heads' decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """What was chosen for one image; None where there is no such head, or where the choice was
    void."""

    jump: float | None = None
    """Share of the present sigma down to which evaluations are skipped, in (0, 1)."""
    cache: int | None = None
    """0: recompute, 1: reuse."""
    sparse: int | None = None
    """0: dense, 1 to 3: the policy's densities."""
    pace: int | None = None
    """Place in `prior.RUNGS` of the schedule that is followed to its next evaluation."""
    prior_logits: tuple[float, ...] = ()
    """What was added to the pace head's logits."""


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
