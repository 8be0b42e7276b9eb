"""The cache of one run."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import torch
from torch import Tensor

from ...types import KVKind, Reason
from .entry import AttendedKV, Cond, KVEntry, Merge, Write
from .last import EightBitKV, HostKV, LastKV
from .none import NoKV
from .predicted import KVSigmas, PredictedKV

ENTRIES: dict[KVKind, type[KVEntry]] = {
    KVKind.PREDICT: PredictedKV,
    KVKind.LAST_VALUE: LastKV,
    KVKind.EIGHT_BIT: EightBitKV,
    KVKind.HOST_MEMORY: HostKV,
    KVKind.NONE: NoKV,
}


def bytes_of(kind: KVKind, rows: int, width: int, pieces: int, element: int) -> int:
    """Memory that keys and values will take; see `KVEntry.bytes_of`."""
    return ENTRIES[kind].bytes_of(rows, width, pieces, element)


def missing(kind: KVKind, device_type: str) -> Reason | None:
    """Why keys and values cannot be kept in this way for a model on this type of device ("cuda",
    "mps" ...); None where they can."""
    return ENTRIES[kind].missing(device_type)


class KVStore:
    """Keys and values of one run, by cond and attention. An image's rows are usable after
    `complete` was called for it.

    A cond is named by its list's place and its uuid: the uuid alone is not enough, since the host
    gives a copy of a condition with an area the same one in the other list."""

    def __init__(
        self,
        batch: int,
        kind: KVKind,
        number: int,
        reach: float = 4.0,
        counted: frozenset[Hashable] | None = None,
    ):
        """number: of image tokens; reach: see `KVSigmas`; counted: uuids of the conditions that
        there is room for, one cond each; None for any."""
        self.batch = batch
        self.kind = kind
        self.number = number
        self.reach = reach
        self.counted = counted
        self._entries: dict[tuple[Cond, Hashable], KVEntry] = {}
        self._sigmas: dict[Cond, KVSigmas] = {}
        self._complete: dict[tuple[Cond, int], tuple] = {}  # shapes of latents
        self._room: dict[Hashable, Cond] = {}  # conds that took it, by uuid
        self.extra: dict[tuple[Cond, int], int] = {}
        """Tokens that stood behind the image when all rows of a cond and image were kept."""

    def has_room(self, cond: Cond) -> bool:
        """Whether a cond's keys and values are kept, or would be if it claimed room now."""
        if self.counted is None:
            return True
        uuid = cond[1]
        return uuid in self.counted and self._room.get(uuid, cond) == cond

    def claim(self, cond: Cond) -> bool:
        """Take the room of a cond, unless another has it; whether it is this cond's now."""
        if not self.has_room(cond):
            return False
        if self.counted is not None:
            self._room[cond[1]] = cond
        return True

    def keys_seen(self, computed: int) -> int | None:
        """See `KVEntry.keys_seen`."""
        return ENTRIES[self.kind].keys_seen(computed)

    def complete(self, cond: Cond, images: Sequence[int], shape: tuple) -> None:
        """All attentions of a full evaluation of these images were written; `shape`: of the latent
        they belong to."""
        if self.has_room(cond):
            for image in images:
                self._complete[cond, image] = shape

    def has(self, cond: Cond, image: int, shape: tuple) -> bool:
        """Whether every attention of this cond holds the image's rows for a latent of this
        shape."""
        return self._complete.get((cond, image)) == shape

    def forget(self, cond: Cond, image: int) -> None:
        """What is held of an image no longer belongs to its cond; a full evaluation makes it
        anew."""
        self._complete.pop((cond, image), None)
        if cond in self._sigmas:
            self._sigmas[cond].forget(image)

    def keep_only(self, conds: Collection[Cond]) -> None:
        """Let go of what other conds hold, which ended."""
        for key in [key for key in self._entries if key[0] not in conds]:
            self._entries.pop(key).drop()
        self._sigmas = {cond: known for cond, known in self._sigmas.items() if cond in conds}
        self._complete = {key: shape for key, shape in self._complete.items() if key[0] in conds}
        self._room = {uuid: cond for uuid, cond in self._room.items() if cond in conds}
        self.extra = {key: number for key, number in self.extra.items() if key[0] in conds}

    def tick(
        self,
        cond: Cond,
        images: Sequence[int],
        sigmas: Sequence[float],
        tokens: Tensor | None,
        device: torch.device,
    ) -> None:
        """A model call begins; see `KVSigmas.tick`."""
        if ENTRIES[self.kind].predicts:
            if cond not in self._sigmas:
                self._sigmas[cond] = KVSigmas(self.batch, self.number, self.reach)
            self._sigmas[cond].tick(images, sigmas, tokens, device)

    def write(self, cond: Cond, at: Hashable, write: Write) -> None:
        """Keep all rows of some images in the attention `at`, where there is room for the cond."""
        if not self.claim(cond):
            return
        entry = self._entries.get((cond, at))
        if entry is None:
            make = ENTRIES[self.kind]
            entry = make(self.batch, write.axis, self._sigmas.get(cond))
            self._entries[cond, at] = entry
        entry.write(write)

    def merge(self, cond: Cond, at: Hashable, merge: Merge) -> AttendedKV:
        """Take in computed tokens of the attention `at`, and give what their queries attend to."""
        return self._entries[cond, at].merge(merge)

    def drop(self) -> None:
        """Let go of everything held."""
        for entry in self._entries.values():
            entry.drop()
        self._entries.clear()
        self._sigmas.clear()
        self._complete.clear()
        self._room.clear()
        self.extra.clear()

    @property
    def bytes(self) -> int:
        """Memory held."""
        held = (t for entry in self._entries.values() for t in entry.tensors)
        return sum(t.nbytes for t in held)
