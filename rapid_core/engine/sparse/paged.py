"""Sparse attention by xformers' paged kernel, where it is installed; CUDA only.

Untested: no machine of this project could run it. Every query tile of every head is a sequence of
its own, and its kept tiles are the pages that its keys lie on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .problem import Problem


def missing(device: str) -> str | None:
    """Why xformers' paged attention cannot run on this device."""
    if device != "cuda":
        return "xformers runs on CUDA only"
    try:
        from xformers.ops.fmha.attn_bias import PagedBlockDiagonalPaddedKeysMask  # noqa: F401
    except ImportError:
        return "xformers is not installed, or too old for paged attention (pip install xformers)"
    return None


def attend(problem: Problem) -> Tensor:
    """As q."""
    from xformers.ops import fmha
    from xformers.ops.fmha.attn_bias import PagedBlockDiagonalPaddedKeysMask

    p: Any = problem
    rows, heads, tiles, count = p.kept.shape
    groups, size = heads // p.k.shape[1], p.size
    last = -(-p.always // size)
    pages = p.key_tiles + last  # of one head
    padding = pages * size - p.k.shape[2]
    k, v = (
        torch.nn.functional.pad(t, (0, 0, 0, padding)).reshape(1, -1, 1, t.shape[3])
        for t in (p.k, p.v)
    )
    owner = (
        torch.arange(rows * p.k.shape[1], device=p.q.device)
        .view(rows, -1)
        .repeat_interleave(groups, 1)
    )
    ends = torch.arange(p.key_tiles, pages, device=p.q.device).expand(rows, heads, tiles, last)
    table = torch.cat((p.kept, ends), 3) + owner[:, :, None, None] * pages
    lengths = [count * size + p.always] * (rows * heads * tiles)
    bias = PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        q_seqlen=[p.rows] * len(lengths),
        kv_seqlen=lengths,
        block_tables=table.flatten(0, 2).int(),
        page_size=size,
    )
    q = p.q.reshape(1, -1, 1, p.q.shape[3])
    kernel = fmha.triton_splitk.FwOp
    return fmha.memory_efficient_attention_forward(q, k, v, bias, scale=p.scale, op=kernel).view_as(
        p.q
    )
