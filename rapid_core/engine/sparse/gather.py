"""Sparse attention in plain torch: each query tile's keys and values are copied next to one
another.

The copies are small (a share of the keys, for 128 queries), stay in the processor's cache, and go
through the same matrix products as dense attention; on a CPU the copying costs less than what is
left out. On a GPU it would not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .problem import Problem


def missing(device: str) -> str | None:
    """Why it cannot run on this device."""
    return None if device == "cpu" else f"gather is made for CPUs; on {device} take flex"


def attend(problem: Problem) -> Tensor:
    """As q."""
    p, out = problem, torch.empty_like(problem.q)
    groups = p.q.shape[1] // p.k.shape[1]
    for row in range(p.q.shape[0]):
        for head in range(p.q.shape[1]):
            _head(p, row, head, head // groups, out[row, head])
    return out


def _head(p: Problem, row: int, head: int, group: int, out: Tensor) -> None:
    """One head; out (Tq * PAIR * S, D) is written."""
    tiles, size, depth = p.key_tiles, p.size, p.q.shape[3]
    k, v, kept = p.k[row, group], p.v[row, group], p.kept[row, head]
    sources = [t[: tiles * size].reshape(tiles, size * depth) for t in (k, v)]
    tails = [t[tiles * size :] for t in (k, v)]
    bias = None if p.bias is None else p.bias[row]
    means = None
    if p.pooled:
        tails = [
            torch.cat((t, s.view(tiles, size, depth).mean(1)))
            for t, s in zip(tails, sources, strict=True)
        ]
        means = k.new_full((len(kept), tiles), math.log(size)).scatter_(1, kept, -math.inf)
    copied = kept.shape[1] * size
    keys, values = (torch.cat((t.new_empty(copied, depth), t)) for t in tails)
    slots = [t[:copied].view(-1, size * depth) for t in (keys, values)]
    q, target = (p.q[row, head] * p.scale).view(-1, p.rows, depth), out.view(-1, p.rows, depth)
    scores, weights = (k.new_empty(p.rows, len(keys)) for _ in range(2))
    for i in range(len(q)):
        for source, slot in zip(sources, slots, strict=True):
            torch.index_select(source, 0, kept[i], out=slot)
        torch.mm(q[i], keys.T, out=scores)
        if means is not None:
            scores[:, copied + p.always :] += means[i]
        if bias is not None:
            scores[:, :copied] += bias[: tiles * size].view(tiles, size)[kept[i]].flatten()
            scores[:, copied : copied + p.always] += bias[tiles * size :]
        torch.mm(torch.softmax(scores, 1, out=weights), values, out=target[i])
