"""Sparse attention: image tokens in tiles, tile pairs chosen by estimated mass, several ways to
compute them."""

from __future__ import annotations

from .attention import Lay, SparseAttention, heads_first
from .backends import BACKENDS, NAMES
from .left_out import SLOPE, Ledger, LeftOut
from .tiles import Tiles
from .trust import Trust

__all__ = [
    "BACKENDS",
    "NAMES",
    "SLOPE",
    "Lay",
    "Ledger",
    "LeftOut",
    "SparseAttention",
    "Tiles",
    "Trust",
    "heads_first",
]
