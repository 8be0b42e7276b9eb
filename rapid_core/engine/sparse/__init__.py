"""Sparse attention: image tokens in tiles, tile pairs chosen by estimated mass, several ways to
compute them."""

from __future__ import annotations

from .attention import KeyLayout, SparseAttention, heads_first
from .backend_check import BackendCheck
from .backends import BACKENDS, NAMES
from .residual import SLOPE, ResidualAccess, SparseResidual
from .tiles import Tiles

__all__ = [
    "BACKENDS",
    "NAMES",
    "SLOPE",
    "KeyLayout",
    "ResidualAccess",
    "SparseResidual",
    "SparseAttention",
    "Tiles",
    "BackendCheck",
    "heads_first",
]
