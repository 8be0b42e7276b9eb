"""What every backend has to compute: dense attention under a mask. Slower than dense; no backend,
but what backends are checked and tested against."""

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
    k = p.k.repeat_interleave(groups, 1)
    v = p.v.repeat_interleave(groups, 1)
    tiled = p.key_tiles * p.size
    shape = (*p.chosen.shape[:3], p.key_tiles)
    chosen = torch.zeros(shape, dtype=torch.bool, device=p.q.device).scatter_(3, p.chosen, True)
    seen = chosen.repeat_interleave(p.query_size, 2)  # (R, H, queries, T)
    scores = p.q @ k.transpose(2, 3) * p.scale
    if p.bias is not None:
        scores = scores + p.bias[:, None, None]
    scores[..., :tiled].masked_fill_(~seen.repeat_interleave(p.size, 3), -math.inf)
    if p.means:
        key_means = mean_of_runs(k[:, :, :tiled], p.size)
        means = p.q @ key_means.transpose(2, 3) * p.scale + math.log(p.size)
        scores = torch.cat((scores, means.masked_fill(seen, -math.inf)), 3)
        v = torch.cat((v, mean_of_runs(v[:, :, :tiled], p.size)), 2)
    return scores.softmax(3) @ v
