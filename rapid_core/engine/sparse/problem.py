"""One sparse attention in the form that all backends take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...cost import PAIR


@dataclass(frozen=True)
class Problem:
    """Queries in tiles, and what each tile of them attends to.

    q (R, H, Tq * PAIR * S, D): tile queries. k, v (R, G, T * S + A, D): T key tiles of S tokens,
    then A tokens that every query attends to (text, and what is no whole tile); G heads that divide
    H. kept (R, H, Tq, K): sorted numbers of the key tiles of each query tile. bias (R, T * S + A)
    or None: added to the scores of each key. pooled: whether the tiles that were left out stand in
    as their means."""

    q: Tensor
    k: Tensor
    v: Tensor
    kept: Tensor
    size: int
    always: int
    scale: float
    bias: Tensor | None = None
    pooled: bool = False

    @property
    def key_tiles(self) -> int:
        """Key tiles T."""
        return (self.k.shape[2] - self.always) // self.size

    @property
    def rows(self) -> int:
        """Queries of a query tile."""
        return PAIR * self.size
