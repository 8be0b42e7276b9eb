"""What sparse attention left out: measured where attention was dense, added as a forecast where it
is sparse.

The tiles are chosen when the difference is measured and kept with it: a difference fits only the
tiles that it was measured with, and choosing costs nothing in between."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..history import History, clamp_extrapolation

SLOPE = 0.5  # of the line through the latest two; between held and moved on was better than either on both demo models
REACH = 4.0  # distances of the latest two that a forecast may go


class SparseResidual:
    """Of one run: differences of dense to sparse attention, and tiles, by stream, attention and
    image. slope: share of the line's slope that a forecast follows, 0 to hold."""

    def __init__(self, slope: float = SLOPE):
        self.slope = slope
        self._tracks: dict[tuple[Hashable, Hashable], History] = {}
        self._kept: dict[
            tuple[Hashable, Hashable, int], tuple[float, Tensor]
        ] = {}  # density, tiles

    def write(
        self,
        stream: Hashable,
        at: Hashable,
        image: int,
        sigma: float,
        density: float,
        difference: Tensor,
        kept: Tensor,
    ) -> None:
        """Keep an image's difference (H, M, D), queries tile by tile, at one attention of a stream,
        and its tiles (H, Tq, K). Of another density or size only the latest counts."""
        known = self._kept.get((stream, at, image))
        track = self._tracks.setdefault((stream, at), History(2 if self.slope else 1))
        if known is not None and (known[0] != density or known[1].shape != kept.shape):
            track.forget(image)
        track.add(image, sigma, difference)
        self._kept[stream, at, image] = density, kept.to(torch.int32)

    def has(self, stream: Hashable, at: Hashable, image: int, density: float) -> bool:
        """Whether there is a difference at this density."""
        return self._kept.get((stream, at, image), (0.0,))[0] == density

    def kept(self, stream: Hashable, at: Hashable, image: int) -> Tensor:
        """Tiles (H, Tq, K) that the difference was measured with."""
        return self._kept[stream, at, image][1].long()

    def forecast(
        self, stream: Hashable, at: Hashable, image: int, sigma: float
    ) -> list[tuple[Tensor, float]]:
        """The difference at `sigma`, as tensors (H, M, D) and weights to be summed."""
        points = self._tracks[stream, at].points(image)
        if len(points) == 1:
            return [(points[0].value, 1.0)]
        before, latest = points
        ahead = clamp_extrapolation([before.sigma, latest.sigma], sigma, REACH) - latest.sigma
        ahead *= self.slope / (latest.sigma - before.sigma)
        return [(latest.value, 1.0 + ahead), (before.value, -ahead)]

    def forget(self, stream: Hashable, image: int) -> None:
        """Let go of what was measured of an image in all calls of a stream (of whose key `stream`
        is the beginning)."""
        for (one, _), track in self._tracks.items():
            if one[0] == stream:
                track.forget(image)
        for key in [key for key in self._kept if key[0][0] == stream and key[2] == image]:
            del self._kept[key]

    def keep_only(self, streams: Collection[Hashable]) -> None:
        """Let go of what was measured in calls of other streams: conditions that ended."""
        for one, at in [key for key in self._tracks if key[0][0] not in streams]:
            self._tracks.pop((one, at)).drop()
        self._kept = {key: kept for key, kept in self._kept.items() if key[0][0] in streams}

    def drop(self) -> None:
        """Let go of everything held."""
        for track in self._tracks.values():
            track.drop()
        self._tracks, self._kept = {}, {}

    @property
    def bytes(self) -> int:
        """Memory held."""
        tiles = sum(kept.numel() * kept.element_size() for _, kept in self._kept.values())
        return tiles + sum(track.bytes for track in self._tracks.values())


@dataclass(frozen=True)
class ResidualAccess:
    """The rows of one model call in a `LeftOut`: chunk * len(images) + position, a chunk being a
    stream. measures: whether differences are to be written."""

    store: SparseResidual
    streams: Sequence[Hashable]
    images: Sequence[int]
    sigma: float
    density: float
    measures: bool

    def rows(self, chunk: int | None) -> list[tuple[Hashable, int]]:
        """Stream and image of every row, of one chunk or (None) of all."""
        streams = self.streams if chunk is None else [self.streams[chunk]]
        return [(stream, image) for stream in streams for image in self.images]

    def write(self, at: Hashable, chunk: int | None, difference: Tensor, kept: Tensor) -> None:
        """Differences (R, H, M, D) and tiles (R, H, Tq, K) of all rows."""
        for row, (stream, image) in enumerate(self.rows(chunk)):
            self.store.write(
                stream, at, image, self.sigma, self.density, difference[row].clone(), kept[row]
            )

    def has(self, at: Hashable, chunk: int | None) -> bool:
        """Whether every row has a difference."""
        return all(
            self.store.has(stream, at, image, self.density) for stream, image in self.rows(chunk)
        )

    def kept(self, at: Hashable, chunk: int | None) -> Tensor:
        """Tiles (R, H, Tq, K)."""
        return torch.stack(
            [self.store.kept(stream, at, image) for stream, image in self.rows(chunk)]
        )

    def add(
        self, at: Hashable, chunk: int | None, out: Tensor, places: Tensor | None = None
    ) -> None:
        """Add the forecast to `out` (R, H, M, D). places (R, M): which of the measured queries
        these are; beyond them there is no difference."""
        for row, (stream, image) in enumerate(self.rows(chunk)):
            for values, weight in self.store.forecast(stream, at, image, self.sigma):
                if places is not None:
                    values = _at(values, places[row])
                out[row].add_(values, alpha=weight)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """values (H, M, D) at places (K,), zero beyond M."""
    found = values.index_select(1, places.clamp_max(values.shape[1] - 1))
    return found.masked_fill_((places >= values.shape[1])[None, :, None], 0)
