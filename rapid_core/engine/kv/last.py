"""Keys and values as they were computed last: on the model's device, there in 8 bits, or in host
memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ...reasons import ReasonCode
from ...types import Reason
from .entry import (
    AttendedKV,
    KVEntry,
    Merge,
    Write,
    copy_rows,
    fill_resized,
    resized_shape,
    rows_of_images,
)

FLOAT8: Any = getattr(torch, "float8_e4m3fn", None)  # PyTorch before 2.1 has none
SCALE_BYTES = 4


class LastKV(KVEntry):
    """Every row in the model's own precision, on its device."""

    @override
    def __init__(self, batch: int, axis: int, sigmas: object = None):
        super().__init__(batch, axis)
        self.held: dict[str, Tensor] = {}  # "k" and "v", (batch, ...)

    def write(self, write: Write) -> None:
        for name, values in (("k", write.k), ("v", write.v)):
            copy_rows(self._buffer(name, values), write.images, values, asynchronous=False)

    def _buffer(self, name: str, values: Tensor) -> Tensor:
        """Where rows of the shape and type of `values` are held."""
        if name not in self.held:
            self.held[name] = self._allocate([self.batch, *values.shape[1:]], values)
        return self._sized(name, values.shape[self.axis])

    def _sized(self, name: str, total: int) -> Tensor:
        """What is held, of sequences of `total` tokens: a prompt may get another length."""
        held = self.held[name]
        if held.shape[self.axis] != total:
            out = self._allocate(resized_shape(held, self.axis, total), held)
            held = self.held[name] = fill_resized(out, held, self.axis)
        return held

    def _allocate(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return like.new_empty(shape)

    def merge(self, merge: Merge) -> AttendedKV:
        return AttendedKV(
            self._merged("k", merge, merge.k),
            self._merged("v", merge, merge.v),
        )

    def _merged(self, name: str, merge: Merge, fresh: Tensor) -> Tensor:
        held = self._sized(name, merge.total)
        self._put(held, merge.images, merge.rows, fresh)
        return rows_of_images(held, merge.images)

    def _put(self, held: Tensor, images: Sequence[int], rows: Tensor, fresh: Tensor) -> None:
        """Computed tokens take their places among those that are held."""
        for row, image in enumerate(images):
            held[image].index_copy_(self.axis - 1, rows[row], fresh[row])

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.held.values())

    def drop(self) -> None:
        self.held.clear()


class EightBitKV(LastKV):
    """Every row as e4m3 floats with one scale an image, so that the largest value is the largest
    there is."""

    @override
    def __init__(self, batch: int, axis: int, sigmas: object = None):
        super().__init__(batch, axis)
        self.scales: dict[str, Tensor] = {}  # (batch, 1, ...), float32

    @classmethod
    @override
    def bytes_of(cls, rows: int, width: int, pieces: int, element: int) -> int:
        return 2 * rows * width + 2 * pieces * SCALE_BYTES

    @classmethod
    def missing(cls, device_type: str) -> Reason | None:
        if _has_float8(device_type):
            return None
        return Reason(ReasonCode.KV_NEEDS_FLOAT8, device=device_type)

    def write(self, write: Write) -> None:
        for name, values in (("k", write.k), ("v", write.v)):
            self._scale(name, write.images, values)
            small = self._quantised(name, write.images, values)
            copy_rows(self._buffer(name, small), write.images, small, asynchronous=False)

    def _scale(self, name: str, images: Sequence[int], values: Tensor) -> None:
        """Set the images' scales by their largest values."""
        top = values.abs().amax(tuple(range(1, values.ndim)), keepdim=True).float().clamp_min(1e-12)
        scale = self.scales.get(name)
        if scale is None or scale.ndim != top.ndim:
            scale = self.scales[name] = top.new_ones(self.batch, *top.shape[1:])
        copy_rows(scale, images, top / torch.finfo(FLOAT8).max, asynchronous=False)

    def _quantised(self, name: str, images: Sequence[int], values: Tensor) -> Tensor:
        largest = torch.finfo(FLOAT8).max
        scale = rows_of_images(self.scales[name], images)
        return (values.float() / scale).clamp_(-largest, largest).to(FLOAT8)

    def _merged(self, name: str, merge: Merge, fresh: Tensor) -> Tensor:
        held = self._sized(name, merge.total)
        before = rows_of_images(held, merge.images).float()
        before.mul_(rows_of_images(self.scales[name], merge.images))
        attended = before.to(fresh.dtype)
        # Not every device can index 8-bit floats; their bytes it can.
        small = self._quantised(name, merge.images, fresh).view(torch.uint8)
        self._put(held.view(torch.uint8), merge.images, merge.rows, small)
        for row in range(len(merge.images)):
            attended[row].index_copy_(self.axis - 1, merge.rows[row], fresh[row])
        return attended

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.held.values(), *self.scales.values()]

    def drop(self) -> None:
        super().drop()
        self.scales.clear()


@functools.cache
def _has_float8(device_type: str) -> bool:
    """Whether a type of device can hold 8-bit floats and change them back; Apple's cannot."""
    if FLOAT8 is None:
        return False
    try:
        one = torch.ones(1, device=device_type)
        return one.to(FLOAT8).float().item() == 1.0
    except (RuntimeError, TypeError, NotImplementedError, AssertionError):
        return False


@dataclass(frozen=True)
class _Arriving:
    """Computed tokens on their way to host memory."""

    images: Sequence[int]
    rows: Tensor
    """(R, M), as all of these in host memory."""
    values: dict[str, Tensor]


def _can_pin(device: torch.device) -> bool:
    """Whether host memory can be pinned for copies to and from a device."""
    return device.type == "cuda"


class HostKV(LastKV):
    """Every row in host memory, which is pinned where the model is on CUDA.

    All rows go to the device in a merge; only the computed ones come back. Copies between pinned
    memory and the device are asynchronous: `_settle` waits for them by an event of their own before
    the host touches what they read or write, so that no other synchronisation is relied on."""

    @override
    def __init__(self, batch: int, axis: int, sigmas: object = None):
        super().__init__(batch, axis)
        self.pinned = False
        self._copied: torch.cuda.Event | None = None  # after the latest copies, where asynchronous
        self._arriving: _Arriving | None = None

    def write(self, write: Write) -> None:
        self._settle()
        self.pinned = _can_pin(write.k.device)
        for name, values in (("k", write.k), ("v", write.v)):
            copy_rows(self._buffer(name, values), write.images, values, self.pinned)
        self._mark(write.k.device)

    def _allocate(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=self.pinned)

    def merge(self, merge: Merge) -> AttendedKV:
        self._settle()
        attended = super().merge(merge)
        values = {"k": self._to_host(merge.k), "v": self._to_host(merge.v)}
        self._arriving = _Arriving(merge.images, self._to_host(merge.rows), values)
        self._mark(merge.k.device)
        if self._copied is None:
            self._settle()
        return attended

    def _merged(self, name: str, merge: Merge, fresh: Tensor) -> Tensor:
        held = self._sized(name, merge.total)
        attended = fresh.new_empty(len(merge.images), *held.shape[1:])
        for row, image in enumerate(merge.images):
            attended[row].copy_(held[image], non_blocking=self.pinned)
            attended[row].index_copy_(self.axis - 1, merge.rows[row], fresh[row])
        return attended

    def _to_host(self, values: Tensor) -> Tensor:
        """A copy in host memory, there when `_settle` has waited."""
        return self._allocate(values.shape, values).copy_(values, non_blocking=self.pinned)

    def _mark(self, device: torch.device) -> None:
        if self.pinned:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(device))

    def _settle(self) -> None:
        """Wait for copies, and put what has arrived in its place."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        arrived = self._arriving
        if arrived is not None:
            self._arriving = None
            for name, values in arrived.values.items():
                self._put(self.held[name], arrived.images, arrived.rows, values)

    @property
    def tensors(self) -> list[Tensor]:
        arriving = [] if self._arriving is None else list(self._arriving.values.values())
        return [*self.held.values(), *arriving]

    def drop(self) -> None:
        super().drop()
        self._arriving = None
        self._copied = None
