"""Gram matrices of whole runs, which prediction weights are fitted to (`quadrature.gram`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..quadrature.gram import Gram


def refine(sigmas: Tensor, parts: int) -> Tensor:
    """Sigmas (N * parts + 1,) with each of N steps cut into equal parts."""
    if parts == 1:
        return sigmas
    places = torch.arange(parts, device=sigmas.device) / parts
    inner = sigmas[:-1, None] + (sigmas[1:] - sigmas[:-1])[:, None] * places
    return torch.cat((inner.flatten(), sigmas[-1:]))


def inner_products(derivatives: Sequence[Tensor]) -> Tensor:
    """Inner products (n, n), float64, of the derivatives of one run, each flattened; scaled to a
    trace of one, so that runs count alike whatever their size."""
    flat = torch.stack([derivative.flatten() for derivative in derivatives])
    products = (flat @ flat.T).double()
    return products / products.trace()


def mean_gram(runs: Sequence[Tensor], steps: int) -> Gram:
    """The mean over runs. runs: `inner_products` (steps * r, steps * r) of each, its steps cut into
    r."""
    return Gram.of(torch.stack(list(runs)).mean(0), steps)
