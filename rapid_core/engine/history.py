"""Forecasts of values that depend on the noise level, from the values computed earlier in the
run."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ORDERS = (0, 1, 2)
HALF = (torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class Point:
    """A value computed at noise level `sigma`: a float, or a tensor that broadcasts against the
    value where parts of it were computed at different levels (region-adaptive sampling)."""

    sigma: float | Tensor
    value: Tensor


def weights(sigmas: Sequence[float | Tensor], sigma):
    """Lagrange weights that extrapolate from `sigmas` to `sigma` (a float, or a 0-d tensor to stay
    on its device).

    With k + 1 noise levels the forecast is the polynomial of order k through the values there."""
    out = []
    for j, at in enumerate(sigmas):
        weight = 1.0
        for m, other in enumerate(sigmas):
            if m != j:
                weight = weight * ((sigma - other) / (at - other))
        out.append(weight)
    return out


def clamp_extrapolation(
    sigmas: Sequence[float | Tensor], sigma: float, reach: float
) -> float | Tensor:
    """`sigma`, but no farther from the last of `sigmas` than `reach` times the distance of the last
    two.

    A polynomial through two close points is worthless far away; beyond the reach its value is
    held."""
    last, before = sigmas[-1], sigmas[-2]
    far, way = reach * abs(last - before), sigma - last
    if isinstance(far, Tensor) or isinstance(way, Tensor):
        far, way = torch.as_tensor(far), torch.as_tensor(way)
        return last + torch.minimum(torch.maximum(way, -far), far)
    return last + max(-far, min(far, way))


def clamp_fp16(value: Tensor) -> Tensor:
    """`value`, but of half precision without infinities: the host's blocks, too, end at its largest
    numbers, which what is extrapolated from them may pass."""
    return value.clamp(*HALF) if value.dtype == torch.float16 else value


def forecast(points: Sequence[Point], sigma, order: int, reach: float | None = None) -> Tensor:
    """Value at `sigma` from the latest `order + 1` points, fewer if there are not so many. Computed
    in float32."""
    used = points[-(order + 1) :]
    if len(used) == 1:
        return used[0].value
    sigmas = [p.sigma for p in used]
    sigma = sigma if reach is None else clamp_extrapolation(sigmas, sigma, reach)
    total = torch.zeros((), device=used[-1].value.device)
    for weight, point in zip(weights(sigmas, sigma), used, strict=True):
        total = total + weight * point.value.float()
    return clamp_fp16(total.to(used[-1].value.dtype))


def weighted(points: Sequence[Point], chosen: Sequence[tuple[float, float]]) -> Tensor | None:
    """Sum of the values at noise levels with their weights, in float32; None where one of them is
    not there."""
    there = {p.sigma: p.value for p in points if not isinstance(p.sigma, Tensor)}
    if any(sigma not in there for sigma, _ in chosen):
        return None
    total = sum((weight * there[sigma].float() for sigma, weight in chosen), torch.zeros(()))
    return clamp_fp16(total.to(points[-1].value))


class History:
    """The latest points of one quantity, per image of the batch."""

    def __init__(self, keep: int):
        self.keep = keep
        self._points: dict[int, deque[Point]] = {}
        self._levels: dict[int, float] = {}
        self._seen: dict[int, set[float]] = {}

    def add(self, image: int, sigma: float, value: Tensor, where: Tensor | None = None) -> None:
        """Remember `value`; an older value at the same noise level (heun, dpm_2, heunpp2) makes
        room for it.

        where: mask that broadcasts against `value`; only there it is new, elsewhere the points stay
        as they are."""
        points, seen = self.points(image), self._seen.setdefault(image, set())
        if where is not None:
            points = _shifted(points, sigma, value, where) if points else []
        else:
            if sigma in seen:
                points = _without(points, sigma, self.keep)
            points.append(Point(sigma, value))
        seen.add(sigma)
        self._points[image] = deque(points, maxlen=self.keep)
        self._levels[image] = sigma

    def forget(self, image: int) -> None:
        """Drop an image's points: what they belong to has changed."""
        for known in (self._points, self._levels, self._seen):
            known.pop(image, None)

    def drop(self) -> None:
        """Forget all images."""
        for known in (self._points, self._levels, self._seen):
            known.clear()

    def points(self, image: int) -> list[Point]:
        """Points of an image, oldest first."""
        return list(self._points.get(image, ()))

    def last_sigma(self, image: int) -> float | None:
        """Noise level of the latest addition."""
        return self._levels.get(image)

    def forecast(
        self, images: Sequence[int], sigma, order: int, reach: float | None = None
    ) -> Tensor:
        """Forecasts of several images, stacked: (len(images), ...)."""
        return torch.stack([forecast(self.points(i), sigma, order, reach) for i in images])

    @property
    def bytes(self) -> int:
        """Memory of the values held."""
        return sum(
            p.value.numel() * p.value.element_size() for ps in self._points.values() for p in ps
        )


def _without(points: list[Point], sigma: float, keep: int) -> list[Point]:
    """Points without those at `sigma`. Where places have levels of their own, the older points move
    up and the oldest stays behind them, far away, as long as there are fewer than `keep`."""
    like = next((p.sigma for p in points if isinstance(p.sigma, Tensor)), None)
    if like is None:
        return [p for p in points if p.sigma != sigma]
    if len(points) < keep:
        points = [Point(2 * points[0].sigma + 1, points[0].value), *points]
    return _shifted(points, sigma, points[-1].value, torch.ones_like(like, dtype=torch.bool))[:-1]


def _shifted(points: list[Point], sigma: float, value: Tensor, where: Tensor) -> list[Point]:
    """Points with `value` as the latest one where the mask says so; each place keeps as many points
    as it had, without the one at the same level, or else without its oldest."""
    levels = [
        p.sigma
        if isinstance(p.sigma, Tensor)
        else torch.full_like(where, p.sigma, dtype=torch.float32)
        for p in points
    ]
    same = [where & (level == sigma) for level in levels]
    moved, out = where & ~torch.stack(same).any(0), []  # moved: here a point was given up already
    for k, (old, newer) in enumerate(itertools.pairwise(points)):
        moved = moved | same[k]
        out.append(
            Point(
                torch.where(moved, levels[k + 1], levels[k]),
                torch.where(moved, newer.value, old.value),
            )
        )
    latest = points[-1]
    out.append(
        Point(
            levels[-1].masked_fill(where, sigma),
            torch.where(where, value.to(latest.value), latest.value),
        )
    )
    return out


def relative_l1(value: Tensor, reference: Tensor, where: Tensor | None = None) -> Tensor:
    """mean |value - reference| / mean |reference|, a 0-d float32 tensor; `where`: mask of the part
    that counts."""
    reference, difference = reference.float(), (value.float() - reference.float()).abs()
    if where is None:
        return difference.mean() / reference.abs().mean().clamp_min(1e-12)
    return (difference * where).sum() / (reference.abs() * where).sum().clamp_min(1e-12)


def extrapolation_skill(
    points: Sequence[Point], sigma: float, value: Tensor, where: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What became of the latest forecasts when `value` was computed at `sigma`, two 0-d float32
    tensors: its relative L1 change from the latest point (`where`: in this part); and the slope,
    the multiple of the movement of the line through the latest two points that is nearest to this
    change, nan where they are too few or parts of them have levels of their own."""
    latest, change = points[-1], value.float() - points[-1].value.float()
    moved, slope = (
        relative_l1(latest.value, value, where),
        torch.full_like(change.flatten()[0], math.nan),
    )
    if len(points) > 1 and not any(isinstance(p.sigma, Tensor) for p in points[-2:]):
        line = forecast(points, sigma, 1).float() - latest.value.float()
        slope = (change * line).sum() / line.square().sum().clamp_min(1e-20)
    return moved, slope


def estimate_errors(
    points: Sequence[Point], sigma, order: int, reach: float | None = None
) -> Tensor | None:
    """Estimated error of the forecast of `order` at `sigma`, place by place, relative to the mean
    of the latest value; None where points are too few. See `estimate_error`."""
    if len(points) < order + 2:
        return None
    difference = (
        forecast(points, sigma, order + 1, reach).float()
        - forecast(points, sigma, order, reach).float()
    )
    return difference.abs() / points[-1].value.float().abs().mean().clamp_min(1e-12)


def estimate_error(points: Sequence[Point], sigma, order: int) -> Tensor | None:
    """Estimated relative L1 error of the forecast of `order` at `sigma`; None where points are too
    few.

    The estimate is the next term of Newton's interpolation formula: the forecast of order + 1 less
    that of order, which is what the order would have to be raised by to use one more point."""
    if len(points) < order + 2:
        return None
    return relative_l1(forecast(points, sigma, order + 1), forecast(points, sigma, order))
