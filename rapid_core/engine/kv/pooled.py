"""Keys and values of 2 x 2 tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .keys import Keys, pick, put


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

    def write(self, images: Sequence[int], k: Tensor, v: Tensor, text: int) -> None:
        number = len(self.tiles)
        for name, values in (("k", k), ("v", v)):
            image = values.narrow(self.axis, text, number)
            all_tokens = torch.arange(number, device=values.device)
            means = torch.stack([self._sums(one, all_tokens) / self._counts(one, self.sizes) for one in image])
            kept = self.held.get(name)
            if kept is None or kept.shape[1:] != means.shape[1:]:
                kept = self.held[name] = means.new_empty(self.batch, *means.shape[1:])
            put(kept, images, means)

    def merge(self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int) -> Keys:
        tokens = rows - text
        count = int(rows.shape[1]) - text - (total - text - len(self.tiles))  # image tokens among the rows
        out, bias = {}, []
        for name, fresh in (("k", k), ("v", v)):
            pools = pick(self.held[name], images)
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

    def drop(self) -> None:
        self.held.clear()


def number_of_pools(grid: tuple[int, int, int]) -> int:
    """Pools of all frames; those at odd edges have fewer tokens."""
    frames, rows, columns = grid
    return frames * -(-rows // 2) * -(-columns // 2)


def pools(grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Pool of 2 x 2 neighbours in the same frame, for each token (N,)."""
    frames, rows, columns = grid
    high, wide = -(-rows // 2), -(-columns // 2)
    place = torch.arange(rows, device=device)[:, None] // 2 * wide + torch.arange(columns, device=device) // 2
    return (place.flatten() + high * wide * torch.arange(frames, device=device)[:, None]).flatten()
