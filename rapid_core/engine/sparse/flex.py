"""Sparse attention by FlexAttention: one kernel that walks over the kept tiles of each query tile.

The kernel is compiled at its first use, for each shape; that needs a C++ compiler on CPUs and
Triton on GPUs."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .problem import Problem
from .select import mean_of_runs


def missing(device: str) -> str | None:
    """Why FlexAttention cannot run on this device."""
    try:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention  # noqa: F401
    except ImportError:
        return "flex needs PyTorch 2.5 or newer"
    if device == "cpu":
        return (
            None
            if shutil.which("g++") or shutil.which("clang++")
            else "flex needs a C++ compiler on a CPU"
        )
    try:
        import triton  # noqa: F401
    except ImportError:
        return (
            "flex needs Triton (it comes with PyTorch for CUDA on Linux; triton-windows on Windows)"
        )
    return None


@functools.cache
def _compiled() -> Callable[..., Any]:
    """The fused kernel. torch keeps what it compiled in the same way."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def block_mask(problem: Problem) -> Any:
    """The kept tiles as a BlockMask: tiles are whole blocks, so that no score is masked inside one.

    The compiled kernel goes by the block lists alone; the function is for FlexAttention without
    compilation."""
    from torch.nn.attention.flex_attention import BlockMask

    p = problem
    others = -(-(p.always + (p.key_tiles if p.pooled else 0)) // p.size)  # blocks after the tiles
    rows, heads, tiles, count = p.kept.shape
    last = torch.arange(p.key_tiles, p.key_tiles + others, device=p.kept.device).expand(
        rows, heads, tiles, -1
    )
    order = torch.zeros(
        rows, heads, tiles, p.key_tiles + others, dtype=torch.int32, device=p.kept.device
    )
    order[..., : count + others] = torch.cat((p.kept, last), 3)
    number = torch.full(
        (rows, heads, tiles), count + others, dtype=torch.int32, device=p.kept.device
    )
    length = p.k.shape[2] + (p.key_tiles if p.pooled else 0)
    seen = torch.zeros(
        rows, heads, tiles, p.key_tiles + others, dtype=torch.bool, device=p.kept.device
    )
    seen.scatter_(3, torch.cat((p.kept, last), 3), True)
    high, size = p.rows, p.size

    def allowed(b, h, i, j):
        return seen[b, h, i // high, j // size]

    return BlockMask.from_kv_blocks(
        torch.zeros_like(number),
        torch.zeros_like(order),
        number,
        order,
        BLOCK_SIZE=(p.rows, size),
        mask_mod=allowed,
        seq_lengths=(p.q.shape[2], length),
        compute_q_blocks=False,
    )


def attend(problem: Problem, kernel: Callable[..., Any] | None = None) -> Tensor:
    """As q. kernel: flex_attention itself instead of the compiled one, for tests."""
    p, k, v = problem, problem.k, problem.v
    tiled, length, size, rows = p.key_tiles * p.size, problem.k.shape[2], p.size, p.rows
    if p.pooled:
        k, v = (torch.cat((t, mean_of_runs(t[:, :, :tiled], size)), 2) for t in (k, v))
    change = None
    if p.pooled:
        out = torch.ones(*p.kept.shape[:3], p.key_tiles, device=p.q.device).scatter_(3, p.kept, 0.0)
        left_out = torch.where(out > 0, math.log(size), -math.inf)

        def change(score, b, h, i, j):  # type: ignore[no-redef]
            return torch.where(
                j >= length, score + left_out[b, h, i // rows, (j - length).clamp_min(0)], score
            )

    elif p.bias is not None:
        bias = p.bias

        def change(score, b, h, i, j):  # type: ignore[no-redef]
            return score + bias[b, j]

    grouped = k.shape[1] != p.q.shape[1]
    return (kernel or _compiled())(
        p.q, k, v, score_mod=change, block_mask=block_mask(p), scale=p.scale, enable_gqa=grouped
    )
