"""Values of one quantity at the sigmas where they were computed, and predictions from them."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..quadrature.lagrange import Sigma, clamp_extrapolation, lagrange_weights
from ..types import PredictionWeights

HALF_RANGE = (torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)
SMALLEST = 1e-12  # for divisions by a mean that may be zero


@dataclass(frozen=True)
class Point:
    """A value computed at `sigma`: a number, or a tensor that broadcasts against the value where
    parts of it were computed at different sigmas (region-adaptive sampling)."""

    sigma: float | Tensor
    value: Tensor


class History:
    """The latest points of one quantity of one image."""

    def __init__(self, length: int):
        self.length = length
        self.last_sigma: float | None = None  # of the latest addition
        self._points: deque[Point] = deque(maxlen=length)
        self._seen: set[float] = set()

    @property
    def points(self) -> list[Point]:
        """Points, oldest first."""
        return list(self._points)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Sigmas of the points; empty where parts have sigmas of their own."""
        if any(isinstance(p.sigma, Tensor) for p in self._points):
            return ()
        return tuple(float(p.sigma) for p in self._points)

    def add(self, sigma: float, value: Tensor, where: Tensor | None = None) -> None:
        """Remember `value`; an older value at the same sigma (heun, dpm_2, heunpp2) makes room for
        it, or a prediction would divide by zero.

        where: mask that broadcasts against `value`; only there it is new, elsewhere the points stay
        as they are."""
        points = self.points
        if where is not None:
            points = _shifted(points, sigma, value, where) if points else []
        else:
            if sigma in self._seen:
                points = _without(points, sigma, self.length)
            points.append(Point(sigma, value))
        self._seen.add(sigma)
        self._points = deque(points, maxlen=self.length)
        self.last_sigma = sigma

    def clear(self) -> None:
        """Drop all points: what they belong to has changed, or the run has ended."""
        self._points.clear()
        self._seen.clear()
        self.last_sigma = None

    def predict(self, sigma: Sigma, order: int, reach: float | None = None) -> Tensor:
        """See `predict`."""
        return predict(self.points, sigma, order, reach)

    @property
    def bytes(self) -> int:
        """Memory of the values."""
        return sum(p.value.nbytes for p in self._points)


def predict(
    points: Sequence[Point], sigma: Sigma, order: int, reach: float | None = None
) -> Tensor:
    """Value at `sigma` of the polynomial through the latest `order + 1` points, fewer if there are
    not so many; computed in float32. reach: see `lagrange.clamp_extrapolation`."""
    used = points[-(order + 1) :]
    if len(used) == 1:
        return used[0].value
    sigmas = [p.sigma for p in used]
    if reach is not None:
        sigma = clamp_extrapolation(sigmas, sigma, reach)
    if len(used) == 2 and isinstance(sigma, Tensor) and sigma.ndim == 0:
        latest, before = used[1].value.float(), used[0].value.float()
        share = (sigma - sigmas[1]) / (sigmas[0] - sigmas[1])
        return clamp_half((latest + share * (before - latest)).to(used[-1].value.dtype))
    total = torch.zeros((), device=used[-1].value.device)
    for weight, point in zip(lagrange_weights(sigmas, sigma), used, strict=True):
        total = total + weight * point.value.float()
    return clamp_half(total.to(used[-1].value.dtype))


def weighted_sum(points: Sequence[Point], weights: PredictionWeights) -> Tensor | None:
    """Sum of the values at the sigmas of `weights`, in float32; None where one of them is not
    there."""
    values = {p.sigma: p.value for p in points if not isinstance(p.sigma, Tensor)}
    if any(sigma not in values for sigma, _ in weights):
        return None
    total = sum((weight * values[sigma].float() for sigma, weight in weights), torch.zeros(()))
    return clamp_half(total.to(points[-1].value))


def clamp_half(value: Tensor) -> Tensor:
    """`value`, but of half precision without infinities: the host's blocks, too, end at its largest
    numbers, which what is extrapolated from them may pass."""
    return value.clamp(*HALF_RANGE) if value.dtype == torch.float16 else value


def relative_l1(value: Tensor, reference: Tensor, where: Tensor | None = None) -> Tensor:
    """mean |value - reference| / mean |reference|, a 0-d float32 tensor; `where`: mask of the part
    that counts."""
    reference = reference.float()
    difference = (value.float() - reference).abs()
    if where is None:
        return difference.mean() / reference.abs().mean().clamp_min(SMALLEST)
    return (difference * where).sum() / (reference.abs() * where).sum().clamp_min(SMALLEST)


def change_and_skill(
    points: Sequence[Point], sigma: float, value: Tensor, where: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What became of the latest predictions when `value` was computed at `sigma`, two 0-d float32
    tensors: its relative L1 change from the latest point (`where`: in this part); and the
    extrapolation's skill, the least-squares multiple of the movement of the line through the latest
    two points that is nearest to this change, nan where they are too few or parts of them have
    sigmas of their own."""
    latest = points[-1].value
    movement = value.float() - latest.float()
    change = relative_l1(latest, value, where)
    if len(points) < 2 or any(isinstance(p.sigma, Tensor) for p in points[-2:]):
        return change, torch.full_like(movement.flatten()[0], math.nan)
    line = predict(points, sigma, 1).float() - latest.float()
    return change, (movement * line).sum() / line.square().sum().clamp_min(1e-20)


def token_error_estimates(
    points: Sequence[Point], sigma: Sigma, order: int, reach: float | None = None
) -> Tensor | None:
    """Estimated error of the prediction of `order` at `sigma`, place by place, relative to the mean
    of the latest value; None where points are too few. See `error_estimate`."""
    if len(points) < order + 2:
        return None
    higher = predict(points, sigma, order + 1, reach).float()
    difference = higher - predict(points, sigma, order, reach).float()
    return difference.abs() / points[-1].value.float().abs().mean().clamp_min(SMALLEST)


def error_estimate(
    points: Sequence[Point], sigma: Sigma, order: int, parts: Sequence[slice] = ()
) -> Tensor | None:
    """Estimated relative L1 error of the prediction of `order` at `sigma`; None where points are too
    few. parts: of a packed latent (video and audio), each with an error of its own; the worst
    counts.

    The estimate is the next term of Newton's interpolation formula: the prediction of order + 1
    less that of order, which is what the order would have to be raised by to use one more point."""
    if len(points) < order + 2:
        return None
    used = points[-(order + 2) :]
    sigmas = [p.sigma for p in used if not isinstance(p.sigma, Tensor)]
    if len(sigmas) < len(used):
        return worst_part(predict(points, sigma, order + 1), predict(points, sigma, order), parts)
    # The term itself, so that few numbers have to be made of a sigma that is still on the device.
    term = torch.zeros((), device=used[-1].value.device)
    for j, point in enumerate(used):
        others = math.prod(sigmas[j] - other for m, other in enumerate(sigmas) if m != j)
        term = torch.add(term, point.value.float(), alpha=1 / others)
    way = sigma - sigmas[-1]
    for other in sigmas[1:-1]:
        way = way * (sigma - other)
    reference = predict(points, sigma, order).float()
    ratios = [
        term[..., part].abs().mean() / reference[..., part].abs().mean().clamp_min(SMALLEST)
        for part in (parts if len(parts) > 1 else (slice(None),))
    ]
    worst = ratios[0] if len(ratios) == 1 else torch.stack(ratios).amax()
    return abs(way) * worst


def worst_part(
    value: Tensor, reference: Tensor, parts: Sequence[slice], where: Tensor | None = None
) -> Tensor:
    """`relative_l1` of the worst part; of the whole where there are none."""
    if len(parts) < 2:
        return relative_l1(value, reference, where)
    errors = [
        relative_l1(
            value[..., part], reference[..., part], None if where is None else where[..., part]
        )
        for part in parts
    ]
    return torch.stack(errors).amax()


def _without(points: list[Point], sigma: float, length: int) -> list[Point]:
    """Points without those at `sigma`. Where places have sigmas of their own, the older points move
    up and the oldest stays behind them, far away, as long as there are fewer than `length`."""
    like = next((p.sigma for p in points if isinstance(p.sigma, Tensor)), None)
    if like is None:
        return [p for p in points if p.sigma != sigma]
    if len(points) < length:
        points = [Point(2 * points[0].sigma + 1, points[0].value), *points]
    everywhere = torch.ones_like(like, dtype=torch.bool)
    return _shifted(points, sigma, points[-1].value, everywhere)[:-1]


def _shifted(points: list[Point], sigma: float, value: Tensor, where: Tensor) -> list[Point]:
    """Points with `value` as the latest one where the mask says so; each place keeps as many points
    as it had, without the one at the same sigma, or else without its oldest."""
    sigmas = [
        p.sigma
        if isinstance(p.sigma, Tensor)
        else torch.full_like(where, p.sigma, dtype=torch.float32)
        for p in points
    ]
    same = [where & (known == sigma) for known in sigmas]
    moved = where & ~torch.stack(same).any(0)  # a point was given up here already
    shifted = []
    for k, (old, newer) in enumerate(itertools.pairwise(points)):
        moved = moved | same[k]
        shifted.append(
            Point(
                torch.where(moved, sigmas[k + 1], sigmas[k]),
                torch.where(moved, newer.value, old.value),
            )
        )
    latest = points[-1].value
    newest = torch.where(where, value.to(latest), latest)
    return [*shifted, Point(sigmas[-1].masked_fill(where, sigma), newest)]
