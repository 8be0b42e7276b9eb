"""The reference: dense attention under a mask. Slower than dense; for tests and checks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .problem import Problem
from .select import mean_of_runs


def attend(problem: Problem) -> Tensor:
    """As q, with the scores of all keys."""
    p = problem
    groups = p.q.shape[1] // p.k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (p.k, p.v))
    tiled, size = p.key_tiles * p.size, p.size
    kept = torch.zeros(
        *p.kept.shape[:3], p.key_tiles, dtype=torch.bool, device=p.q.device
    ).scatter_(3, p.kept, True)
    seen = kept.repeat_interleave(p.rows, 2)  # (R, H, queries, T)
    scores = p.q @ k.transpose(2, 3) * p.scale
    if p.bias is not None:
        scores = scores + p.bias[:, None, None]
    scores[..., :tiled].masked_fill_(~seen.repeat_interleave(size, 3), -math.inf)
    if p.pooled:
        means = p.q @ mean_of_runs(k[:, :, :tiled], size).transpose(2, 3) * p.scale + math.log(size)
        scores = torch.cat((scores, means.masked_fill(seen, -math.inf)), 3)
        v = torch.cat((v, mean_of_runs(v[:, :, :tiled], size)), 2)
    return scores.softmax(3) @ v
