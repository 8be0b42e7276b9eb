"""Keys and values as they were computed last, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .entry import AttendedKV, pick, put, resized

EIGHT_BIT = torch.float8_e4m3fn


class FullKV:
    """Every row, on the model's device or in host memory, in the model's precision or in 8 bits."""

    def __init__(self, batch: int, axis: int, host: bool = False, eight_bit: bool = False):
        self.batch, self.axis, self.host, self.eight_bit = batch, axis, host, eight_bit
        self.held: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}

    def write(self, images: Sequence[int], k: Tensor, v: Tensor, text: int) -> None:
        for name, values in (("k", k), ("v", v)):
            if self.eight_bit:
                values = self._quantised(name, images, values)
            kept = self.held.get(name)
            if kept is None:
                kept = self.held[name] = self._empty(values)
            elif kept.shape[self.axis] != values.shape[self.axis]:  # another length of text
                kept = self.held[name] = resized(kept, self.axis, values.shape[self.axis])
            put(kept, images, values)

    def _empty(self, values: Tensor) -> Tensor:
        pinned = self.host and values.is_cuda
        device = torch.device("cpu") if self.host else values.device
        return torch.empty(
            self.batch, *values.shape[1:], dtype=values.dtype, device=device, pin_memory=pinned
        )

    def _quantised(self, name: str, images: Sequence[int], values: Tensor) -> Tensor:
        """e4m3 with one scale an image, so that the largest value is the largest there is."""
        top = values.abs().amax(tuple(range(1, values.ndim)), keepdim=True).float().clamp_min(1e-12)
        scale = self.scales.get(name)
        if scale is None or scale.ndim != top.ndim:
            scale = self.scales[name] = top.new_ones(self.batch, *top.shape[1:])
        put(scale, images, top / torch.finfo(EIGHT_BIT).max)
        return self._eight_bits(name, images, values)

    def _eight_bits(self, name: str, images: Sequence[int], values: Tensor) -> Tensor:
        largest, scale = torch.finfo(EIGHT_BIT).max, pick(self.scales[name], images)
        return (values.float() / scale).clamp(-largest, largest).to(EIGHT_BIT)

    def merge(
        self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int
    ) -> AttendedKV:
        return AttendedKV(
            self._merged("k", images, k, rows, total), self._merged("v", images, v, rows, total)
        )

    def _merged(
        self, name: str, images: Sequence[int], fresh: Tensor, rows: Tensor, total: int
    ) -> Tensor:
        if self.held[name].shape[self.axis] != total:
            self.held[name] = resized(self.held[name], self.axis, total)
        kept = self.held[name]
        if not (self.host or self.eight_bit):
            for row, image in enumerate(images):
                kept[image].index_copy_(self.axis - 1, rows[row], fresh[row])
            return pick(kept, images)
        whole = pick(kept, images).to(fresh.device, non_blocking=True)
        if self.eight_bit:
            small = self._eight_bits(name, images, fresh)
            for row, image in enumerate(
                images
            ):  # not every device can index 8-bit floats; their bytes it can
                kept[image].view(torch.uint8).index_copy_(
                    self.axis - 1, rows[row], small[row].view(torch.uint8)
                )
            whole = (whole.float() * pick(self.scales[name], images)).to(fresh.dtype)
        for row in range(len(images)):
            whole[row].index_copy_(self.axis - 1, rows[row], fresh[row])
        if self.host:
            put(kept, images, whole)
        return whole

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.held.values(), *self.scales.values()]

    def drop(self) -> None:
        self.held.clear()
        self.scales.clear()


class NoKV:
    """No cache: computed tokens attend to computed tokens and text only."""

    def write(self, images: Sequence[int], k: Tensor, v: Tensor, text: int) -> None:
        pass

    def merge(
        self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int
    ) -> AttendedKV:
        return AttendedKV(k, v, fresh_only=True)

    @property
    def tensors(self) -> list[Tensor]:
        return []

    def drop(self) -> None:
        pass
