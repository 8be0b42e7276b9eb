"""Keys and values of 2 x 2 tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .entry import AttendedKV, pick, put


class Pooled:
    """Means over 2 x 2 image tokens, a quarter of the memory. A pool stands for its tokens that
    were not computed: the logarithm of their number is added to its logits, which is exact where
    their keys are equal."""

    def __init__(self, batch: int, axis: int, number: int, members: Tensor):
        """number: of image tokens; members (P, 4): see `pools`."""
        self.batch, self.axis, self.number, self.members = batch, axis, number, members
        self.sizes = (members < number).sum(1).float()  # tokens of each pool
        self.held: dict[str, Tensor] = {}

    def _sums(self, values: Tensor, axis: int) -> Tensor:
        """Sums over the pools of values that have all image tokens along `axis`. Gathered and not
        added in place, which would come out another way each time on a GPU."""
        shape = list(values.shape)
        shape[axis] = 1
        padded = torch.cat(
            (values, values.new_zeros(shape)), axis
        )  # what is no token counts nothing
        return (
            padded.index_select(axis, self.members.flatten())
            .unflatten(axis, self.members.shape)
            .sum(axis + 1)
        )

    def _counts(self, values: Tensor, numbers: Tensor) -> Tensor:
        """Numbers of pools, shaped to broadcast against one image's values."""
        shape = [1] * values.ndim
        shape[self.axis - 1] = len(numbers)
        return numbers.view(shape).to(values.dtype)

    def write(self, images: Sequence[int], k: Tensor, v: Tensor, text: int) -> None:
        for name, values in (("k", k), ("v", v)):
            sums = self._sums(values.narrow(self.axis, text, self.number), self.axis)
            means = torch.stack([one / self._counts(one, self.sizes) for one in sums])
            kept = self.held.get(name)
            if kept is None or kept.shape[1:] != means.shape[1:]:
                kept = self.held[name] = means.new_empty(self.batch, *means.shape[1:])
            put(kept, images, means)

    def merge(
        self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int
    ) -> AttendedKV:
        tokens, axis = rows - text, self.axis - 1
        count = (
            int(rows.shape[1]) - text - (total - text - self.number)
        )  # image tokens among the rows
        out, bias = {}, []
        for name, fresh in (("k", k), ("v", v)):
            pools = pick(self.held[name], images)
            out[name] = torch.cat((fresh, pools), self.axis)
        for row, image in enumerate(images):
            chosen = tokens[row, text : text + count]
            ran = torch.zeros(self.number, device=chosen.device).index_fill_(0, chosen, 1.0)
            left = self.sizes - self._sums(ran, 0)
            bias.append(left.log())  # -inf where the whole pool was computed
            for name, fresh in (("k", k), ("v", v)):
                one = fresh[row].narrow(axis, text, count)
                shape = list(one.shape)
                shape[axis] = self.number
                whole, kept = (
                    one.new_zeros(shape).index_copy_(axis, chosen, one),
                    self.held[name][image],
                )
                sums = kept * self._counts(kept, left) + self._sums(whole, axis)
                kept.copy_(sums / self._counts(kept, self.sizes))
        return AttendedKV(out["k"], out["v"], torch.stack(bias))

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
    """Tokens of each pool of 2 x 2 neighbours in the same frame, (P, 4); the number of all tokens
    stands for none."""
    frames, rows, columns = grid
    each = (-(-rows // 2), -(-columns // 2))
    row, column = (
        2 * torch.arange(n, device=device)[:, None] + torch.arange(2, device=device) for n in each
    )
    row, column = row[:, None, :, None], column[None, :, None, :]
    frame = torch.arange(frames, device=device).view(-1, 1, 1, 1, 1) * rows * columns
    places = frame + row * columns + column  # (frames, high, wide, 2, 2)
    return places.masked_fill(~((row < rows) & (column < columns)), frames * rows * columns).view(
        -1, 4
    )
