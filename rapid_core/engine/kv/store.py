"""The cache of one run."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence

import torch
from torch import Tensor

from .entry import AttendedKV, KVEntry
from .full import FullKV, NoKV
from .pooled import Pooled, number_of_pools, pools
from .predicted import Forecast, KVSigmas

Stream = tuple[int, Hashable]


class KVStore:
    """The cache of one run. A stream's image is usable after `complete` was called for it.

    Streams are (place of the list, uuid of the condition). kind: of `policies.region.PRECISIONS`;
    grid: frames, rows and columns of image tokens; counted: uuids of the conditions that there is
    room for, a stream each; None: any."""

    def __init__(
        self,
        batch: int,
        kind: str = "model",
        grid: tuple[int, int, int] = (1, 1, 1),
        reach: float = 4.0,
        counted: frozenset[Hashable] | None = None,
    ):
        self.batch, self.kind, self.grid, self.counted = batch, kind, grid, counted
        self._kept: dict[tuple[Hashable, Hashable], KVEntry] = {}
        self._clocks: dict[Hashable, KVSigmas] = {}
        self.reach = reach
        self._complete: dict[tuple[Hashable, int], tuple] = {}
        self._room: dict[Hashable, Stream] = {}  # the streams that took it, by uuid

    def refuses(self, stream: Stream) -> bool:
        """Whether there is no room for a stream: nothing of it is kept."""
        if self.counted is None:
            return False
        return stream[1] not in self.counted or self._room.setdefault(stream[1], stream) != stream

    def seen(self, ran: int) -> int | None:
        """Image keys that `ran` computed tokens of an image attend to; None for those of all
        tokens."""
        return {"pooled": ran + number_of_pools(self.grid), "none": ran}.get(self.kind)

    def complete(self, stream: Stream, images: Sequence[int], shape: tuple) -> None:
        """All attentions of a dense evaluation of these images were written; `shape`: of the latent
        they belong to."""
        for image in () if self.refuses(stream) else images:
            self._complete[stream, image] = shape

    def forget(self, stream: Stream, image: int) -> None:
        """What is held of an image no longer belongs to its stream; a dense evaluation makes it
        anew."""
        self._complete.pop((stream, image), None)
        if stream in self._clocks:
            self._clocks[stream].levels[image] = None

    def keep_only(self, streams: Collection[Stream]) -> None:
        """Let go of what other streams hold: conditions that ended."""
        for key in [key for key in self._kept if key[0] not in streams]:
            self._kept.pop(key).drop()
        self._clocks = {
            stream: clock for stream, clock in self._clocks.items() if stream in streams
        }
        self._complete = {key: shape for key, shape in self._complete.items() if key[0] in streams}
        self._room = {uuid: stream for uuid, stream in self._room.items() if stream in streams}

    def has(self, stream: Stream, image: int, shape: tuple) -> bool:
        """Whether every attention of this stream holds the image's rows for a latent of this
        shape."""
        return self._complete.get((stream, image)) == shape

    def write(
        self,
        stream: Stream,
        at: Hashable,
        images: Sequence[int],
        k: Tensor,
        v: Tensor,
        axis: int,
        text: int,
    ) -> None:
        """Keep all rows of these images; k and v have one row an image, tokens along `axis`, `text`
        of them first."""
        if self.refuses(stream):
            return
        kept = self._kept.get((stream, at))
        if kept is None:
            kept = self._kept[stream, at] = self._make(axis, k.device, stream)
        kept.write(images, k, v, text)

    def tick(
        self,
        stream: Stream,
        images: Sequence[int],
        sigma: float,
        tokens: Tensor | None,
        device: torch.device,
    ) -> None:
        """A model call begins; see `Clock.tick`."""
        if self.kind == "forecast":
            clock = self._clocks.setdefault(
                stream, KVSigmas(self.batch, math.prod(self.grid), self.reach)
            )
            clock.tick(images, sigma, tokens, device)

    def _make(self, axis: int, device: torch.device, stream: Stream) -> KVEntry:
        if self.kind == "forecast":
            return Forecast(self.batch, axis, self._clocks[stream])
        if self.kind == "none":
            return NoKV()
        if self.kind == "pooled":
            return Pooled(self.batch, axis, math.prod(self.grid), pools(self.grid, device))
        return FullKV(
            self.batch, axis, host=self.kind == "host memory", eight_bit=self.kind == "8 bit"
        )

    def merge(
        self,
        stream: Stream,
        at: Hashable,
        images: Sequence[int],
        k: Tensor,
        v: Tensor,
        rows: Tensor,
        text: int,
        total: int,
    ) -> AttendedKV:
        """See `Kept.merge`."""
        return self._kept[stream, at].merge(images, k, v, rows, text, total)

    def scale(self, factor: float) -> None:
        """Falsify everything held; for the test that shows that the cache matters."""
        for kept in self._kept.values():
            for values in kept.tensors:
                values.copy_(values.float() * factor)

    def drop(self) -> None:
        """Let go of everything held."""
        for kept in self._kept.values():
            kept.drop()
        self._kept, self._clocks, self._complete, self._room = {}, {}, {}, {}

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(
            t.numel() * t.element_size() for kept in self._kept.values() for t in kept.tensors
        )


def bytes_of(kind: str, tokens: int, width: int, pieces: int, element: int) -> int:
    """Memory that keys and values will take: `tokens` rows (pools, where they are pooled) of
    `width` channels in all attentions, streams and images together, `pieces` of these."""
    whole = 2 * tokens * width
    scales = 2 * pieces * 4
    special = {"none": 0, "8 bit": whole + scales, "forecast": 2 * whole * element}
    return special.get(kind, whole * element)
