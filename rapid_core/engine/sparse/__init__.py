"""Sparse attention: image tokens in tiles, tile pairs chosen by estimated mass, several ways to compute them."""

from __future__ import annotations

from .attention import Lay, SparseAttention, heads_first
from .backends import BACKENDS, NAMES
from .tiles import Tiles
from .trust import Trust

__all__ = ["BACKENDS", "NAMES", "Lay", "SparseAttention", "Tiles", "Trust", "heads_first"]
