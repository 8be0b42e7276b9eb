"""TaylorSeer (Liu et al. 2025, arXiv:2503.06923) and HiCache (Feng et al. 2025, arXiv:2508.16984)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from benchmarks.rivals.mask import WeightedPolicy


def differences(nodes: Sequence[int], order: int) -> np.ndarray:
    """(n + 1, len(nodes)) weights of the values at `nodes` for finite differences 0 to n = min(order,
    len(nodes) - 1) at the last node. As published, each is the difference of the lower ones at the
    latest two nodes over these nodes' distance, which makes it a derivative but for the nodes' being
    behind: on a parabola at unit distances the first is wrong by half of the second."""
    rows = np.eye(len(nodes))  # of every node: its own value
    out = [rows[-1]]
    for _ in range(min(order, len(nodes) - 1)):
        gaps = np.diff(nodes[-len(rows) :])
        rows = np.diff(rows, axis=0) / gaps[:, None]
        out.append(rows[-1])
    return np.stack(out)


@dataclass(frozen=True, kw_only=True)
class TaylorPolicy(WeightedPolicy):
    """TaylorSeer: a Taylor expansion over the number of steps, its derivatives finite differences."""

    technique: ClassVar[str] = "taylorseer"

    order: int = 1
    """Of the expansion; lower while fewer evaluations were computed."""

    def weights(self, nodes: Sequence[int], step: int) -> Sequence[float]:
        """F + sum of d_i k^i / i!, k steps after the last node."""
        d = differences(nodes, self.order)
        k = step - nodes[-1]
        terms = [self._term(i, k) / math.factorial(i) for i in range(len(d))]
        return [*(np.array(terms) @ np.array(d))]

    def _term(self, i: int, k: int) -> float:
        return float(k**i)


@dataclass(frozen=True, kw_only=True)
class HiCachePolicy(TaylorPolicy):
    """HiCache: scaled Hermite polynomials in place of the monomials of TaylorSeer."""

    technique: ClassVar[str] = "hicache"

    scale: float = 0.5
    """The factor s of s^i H_i(s k), in (0, 1); the linear term is TaylorSeer's at sqrt(1/2)."""

    def _term(self, i: int, k: int) -> float:
        return self.scale**i * hermite(i, self.scale * k)


def hermite(i: int, x: float) -> float:
    """The physicists' Hermite polynomial H_i(x): 1, 2x, 4x^2 - 2, ..."""
    before, value = 0.0, 1.0
    for j in range(i):
        before, value = value, 2 * x * value - 2 * j * before
    return value
