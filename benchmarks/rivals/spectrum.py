"""Spectrum (Han et al. 2026, arXiv:2603.01623): Chebyshev polynomials fitted to everything that was
computed so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.polynomial import chebyshev

from benchmarks.rivals.mask import WeightedPolicy


@dataclass(frozen=True, kw_only=True)
class SpectrumPolicy(WeightedPolicy):
    """Ridge regression on Chebyshev polynomials of the step's number, mapped to -1 .. 1 over the
    run, mixed with the line through the latest two."""

    technique: ClassVar[str] = "spectrum"

    degree: int = 4
    ridge: float = 0.1
    share: float = 0.5
    """Of the Chebyshev fit in the prediction; the rest is the line."""

    def weights(self, nodes: Sequence[int], step: int) -> Sequence[float]:
        """The fit's weights and the line's, mixed."""
        fitted = chebyshev_weights(
            self._mapped(nodes), self._mapped([step]), self.degree, self.ridge
        )
        return [*(self.share * fitted + (1 - self.share) * line_weights(nodes, step))]

    def _mapped(self, steps: Sequence[int]) -> np.ndarray:
        return 2 * np.asarray(steps) / max(1, len(self.computed) - 1) - 1


def chebyshev_weights(nodes: np.ndarray, at: np.ndarray, degree: int, ridge: float) -> np.ndarray:
    """(len(nodes),) weights of values at `nodes` in -1 .. 1 for the fit's value at `at` (1,). The
    coefficients are (P^T P + ridge I)^-1 P^T; with fewer nodes than them and no ridge, the smallest
    that fit."""
    basis = chebyshev.chebvander(nodes, degree)
    held = np.vstack([basis, np.sqrt(ridge) * np.eye(degree + 1)])
    return (chebyshev.chebvander(at, degree) @ np.linalg.pinv(held))[0, : len(nodes)]


def line_weights(nodes: Sequence[int], step: int) -> np.ndarray:
    """(len(nodes),) weights of the line through the latest two; of the last value where there is
    but one."""
    weights = np.zeros(len(nodes))
    weights[-1] = 1.0
    if len(nodes) > 1:
        ahead = (step - nodes[-1]) / (nodes[-1] - nodes[-2])
        weights[-2:] = -ahead, 1 + ahead
    return weights
