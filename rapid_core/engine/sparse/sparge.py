"""Sparse attention by SpargeAttn's kernel (Zhang et al. 2025), where it is installed; quantised
inside, CUDA only.

Untested: no machine of this project could run it. Its blocks are 128 queries by 64 keys, the same
as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .problem import Problem


def missing(device: str) -> str | None:
    """Why SpargeAttn cannot run on this device."""
    if device != "cuda":
        return "spargeattn runs on CUDA only"
    try:
        import spas_sage_attn  # noqa: F401
    except ImportError:
        return "spargeattn is not installed (github.com/thu-ml/SpargeAttn, built for your torch and CUDA)"
    return None


def attend(problem: Problem) -> Tensor:
    """As q; tiles of 64."""
    import spas_sage_attn

    p: Any = problem
    rows, heads, tiles = p.kept.shape[:3]
    groups = heads // p.k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (p.k, p.v))
    last = -(-p.always // p.size)
    mask = torch.zeros(rows, heads, tiles, p.key_tiles + last, dtype=torch.int8, device=p.q.device)
    mask[..., : p.key_tiles].scatter_(3, p.kept, 1)
    mask[..., p.key_tiles :] = 1
    return spas_sage_attn.block_sparse_sage2_attn_cuda(
        p.q, k, v, mask_id=mask, scale=p.scale, tensor_layout="HND"
    )
