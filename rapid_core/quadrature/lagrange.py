"""Weights of a polynomial through values at known sigmas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Sigma = float | Tensor

# Gauss-Legendre with two nodes: exact for the mean of a cubic over 0 .. 1.
GAUSS_NODES = (0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6)


def lagrange_weights(sigmas: Sequence[Sigma], sigma: Sigma) -> list[Sigma]:
    """Weights that extrapolate from the values at `sigmas` to `sigma`: with k + 1 of them the
    polynomial of order k through the values. A 0-d tensor stays on its device."""
    out = []
    for j, at in enumerate(sigmas):
        weight: Sigma = 1.0
        for m, other in enumerate(sigmas):
            if m != j:
                weight = weight * ((sigma - other) / (at - other))
        out.append(weight)
    return out


def adams_bashforth(sigmas: Sequence[float], start: float, stop: float | None) -> list[float]:
    """Weights of the values at `sigmas` for their polynomial's mean over start .. stop, which is
    what a step of that length needs; for its value at `start` where `stop` is None."""
    if stop is None:
        return [float(w) for w in lagrange_weights(sigmas, start)]
    at_nodes = [lagrange_weights(sigmas, start + node * (stop - start)) for node in GAUSS_NODES]
    return [float(sum(pair)) / 2 for pair in zip(*at_nodes, strict=True)]


def clamp_extrapolation(sigmas: Sequence[Sigma], sigma: Sigma, reach: float) -> Sigma:
    """`sigma`, but no farther from the last of `sigmas` than `reach` times the distance of the last
    two: a polynomial through two close points is worthless far away."""
    last, before = sigmas[-1], sigmas[-2]
    far = reach * abs(last - before)
    way = sigma - last
    if isinstance(far, Tensor) or isinstance(way, Tensor):
        far = torch.as_tensor(far)
        way = torch.as_tensor(way)
        return last + torch.minimum(torch.maximum(way, -far), far)
    return last + max(-far, min(far, way))
