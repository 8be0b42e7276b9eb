"""Sparse attention: image tokens in tiles, tile pairs chosen by estimated mass, several ways to
compute them."""

from __future__ import annotations

from .attention import KeyLayout, SparseAttention, heads_first
from .backend_check import BackendCheck
from .backends import AUTO, BACKENDS, NAMES, wrong_tile
from .residual import SLOPE, ResidualAccess, SparseResidual
from .tiles import Tiles

__all__ = [
    "AUTO",
    "BACKENDS",
    "NAMES",
    "SLOPE",
    "BackendCheck",
    "KeyLayout",
    "ResidualAccess",
    "SparseAttention",
    "SparseResidual",
    "Tiles",
    "heads_first",
    "wrong_tile",
]
