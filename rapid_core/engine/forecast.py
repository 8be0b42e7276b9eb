"""Forecasts of values that depend on the noise level, from the values computed earlier in the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ORDERS = (0, 1, 2)


@dataclass(frozen=True)
class Point:
    """A value computed at noise level `sigma`."""

    sigma: float
    value: Tensor


def weights(sigmas: Sequence[float], sigma):
    """Lagrange weights that extrapolate from `sigmas` to `sigma` (a float, or a 0-d tensor to stay on its device).

    With k + 1 noise levels the forecast is the polynomial of order k through the values there."""
    out = []
    for j, at in enumerate(sigmas):
        weight = 1.0
        for m, other in enumerate(sigmas):
            if m != j:
                weight = weight * ((sigma - other) / (at - other))
        out.append(weight)
    return out


def forecast(points: Sequence[Point], sigma, order: int) -> Tensor:
    """Value at `sigma` from the latest `order + 1` points, fewer if there are not so many. Computed in float32."""
    used = points[-(order + 1) :]
    if len(used) == 1:
        return used[0].value
    total = sum(w * p.value.float() for w, p in zip(weights([p.sigma for p in used], sigma), used, strict=True))
    return total.to(used[-1].value.dtype)


class Track:
    """The latest points of one quantity, per image of the batch."""

    def __init__(self, keep: int):
        self.keep = keep
        self._points: dict[int, deque[Point]] = {}

    def add(self, image: int, sigma: float, value: Tensor) -> None:
        """Remember `value`; a second value at the same noise level (heun, dpm_2) takes the first one's place."""
        points = self._points.setdefault(image, deque(maxlen=self.keep))
        if points and points[-1].sigma == sigma:
            points.pop()
        points.append(Point(sigma, value))

    def points(self, image: int) -> list[Point]:
        """Points of an image, oldest first."""
        return list(self._points.get(image, ()))

    def last_sigma(self, image: int) -> float | None:
        """Noise level of the latest point."""
        points = self._points.get(image)
        return points[-1].sigma if points else None

    def forecast(self, images: Sequence[int], sigma, order: int) -> Tensor:
        """Forecasts of several images, stacked: (len(images), ...)."""
        return torch.stack([forecast(self.points(i), sigma, order) for i in images])

    @property
    def bytes(self) -> int:
        """Memory of the values held."""
        return sum(p.value.numel() * p.value.element_size() for ps in self._points.values() for p in ps)


def relative_l1(value: Tensor, reference: Tensor) -> Tensor:
    """mean |value - reference| / mean |reference|, a 0-d float32 tensor."""
    reference = reference.float()
    return (value.float() - reference).abs().mean() / reference.abs().mean().clamp_min(1e-12)


def estimate_error(points: Sequence[Point], sigma, order: int) -> Tensor | None:
    """Estimated relative L1 error of the forecast of `order` at `sigma`; None where points are too few.

    The estimate is the next term of Newton's interpolation formula: the forecast of order + 1 less that of order,
    which is what the order would have to be raised by to use one more point."""
    if len(points) < order + 2:
        return None
    return relative_l1(forecast(points, sigma, order + 1), forecast(points, sigma, order))
