"""Keys and values of all tokens, per conditioning stream and attention, for evaluations that compute only some.

Rows of the sequence are [text | image | extra]; text and extra tokens are always computed, so that only the image rows
have to last. Keys are stored after normalisation and rotary positions: positions never change.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EIGHT_BIT = torch.float8_e4m3fn


@dataclass(frozen=True)
class Keys:
    """What the computed queries attend to. bias (rows, P) or None: where given, k and v are the fresh tokens followed
    by P others with this bias on their logits; without it they are the whole sequence. fresh_only: nothing but the
    fresh tokens."""

    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    fresh_only: bool = False


class Kept(Protocol):
    """Keys and values of one attention in one stream, for the images of a batch."""

    def write(self, images: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Keep all rows of these images."""
        ...

    def merge(self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int) -> Keys:
        """Take fresh tokens, which stand at `rows` (len(images), M) of a sequence of `total` with `text` before the
        image, and give what their queries attend to."""
        ...

    @property
    def tensors(self) -> list[Tensor]:
        """What is held."""
        ...


class Whole:
    """Every row, on the model's device or in host memory, in the model's precision or in 8 bits."""

    def __init__(self, batch: int, axis: int, host: bool = False, eight_bit: bool = False):
        self.batch, self.axis, self.host, self.eight_bit = batch, axis, host, eight_bit
        self.held: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}

    def write(self, images: Sequence[int], k: Tensor, v: Tensor) -> None:
        for name, values in (("k", k), ("v", v)):
            if self.eight_bit:
                values = self._quantised(name, images, values)
            kept = self.held.get(name)
            if kept is None or kept.shape[1:] != values.shape[1:]:
                kept = self.held[name] = self._empty(values)
            _put(kept, images, values)

    def _empty(self, values: Tensor) -> Tensor:
        pinned = self.host and values.is_cuda
        device = torch.device("cpu") if self.host else values.device
        return torch.empty(self.batch, *values.shape[1:], dtype=values.dtype, device=device, pin_memory=pinned)

    def _quantised(self, name: str, images: Sequence[int], values: Tensor) -> Tensor:
        """e4m3 with one scale an image, so that the largest value is the largest there is."""
        top = values.abs().amax(tuple(range(1, values.ndim)), keepdim=True).float().clamp_min(1e-12)
        scale = self.scales.get(name)
        if scale is None or scale.ndim != top.ndim:
            scale = self.scales[name] = top.new_ones(self.batch, *top.shape[1:])
        _put(scale, images, top / torch.finfo(EIGHT_BIT).max)
        return self._eight_bits(name, images, values)

    def _eight_bits(self, name: str, images: Sequence[int], values: Tensor) -> Tensor:
        largest, scale = torch.finfo(EIGHT_BIT).max, self.scales[name][list(images)]
        return (values.float() / scale).clamp(-largest, largest).to(EIGHT_BIT)

    def merge(self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int) -> Keys:
        return Keys(*(self._merged(name, images, fresh, rows, total) for name, fresh in (("k", k), ("v", v))))

    def _merged(self, name: str, images: Sequence[int], fresh: Tensor, rows: Tensor, total: int) -> Tensor:
        if self.held[name].shape[self.axis] != total:
            self.held[name] = _resized(self.held[name], self.axis, total)
        kept = self.held[name]
        if not (self.host or self.eight_bit):
            for row, image in enumerate(images):
                kept[image].index_copy_(self.axis - 1, rows[row], fresh[row])
            return kept if len(images) == self.batch else kept[list(images)]
        whole = kept[list(images)].to(fresh.device, non_blocking=True)
        if self.eight_bit:
            small = self._eight_bits(name, images, fresh)
            for row, image in enumerate(images):  # not every device can index 8-bit floats; their bytes it can
                kept[image].view(torch.uint8).index_copy_(self.axis - 1, rows[row], small[row].view(torch.uint8))
            whole = (whole.float() * self.scales[name][list(images)]).to(fresh.dtype)
        for row in range(len(images)):
            whole[row].index_copy_(self.axis - 1, rows[row], fresh[row])
        if self.host:
            _put(kept, images, whole)
        return whole

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.held.values(), *self.scales.values()]


class Pooled:
    """Means over 2 x 2 image tokens, a quarter of the memory. A pool stands for its tokens that were not computed: the
    logarithm of their number is added to its logits, which is exact where their keys are equal."""

    def __init__(self, batch: int, axis: int, tiles: Tensor):
        self.batch, self.axis, self.tiles = batch, axis, tiles  # tiles (N,): pool of each image token
        self.sizes = torch.bincount(tiles).float()  # tokens of each pool
        self.held: dict[str, Tensor] = {}

    def _sums(self, values: Tensor, tokens: Tensor) -> Tensor:
        """Sums of one image's values over the pools of `tokens`; axis of tokens counted without the batch."""
        shape = list(values.shape)
        shape[self.axis - 1] = len(self.sizes)
        return values.new_zeros(shape).index_add_(self.axis - 1, self.tiles[tokens], values)

    def _counts(self, values: Tensor, numbers: Tensor) -> Tensor:
        """Numbers of pools, shaped to broadcast against one image's values."""
        shape = [1] * values.ndim
        shape[self.axis - 1] = len(numbers)
        return numbers.view(shape).to(values.dtype)

    def write(self, images: Sequence[int], k: Tensor, v: Tensor) -> None:
        number = len(self.tiles)
        for name, values in (("k", k), ("v", v)):
            text = values.shape[self.axis] - number
            image = values.narrow(self.axis, text, number)
            all_tokens = torch.arange(number, device=values.device)
            means = torch.stack([self._sums(one, all_tokens) / self._counts(one, self.sizes) for one in image])
            kept = self.held.get(name)
            if kept is None or kept.shape[1:] != means.shape[1:]:
                kept = self.held[name] = means.new_empty(self.batch, *means.shape[1:])
            _put(kept, images, means)

    def merge(self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int) -> Keys:
        tokens = rows - text
        count = int(rows.shape[1]) - text - (total - text - len(self.tiles))  # image tokens among the rows
        out, bias = {}, []
        for name, fresh in (("k", k), ("v", v)):
            pools = self.held[name][list(images)]
            out[name] = torch.cat((fresh, pools), self.axis)
        for row, image in enumerate(images):
            chosen = tokens[row, text : text + count]
            ones = torch.ones(len(chosen), device=chosen.device)
            left = self.sizes - torch.zeros_like(self.sizes).index_add_(0, self.tiles[chosen], ones)
            bias.append(left.log())  # -inf where the whole pool was computed
            for name, fresh in (("k", k), ("v", v)):
                one = fresh[row].narrow(self.axis - 1, text, count)
                kept = self.held[name][image]
                sums = kept * self._counts(kept, left) + self._sums(one, chosen)
                kept.copy_(sums / self._counts(kept, self.sizes))
        return Keys(out["k"], out["v"], torch.stack(bias))

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.held.values())


class Nothing:
    """No cache: computed tokens attend to computed tokens and text only."""

    def write(self, images: Sequence[int], k: Tensor, v: Tensor) -> None:
        pass

    def merge(self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int) -> Keys:
        return Keys(k, v, fresh_only=True)

    @property
    def tensors(self) -> list[Tensor]:
        return []


class KVStore:
    """The cache of one run. A stream's image is usable after `complete` was called for it.

    kind: of `policies.region.PRECISIONS`; grid: frames, rows and columns of image tokens."""

    def __init__(self, batch: int, kind: str = "model", grid: tuple[int, int, int] = (1, 1, 1)):
        self.batch, self.kind, self.grid = batch, kind, grid
        self._kept: dict[tuple[Hashable, Hashable], Kept] = {}
        self._complete: dict[tuple[Hashable, int], tuple] = {}

    def complete(self, stream: Hashable, images: Sequence[int], shape: tuple) -> None:
        """All attentions of a dense evaluation of these images were written; `shape`: of the latent they belong to."""
        for image in images:
            self._complete[stream, image] = shape

    def has(self, stream: Hashable, image: int, shape: tuple) -> bool:
        """Whether every attention of this stream holds the image's rows for a latent of this shape."""
        return self._complete.get((stream, image)) == shape

    def write(self, stream: Hashable, at: Hashable, images: Sequence[int], k: Tensor, v: Tensor, axis: int) -> None:
        """Keep all rows of these images; k and v have one row an image, tokens along `axis`."""
        kept = self._kept.get((stream, at))
        if kept is None:
            kept = self._kept[stream, at] = self._make(axis, k.device)
        kept.write(images, k, v)

    def _make(self, axis: int, device: torch.device) -> Kept:
        if self.kind == "none":
            return Nothing()
        if self.kind == "pooled":
            return Pooled(self.batch, axis, pools(self.grid, device))
        return Whole(self.batch, axis, host=self.kind == "host memory", eight_bit=self.kind == "8 bit")

    def merge(
        self, stream: Hashable, at: Hashable, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int,
        total: int,
    ) -> Keys:
        """See `Kept.merge`."""
        return self._kept[stream, at].merge(images, k, v, rows, text, total)

    def scale(self, factor: float) -> None:
        """Falsify everything held; for the test that shows that the cache matters."""
        for kept in self._kept.values():
            for values in kept.tensors:
                values.copy_(values.float() * factor)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(t.numel() * t.element_size() for kept in self._kept.values() for t in kept.tensors)


def pools(grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Pool of 2 x 2 neighbours in the same frame, for each token (N,)."""
    frames, rows, columns = grid
    high, wide = -(-rows // 2), -(-columns // 2)
    place = torch.arange(rows, device=device)[:, None] // 2 * wide + torch.arange(columns, device=device) // 2
    return (place.flatten() + high * wide * torch.arange(frames, device=device)[:, None]).flatten()


def bytes_of(kind: str, tokens: int, width: int, attentions: int, rows: int, element: int) -> int:
    """Memory that keys and values will take: `width` channels, `rows` = images times conditioning streams."""
    whole = 2 * tokens * width * attentions * rows
    return {"none": 0, "pooled": whole * element // 4, "8 bit": whole}.get(kind, whole * element)


def _put(kept: Tensor, images: Sequence[int], values: Tensor) -> None:
    if len(images) == len(kept):
        kept.copy_(values, non_blocking=True)
        return
    for row, image in enumerate(images):
        kept[image].copy_(values[row], non_blocking=True)


def _resized(values: Tensor, axis: int, total: int) -> Tensor:
    """The same image rows behind another number of text tokens: the host pads prompts that it joins."""
    extra = total - values.shape[axis]
    if extra < 0:
        return values.narrow(axis, -extra, total).clone()
    shape = list(values.shape)
    shape[axis] = extra
    return torch.cat((values.new_zeros(shape), values), axis)
