"""One sparse attention in the form that all backends take, and the way out of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...attention_cost import PAIR
from ...types import Reason


class StaysDense(Exception):
    """An attention cannot be sparse; `reason` says why."""

    def __init__(self, reason: Reason):
        super().__init__(repr(reason))
        self.reason = reason


@dataclass(frozen=True)
class Problem:
    """Queries in tiles, and what each tile of them attends to: R rows, H heads of D channels, G key
    heads that divide H, T key tiles of S tokens, A keys that every query attends to."""

    q: Tensor
    """(R, H, Tq * PAIR * S, D): Tq query tiles."""
    k: Tensor
    """(R, G, T * S + A, D): the key tiles, then what every query attends to (text, and what is in
    no whole tile)."""
    v: Tensor
    """As k."""
    chosen: Tensor
    """(R, H, Tq, K) sorted numbers of the key tiles that each query tile attends to."""
    size: int
    """S, tokens of a key tile."""
    always: int
    """A, keys that every query attends to."""
    scale: float
    """Of the scores."""
    bias: Tensor | None = None
    """(R, T * S + A), added to the scores of each key; None for none."""
    means: bool = False
    """Whether the other tiles stand in as their means."""

    @property
    def key_tiles(self) -> int:
        """T."""
        return (self.k.shape[2] - self.always) // self.size

    @property
    def query_size(self) -> int:
        """Queries of a query tile."""
        return PAIR * self.size
