"""Runs whose derivatives are known, as the fit of weights sees them."""

import torch

from rapid_core.quadrature.gram import TERMS, GramFit


def products_of(derivatives):
    """Gram matrix of derivatives, as files of fitted weights have it."""
    products = derivatives.double() @ derivatives.double().T
    return products / products.trace()


def bending(sigmas, parts=1, bend=0.3, noise=0.0):
    """Derivatives (steps * parts, 64) that move with sigma on a parabola, at every step's beginning
    and parts - 1 places within it; bend 0: on a line."""
    starts = torch.tensor(sigmas)
    within = torch.arange(parts) / parts
    places = (starts[:-1, None] + starts.diff()[:, None] * within).flatten()
    make = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 64, generator=make)
    curve = a + b * places[:, None] + bend * c * places[:, None] ** 2
    return curve + noise * torch.randn(len(places), 64, generator=make)


def weights_by_hand(schedule):
    """Weights of every step's prediction under a schedule, as actions have them."""
    fit, out = GramFit(schedule.gram, schedule.sigmas), []
    for i, on in enumerate(schedule.computed):
        used = [] if on else [j for j in range(i) if schedule.computed[j]][-TERMS:]
        weights = fit.weights(used) if used else ()
        sigmas = [schedule.sigmas[j] for j in used]
        out.append(tuple(zip(sigmas, weights, strict=True)) or None)
        fit.advance(used, weights)
    return out
