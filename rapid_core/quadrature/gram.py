"""Prediction weights fitted to whole runs.

Under Euler the error of the latent after step i is the sum of step lengths times errors of
derivatives, so that a skipped derivative is asked for the true mean over its step *less what
earlier errors have added up to*. The fit is ridge least squares towards Adams-Bashforth's weights;
all it has to know of the runs are inner products of their derivatives, few enough to lie in a
policy file. So weights can be found while sampling, for whatever is computed, and not only for the
schedule that was searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .lagrange import adams_bashforth

RIDGE = 1e-4  # of the mean square of the derivatives used
TERMS = 3  # computed derivatives in a prediction


@dataclass(frozen=True)
class Gram:
    """Inner products of guided derivatives, in the mean over runs on a schedule of N steps,
    float64. The two are the same where nothing is known of what lies within the steps."""

    products: Tensor
    """(N, N) of the derivatives at the schedule's sigmas."""
    means: Tensor
    """(N, N) at [j, i] of the derivative at sigma j and the mean derivative over step i."""

    @classmethod
    def of(cls, products: Tensor, steps: int) -> Gram:
        """Out of a Gram matrix (N r, N r) of runs whose steps were cut into r."""
        parts = len(products) // steps
        starts = products[::parts].double()
        means = starts.unflatten(1, (steps, parts)).mean(2)
        return cls(starts[:, ::parts].contiguous(), means)

    @property
    def within(self) -> bool:
        """Whether something is known of what lies within the steps."""
        return not torch.equal(self.products, self.means)


class GramFit:
    """The prediction weights of one run, step by step. order: of Adams-Bashforth's polynomial that
    they are drawn towards."""

    def __init__(self, gram: Gram, sigmas: Sequence[float], order: int = 1):
        self.gram = gram
        self.sigmas = sigmas
        self.order = order
        self.step = 0
        # (N,) inner products of the derivatives with the error of the latent so far.
        self.latent_error = torch.zeros(len(sigmas) - 1, dtype=torch.float64)

    def weights(self, used: Sequence[int]) -> tuple[float, ...]:
        """Of the derivatives computed at the steps `used`, oldest first, in place of the present
        step's. Raises torch.linalg.LinAlgError where the matrix is singular."""
        step = self.step
        used = list(used)
        sigmas = [self.sigmas[j] for j in used[-(self.order + 1) :]]
        prior = torch.zeros(len(used), dtype=torch.float64)
        stop = self.sigmas[step + 1] if self.gram.within else None
        prior[-len(sigmas) :] = torch.tensor(
            adams_bashforth(sigmas, self.sigmas[step], stop), dtype=torch.float64
        )
        inner = self.gram.products[used][:, used]
        ridge = RIDGE * inner.diagonal().mean() * torch.eye(len(used), dtype=torch.float64)
        target = self.gram.means[used, step] - self.latent_error[used] / self._length()
        return tuple(torch.linalg.solve(inner + ridge, target + ridge @ prior).float().tolist())

    def advance(self, used: Sequence[int] = (), weights: Sequence[float] = ()) -> None:
        """To the next step, over the present one by these weights of the derivatives at `used`; by
        its own for none."""
        if not used:
            used, weights = [self.step], (1.0,)
        predicted = self.gram.products[:, list(used)] @ torch.tensor(weights, dtype=torch.float64)
        self.latent_error += self._length() * (predicted - self.gram.means[:, self.step])
        self.step += 1

    def _length(self) -> float:
        return self.sigmas[self.step + 1] - self.sigmas[self.step]
