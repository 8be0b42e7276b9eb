"""Muon in a chosen precision. torch's own computes in bfloat16, which is slow on a CPU without such instructions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al. 2024)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of a matrix, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp_min(1e-7)
    gram = x @ x.T
    if matrix.dtype == torch.float32 and x.shape[1] > 2 * x.shape[0]:
        # Every factor is a polynomial of the first Gram matrix, so all products but two can be of its small size.
        factor = None
        for _ in range(steps):
            now = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            now.diagonal().add_(a)
            factor = now if factor is None else now @ factor
            gram = now @ gram @ now
        x = factor @ x
    else:
        for step in range(steps):
            gram = gram if step == 0 else x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for matrices; step sizes match AdamW's (Liu et al. 2025)."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # noqa: ARG002 (of every optimiser)
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                ahead = torch.lerp(matrix.grad, state["momentum"], group["momentum"])  # Nesterov
                rate = group["lr"] * 0.2 * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(orthogonalised(ahead), alpha=-rate)
