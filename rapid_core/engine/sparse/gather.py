"""Sparse attention in plain torch: each query tile's keys and values are copied next to one
another.

The copies are small (a share of the keys, for 128 queries), stay in the processor's cache, and go
through the same matrix products as dense attention; on a CPU the copying costs less than what it
saves. On a GPU it would not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...reasons import ReasonCode
from ...types import Reason
from .problem import Problem


def missing(device_type: str) -> Reason | None:
    """Why it cannot run on this type of device."""
    return (
        None if device_type == "cpu" else Reason(ReasonCode.GATHER_IS_FOR_CPUS, device=device_type)
    )


def attend(problem: Problem) -> Tensor:
    """As q."""
    out = torch.empty_like(problem.q)
    heads = problem.q.shape[1]
    groups = heads // problem.k.shape[1]
    for row in range(problem.q.shape[0]):
        for head in range(heads):
            _head(problem, row, head, head // groups, out[row, head])
    return out


def _head(p: Problem, row: int, head: int, group: int, out: Tensor) -> None:
    """One head; out (Tq * PAIR * S, D) is written."""
    tiles, size, depth = p.key_tiles, p.size, p.q.shape[3]
    tiled = tiles * size
    k, chosen = p.k[row, group], p.chosen[row, head]
    sources = []  # keys and values, a tile a line
    tails = []  # keys and values that every query attends to
    for values in (k, p.v[row, group]):
        source = values[:tiled].reshape(tiles, size * depth)
        tail = values[tiled:]
        if p.means:
            tail = torch.cat((tail, source.view(tiles, size, depth).mean(1)))
        sources.append(source)
        tails.append(tail)
    bias = None if p.bias is None else p.bias[row]
    means = None
    if p.means:
        means = k.new_full((len(chosen), tiles), math.log(size)).scatter_(1, chosen, -math.inf)
    copied = chosen.shape[1] * size
    keys, values = (torch.cat((tail.new_empty(copied, depth), tail)) for tail in tails)
    places = [t[:copied].view(-1, size * depth) for t in (keys, values)]
    q = (p.q[row, head] * p.scale).view(-1, p.query_size, depth)
    target = out.view(-1, p.query_size, depth)
    scores = k.new_empty(p.query_size, len(keys))
    weights = k.new_empty(p.query_size, len(keys))
    for i in range(len(q)):
        for source, place in zip(sources, places, strict=True):
            torch.index_select(source, 0, chosen[i], out=place)
        torch.mm(q[i], keys.T, out=scores)
        if means is not None:
            scores[:, copied + p.always :] += means[i]
        if bias is not None:
            scores[:, :copied] += bias[:tiled].view(tiles, size)[chosen[i]].flatten()
            scores[:, copied : copied + p.always] += bias[tiled:]
        torch.mm(torch.softmax(scores, 1, out=weights), values, out=target[i])
