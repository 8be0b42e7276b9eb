"""Weights with which computed derivatives stand for those that were left out, fitted on whole runs.

Under Euler the error of the latent after step i is the sum of step lengths times errors of derivatives, so that a
derivative that is left out is asked for the true mean over its step *less what earlier errors have added up to*. The
fit is ridge least squares over the Gram matrix of the derivatives, towards Adams-Bashforth's weights; no sampling is
needed. Runs with refined steps make the true mean that of the ODE; runs on the schedule itself, that of dense
sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rapid_core.policies.schedule import Plan, adams_bashforth

RIDGE = 1e-4  # of the mean square of the derivatives used
TERMS = 3  # computed derivatives in a forecast


def fitted(computed: Sequence[bool], schedule: Sequence[float], products: Tensor, order: int = 1) -> Plan:
    """A plan with fitted weights. products (N * r, N * r): Gram matrix of derivatives on the schedule of N steps, each
    cut into r."""
    steps, basis = len(computed), len(products)
    parts = basis // steps
    lengths = [schedule[i + 1] - schedule[i] for i in range(steps)]
    error = torch.zeros(basis, dtype=torch.float64)  # of the latent so far, as a sum of derivatives
    out: list[tuple[float, ...]] = []
    for i, on in enumerate(computed):
        true = torch.zeros(basis, dtype=torch.float64)
        true[i * parts : (i + 1) * parts] = 1 / parts
        used = [j for j in range(i + on) if computed[j]][-1 if on else -TERMS :]
        places = [j * parts for j in used]
        if on:
            weights = torch.ones(1, dtype=torch.float64)
            out.append(())
        else:
            levels, stop = [schedule[j] for j in used[-(order + 1) :]], schedule[i + 1] if parts > 1 else None
            prior = torch.zeros(len(used), dtype=torch.float64)
            prior[-len(levels) :] = torch.tensor(adams_bashforth(levels, schedule[i], stop), dtype=torch.float64)
            inner = products[places][:, places]
            ridge = RIDGE * inner.diagonal().mean() * torch.eye(len(used), dtype=torch.float64)
            wanted = products[places] @ (true - error / lengths[i])
            weights = torch.linalg.solve(inner + ridge, wanted + ridge @ prior)
            out.append(tuple(weights.float().tolist()))
        error -= lengths[i] * true
        error[places] += lengths[i] * weights
    return Plan(tuple(computed), tuple(out), tuple(schedule))
