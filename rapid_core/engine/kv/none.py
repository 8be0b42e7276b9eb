"""No keys and values are kept."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from .entry import AttendedKV, KVEntry, Merge, Write


class NoKV(KVEntry):
    """Computed tokens attend to computed tokens and text only."""

    @classmethod
    @override
    def bytes_of(cls, rows: int, width: int, pieces: int, element: int) -> int:
        return 0

    @classmethod
    def keys_seen(cls, computed: int) -> int | None:
        return computed

    def write(self, write: Write) -> None:
        pass

    def merge(self, merge: Merge) -> AttendedKV:
        return AttendedKV(merge.k, merge.v, fresh_only=True)

    @property
    def tensors(self) -> list[Tensor]:
        return []

    def drop(self) -> None:
        pass
