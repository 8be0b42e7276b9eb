"""Sparse attention by FlexAttention: one kernel that walks over the chosen tiles of each query
tile.

The kernel is compiled at its first use, and again for each shape (another size of picture or length
of prompt); that needs a C++ compiler on CPUs and Triton on GPUs. After as many shapes as torch
compiles of one function (8 by default) it fails, and attention is dense, instead of running
uncompiled, which would hold the scores of all keys."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...reasons import ReasonCode
from ...types import Reason
from .problem import Problem
from .select import mean_of_runs

QUERY_BLOCK = 128  # of torch's own choices for half precision and heads of at most 128
KEY_BLOCK = 64


def missing(device_type: str) -> Reason | None:
    """Why FlexAttention cannot run on this type of device."""
    try:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention  # noqa: F401
    except ImportError:
        return Reason(ReasonCode.FLEX_NEEDS_TORCH)
    if device_type == "cpu":
        compiler = shutil.which("g++") or shutil.which("clang++")
        return None if compiler else Reason(ReasonCode.FLEX_NEEDS_COMPILER)
    try:
        import triton  # noqa: F401
    except ImportError:
        return Reason(ReasonCode.FLEX_NEEDS_TRITON)
    return None


@functools.cache
def _compiled() -> Callable[..., Any]:
    """The fused kernel. torch keeps what it compiled in the same way."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def block_mask(problem: Problem) -> Any:
    """The chosen tiles as a BlockMask: tiles are whole blocks, so that no score is masked inside
    one.

    The compiled kernel goes by the block lists alone; the function is for FlexAttention without
    compilation."""
    from torch.nn.attention.flex_attention import BlockMask

    p = problem
    device = p.chosen.device
    rows, heads, tiles, count = p.chosen.shape
    others = -(-(p.always + (p.key_tiles if p.means else 0)) // p.size)  # blocks after the tiles
    blocks = p.key_tiles + others
    last = torch.arange(p.key_tiles, blocks, device=device).expand(rows, heads, tiles, -1)
    attended = torch.cat((p.chosen, last), 3)
    order = torch.zeros(rows, heads, tiles, blocks, dtype=torch.int32, device=device)
    order[..., : count + others] = attended
    number = torch.full((rows, heads, tiles), count + others, dtype=torch.int32, device=device)
    seen = torch.zeros(rows, heads, tiles, blocks, dtype=torch.bool, device=device)
    seen.scatter_(3, attended, True)
    length = p.k.shape[2] + (p.key_tiles if p.means else 0)
    high, size = p.query_size, p.size

    def allowed(b, h, i, j):
        return seen[b, h, i // high, j // size]

    return BlockMask.from_kv_blocks(
        torch.zeros_like(number),
        torch.zeros_like(order),
        number,
        order,
        BLOCK_SIZE=(high, size),
        mask_mod=allowed,
        seq_lengths=(p.q.shape[2], length),
        compute_q_blocks=False,
    )


def kernel_options(problem: Problem) -> dict[str, int] | None:
    """Blocks of the kernel that divide the tiles; torch's own choice may be larger than a tile (128
    keys for heads of 64 on H100), which it refuses. None where it is left to torch."""
    p = problem
    if p.q.device.type != "cuda" or p.q.element_size() != 2 or p.q.shape[3] > 128:
        return None
    return {
        "BLOCK_M": min(QUERY_BLOCK, p.query_size),
        "BLOCK_N": min(KEY_BLOCK, p.size),
    }


def attend(problem: Problem, kernel: Callable[..., Any] | None = None) -> Tensor:
    """As q. kernel: flex_attention itself instead of the compiled one, for tests."""
    p = problem
    k, v = p.k, p.v
    size, length, query_size = p.size, p.k.shape[2], p.query_size
    change = None
    if p.means:
        tiled = p.key_tiles * size
        k, v = (torch.cat((t, mean_of_runs(t[:, :, :tiled], size)), 2) for t in (k, v))
        others = torch.ones(*p.chosen.shape[:3], p.key_tiles, device=p.q.device)
        others.scatter_(3, p.chosen, 0.0)
        mean_bias = torch.where(others > 0, math.log(size), -math.inf)

        def with_means(score, b, h, i, j):
            mean = (j - length).clamp_min(0)
            return torch.where(j >= length, score + mean_bias[b, h, i // query_size, mean], score)

        change = with_means

    elif p.bias is not None:
        bias = p.bias

        def with_bias(score, b, h, i, j):  # noqa: ARG001
            return score + bias[b, j]

        change = with_bias

    return (kernel or _compiled())(
        p.q,
        k,
        v,
        score_mod=change,
        block_mask=block_mask(p),
        scale=p.scale,
        enable_gqa=k.shape[1] != p.q.shape[1],
        kernel_options=kernel_options(p),
    )
