"""The difference of dense to sparse attention: measured where attention was dense, added as a
prediction where it is sparse.

Tiles are chosen when the difference is measured and kept with it: a difference fits only the tiles
that it was measured with, and choosing costs nothing in between."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...quadrature.lagrange import clamp_extrapolation

CondCall = tuple  # a key that begins with a cond, then what tells its calls apart

# Share of the line's slope that a prediction follows: half of it was better than none and than all
# on both demo models.
SLOPE = 0.5
REACH = 4.0  # distances of the latest two that a prediction may go


@dataclass
class _Measured:
    """What was measured of one attention of one image."""

    density: float
    tiles: Tensor
    """(H, Tq, K), int32."""
    points: list[tuple[float, Tensor]] = field(default_factory=list)
    """Sigmas and differences (H, M, D), oldest first."""


class SparseResidual:
    """Differences of one run, and their tiles, by cond (any key that begins with one), attention
    and image."""

    def __init__(self, slope: float = SLOPE):
        """slope: share of the line's slope that a prediction follows; 0 for the last value."""
        self.slope = slope
        self._measured: dict[tuple[CondCall, Hashable, int], _Measured] = {}

    def write(
        self,
        cond: CondCall,
        at: Hashable,
        image: int,
        sigma: float,
        density: float,
        difference: Tensor,
        tiles: Tensor,
    ) -> None:
        """Keep an image's difference (H, M, D), queries tile by tile, at one attention under a
        cond, and its tiles (H, Tq, K). Of another density or size only the latest counts, and of
        one sigma (heun looks twice)."""
        key = (cond, at, image)
        known = self._measured.get(key)
        points = []
        if known is not None and known.density == density and known.tiles.shape == tiles.shape:
            points = [point for point in known.points if point[0] != sigma]
        points.append((sigma, difference))
        number = 2 if self.slope else 1
        self._measured[key] = _Measured(density, tiles.to(torch.int32), points[-number:])

    def has(self, cond: CondCall, at: Hashable, image: int, density: float) -> bool:
        """Whether there is a difference at this density."""
        known = self._measured.get((cond, at, image))
        return known is not None and known.density == density

    def tiles(self, cond: CondCall, at: Hashable, image: int) -> Tensor:
        """Tiles (H, Tq, K) that the difference was measured with."""
        return self._measured[cond, at, image].tiles.long()

    def prediction(
        self, cond: CondCall, at: Hashable, image: int, sigma: float
    ) -> list[tuple[Tensor, float]]:
        """The difference at `sigma`, as tensors (H, M, D) and weights to be summed."""
        points = self._measured[cond, at, image].points
        if len(points) == 1:
            return [(points[0][1], 1.0)]
        (sigma_before, before), (sigma_latest, latest) = points
        reached = float(clamp_extrapolation([sigma_before, sigma_latest], sigma, REACH))
        ahead = reached - sigma_latest
        ahead *= self.slope / (sigma_latest - sigma_before)
        return [(latest, 1.0 + ahead), (before, -ahead)]

    def forget(self, cond: Hashable, image: int) -> None:
        """Let go of what was measured of an image in all calls under a cond (with whose name keys
        begin)."""
        for key in [key for key in self._measured if key[0][0] == cond and key[2] == image]:
            del self._measured[key]

    def keep_only(self, conds: Collection[Hashable]) -> None:
        """Let go of what was measured in calls under other conds, which ended."""
        for key in [key for key in self._measured if key[0][0] not in conds]:
            self._measured.pop(key).points.clear()

    def drop(self) -> None:
        """Let go of everything held."""
        for known in self._measured.values():
            known.points.clear()
        self._measured.clear()

    @property
    def bytes(self) -> int:
        """Memory held."""
        held = [known.tiles for known in self._measured.values()]
        held += [value for known in self._measured.values() for _, value in known.points]
        return sum(t.nbytes for t in held)


@dataclass(frozen=True)
class ResidualAccess:
    """The rows of one model call in a `SparseResidual`: chunk * len(images) + position, a chunk
    being the rows of a cond."""

    store: SparseResidual
    conds: Sequence[CondCall]
    """Key of each chunk, which begins with its cond."""
    images: Sequence[int]
    sigmas: Sequence[float]
    """Of each image."""
    density: float
    measures: bool
    """Whether differences are to be written."""

    def rows(self, chunk: int | None) -> list[tuple[CondCall, int, float]]:
        """Cond, image and sigma of every row, of one chunk or (None) of all."""
        conds = self.conds if chunk is None else [self.conds[chunk]]
        images = list(zip(self.images, self.sigmas, strict=True))
        return [(cond, image, sigma) for cond in conds for image, sigma in images]

    def write(self, at: Hashable, chunk: int | None, difference: Tensor, tiles: Tensor) -> None:
        """Differences (R, H, M, D) and tiles (R, H, Tq, K) of all rows."""
        for row, (cond, image, sigma) in enumerate(self.rows(chunk)):
            own = difference[row].clone()  # or one image would hold the rows of all in memory
            self.store.write(cond, at, image, sigma, self.density, own, tiles[row])

    def has(self, at: Hashable, chunk: int | None) -> bool:
        """Whether every row has a difference."""
        rows = self.rows(chunk)
        return all(self.store.has(cond, at, image, self.density) for cond, image, _ in rows)

    def tiles(self, at: Hashable, chunk: int | None) -> Tensor:
        """Tiles (R, H, Tq, K)."""
        return torch.stack(
            [self.store.tiles(cond, at, image) for cond, image, _ in self.rows(chunk)]
        )

    def add(
        self, at: Hashable, chunk: int | None, out: Tensor, places: Tensor | None = None
    ) -> None:
        """Add the prediction to `out` (R, H, M, D). places (R, M): which of the measured queries
        these are; beyond them there is no difference."""
        for row, (cond, image, sigma) in enumerate(self.rows(chunk)):
            for values, weight in self.store.prediction(cond, at, image, sigma):
                if places is not None:
                    values = _at(values, places[row])
                out[row].add_(values, alpha=weight)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """values (H, M, D) at places (K,), zero beyond M."""
    chosen = values.index_select(1, places.clamp_max(values.shape[1] - 1))
    return chosen.masked_fill_((places >= values.shape[1])[None, :, None], 0)
