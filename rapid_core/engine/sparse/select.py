"""Which key tiles a query tile attends to: the ones that promise the most attention mass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...attention_cost import PAIR, QUERY_RUNS, RUNS


def estimated_mass(
    q: Tensor, k: Tensor, always: int, scale: float, size: int, bias: Tensor | None = None
) -> Tensor:
    """Attention mass that each query tile gives to each key tile, (R, H, Tq, T), estimated on means
    of runs of neighbouring tokens, RUNS a key tile and QUERY_RUNS for as many queries.

    q (R, H, Tq * PAIR * S, D); k (R, G, T * S + always, D), the last `always` tokens in full: they
    take their share of the softmax. bias (R, T * S + always) or None."""
    run = size // RUNS
    tiled = k.shape[2] - always
    means = torch.cat((mean_of_runs(k[:, :, :tiled], run), k[:, :, tiled:]), 2)
    if bias is None:
        bias = k.new_zeros(k.shape[0], k.shape[2])
    weight = _bias_of_runs(bias, tiled, run)
    if means.shape[1] != q.shape[1]:
        means = means.repeat_interleave(q.shape[1] // means.shape[1], 1)
    scores = (mean_of_runs(q, size // QUERY_RUNS) * scale) @ means.transpose(2, 3)
    scores += weight[:, None, None].to(k)
    mass = scores.float().softmax(-1)[..., : tiled // run]
    return mass.unflatten(2, (-1, PAIR * QUERY_RUNS)).mean(3).unflatten(3, (-1, RUNS)).sum(4)


def mean_of_runs(x: Tensor, run: int) -> Tensor:
    """(R, H, L, D) -> (R, H, L / run, D)."""
    return x.unflatten(2, (-1, run)).mean(3)


def _bias_of_runs(bias: Tensor, tiled: int, run: int) -> Tensor:
    """Bias of the means: what the run's tokens add up to."""
    return torch.cat((bias[:, :tiled].unflatten(1, (-1, run)).logsumexp(2), bias[:, tiled:]), 1)


def choose_tiles(mass: Tensor, count: int, own: Tensor) -> Tensor:
    """The `count` heaviest key tiles of each query tile and head, sorted, (R, H, Tq, count); own
    (Tq, PAIR) or (R, Tq, PAIR): the key tiles that a query tile lies in are always among them
    (where count allows it)."""
    own = own.expand(mass.shape[0], -1, -1) if own.ndim == 2 else own
    first = mass.scatter(3, own[:, None].expand(-1, mass.shape[1], -1, -1), math.inf)
    return first.topk(count, dim=3).indices.sort(3).values
