"""Sparse attention by xformers' paged kernel, where it is installed; CUDA only.

Every query tile of every head is a sequence of its own, and its chosen tiles are the pages that its
keys lie on. The kernel walks over a page in blocks of 64 keys, so that a tile has to be a multiple
of them (`page_size % BLOCK_N` in its `not_supported_reasons`)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from ...reasons import ReasonCode
from ...types import Reason
from .problem import Problem

TILE_SIZES = (64, 128)


def missing(device_type: str) -> Reason | None:
    """Why xformers' paged attention cannot run on this type of device."""
    if device_type != "cuda":
        return Reason(ReasonCode.XFORMERS_NEEDS_CUDA)
    try:
        from xformers.ops.fmha.attn_bias import PagedBlockDiagonalPaddedKeysMask  # noqa: F401
    except ImportError:
        return Reason(ReasonCode.XFORMERS_MISSING)
    return None


def attend(problem: Problem) -> Tensor:
    """As q."""
    from xformers.ops import fmha

    p: Any = problem
    rows, heads, tiles, count = p.chosen.shape
    table = page_table(p)
    padding = -p.k.shape[2] % p.size
    k, v = (
        torch.nn.functional.pad(t, (0, 0, 0, padding)).reshape(1, -1, 1, t.shape[3])
        for t in (p.k, p.v)
    )
    lengths = _lengths(
        rows * heads * tiles,
        p.query_size,
        count * p.size + p.always,
        table.shape[1],
        p.size,
        p.q.device,
    )
    q = p.q.reshape(1, -1, 1, p.q.shape[3])
    bias = dataclasses.replace(lengths, block_tables=table)
    kernel = fmha.triton_splitk.FwOp
    out = fmha.memory_efficient_attention_forward(q, k, v, bias, scale=p.scale, op=kernel)
    return out.view_as(p.q)


def page_table(p: Problem) -> Tensor:
    """Pages of each sequence (R * H * Tq, K + pages that every query attends to), int32. The pages
    of a key head follow one another, its last ones holding what every query attends to."""
    rows, heads, tiles, _ = p.chosen.shape
    device = p.chosen.device
    groups = heads // p.k.shape[1]
    pages = -(-p.k.shape[2] // p.size)  # of one key head
    owner = torch.arange(rows * p.k.shape[1], device=device).view(rows, -1)
    owner = owner.repeat_interleave(groups, 1)
    ends = torch.arange(p.key_tiles, pages, device=device).expand(rows, heads, tiles, -1)
    table = torch.cat((p.chosen, ends), 3) + owner[:, :, None, None] * pages
    return table.flatten(0, 2).int()


@functools.lru_cache(maxsize=4)
def _lengths(
    number: int, queries: int, keys: int, pages: int, size: int, device: torch.device
) -> Any:
    """xformers' mask of `number` sequences of `queries` and `keys` on `pages` pages of `size`, with
    any table. It makes Python lists of them all and copies them to the device; most attentions of a
    model have the same."""
    from xformers.ops.fmha.attn_bias import PagedBlockDiagonalPaddedKeysMask

    bias = PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        q_seqlen=[queries] * number,
        kv_seqlen=[keys] * number,
        block_tables=torch.zeros(1, pages, dtype=torch.int32, device=device),
        page_size=size,
    )
    return bias.to(device)
