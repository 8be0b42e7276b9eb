"""Weights with which computed derivatives stand for those that a run leaves out, fitted to whole
runs.

Under Euler the error of the latent after step i is the sum of step lengths times errors of
derivatives, so that a derivative that is left out is asked for the true mean over its step *less
what earlier errors have added up to*. The fit is ridge least squares towards Adams-Bashforth's
weights; all it has to know of the runs are inner products of their derivatives, few enough to lie
in a policy file. So weights can be found while sampling, for whatever is computed, and not only for
the plan that was searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.history import weights

RIDGE = 1e-4  # of the mean square of the derivatives used
TERMS = 3  # computed derivatives in a forecast
GAUSS = (0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6)  # two nodes: exact for the mean of a cubic


def adams_bashforth(levels: Sequence[float], start: float, stop: float | None) -> list[float]:
    """Weights of the values at `levels` for their polynomial's mean over start .. stop; its value
    at start for None."""
    if stop is None:
        return [float(w) for w in weights(levels, start)]
    at = [weights(levels, start + node * (stop - start)) for node in GAUSS]
    return [float(sum(pair)) / 2 for pair in zip(*at, strict=True)]


@dataclass(frozen=True)
class Gram:
    """Inner products of guided derivatives, in the mean over runs on a schedule of N steps,
    float64. products (N, N): of those at its noise levels; means (N, N): at [j, i] of the one at
    level j and the mean derivative over step i. The two are the same where nothing is known of what
    lies within the steps."""

    products: Tensor
    means: Tensor

    @classmethod
    def of(cls, products: Tensor, steps: int) -> Gram:
        """Out of a Gram matrix (N r, N r) of runs whose steps were cut into r."""
        parts = len(products) // steps
        starts = products[::parts].double()
        return cls(starts[:, ::parts].contiguous(), starts.unflatten(1, (steps, parts)).mean(2))

    @property
    def within(self) -> bool:
        """Whether something is known of what lies within the steps."""
        return not torch.equal(self.products, self.means)


@dataclass
class Fit:
    """The weights of one run, step by step. order: of Adams-Bashforth's polynomial; pull (N,):
    inner products of the derivatives with the error of the latent so far."""

    gram: Gram
    schedule: Sequence[float]
    order: int = 1
    step: int = 0
    latent_error: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.latent_error = torch.zeros(len(self.schedule) - 1, dtype=torch.float64)

    def weights(self, used: Sequence[int]) -> tuple[float, ...]:
        """Of the derivatives computed at the steps `used`, oldest first, in place of the present
        step's."""
        i, places = self.step, list(used)
        levels = [self.schedule[j] for j in places[-(self.order + 1) :]]
        prior = torch.zeros(len(places), dtype=torch.float64)
        stop = self.schedule[i + 1] if self.gram.within else None
        prior[-len(levels) :] = torch.tensor(
            adams_bashforth(levels, self.schedule[i], stop), dtype=torch.float64
        )
        inner = self.gram.products[places][:, places]
        ridge = RIDGE * inner.diagonal().mean() * torch.eye(len(places), dtype=torch.float64)
        wanted = self.gram.means[places, i] - self.latent_error[places] / self._length()
        return tuple(torch.linalg.solve(inner + ridge, wanted + ridge @ prior).float().tolist())

    def advance(self, used: Sequence[int] = (), by: Sequence[float] = ()) -> None:
        """To the next step, over the present one by these weights of the derivatives at `used`; its
        own for none."""
        places, sums = (list(used), by) if used else ([self.step], (1.0,))
        made = self.gram.products[:, places] @ torch.tensor(sums, dtype=torch.float64)
        self.latent_error += self._length() * (made - self.gram.means[:, self.step])
        self.step += 1

    def _length(self) -> float:
        return self.schedule[self.step + 1] - self.schedule[self.step]
