"""Runs whose derivatives are known, as the fit of weights sees them."""

import torch

from rapid_core.quadrature.gram import TERMS, Fit
from training.references import refined


def products_of(derivatives):
    """Gram matrix of derivatives, as `training.references.Recorder` has it."""
    found = derivatives.double() @ derivatives.double().T
    return found / found.trace()


def bending(schedule, parts=1, bend=0.3, noise=0.0):
    """Derivatives (steps * parts, 64) that move with the noise level on a parabola; bend 0: on a
    line."""
    levels = refined(torch.tensor(schedule), parts)[:-1]
    make = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 64, generator=make)
    curve = a + b * levels[:, None] + bend * c * levels[:, None] ** 2
    return curve + noise * torch.randn(len(levels), 64, generator=make)


def weights_by_hand(plan):
    """Weights of every step's forecast under a plan, as actions have them."""
    fit, out = Fit(plan.gram, plan.schedule), []
    for i, on in enumerate(plan.computed):
        used = [] if on else [j for j in range(i) if plan.computed[j]][-TERMS:]
        by = fit.weights(used) if used else ()
        out.append(tuple(zip([plan.schedule[j] for j in used], by, strict=True)) or None)
        fit.advance(used, by)
    return out
