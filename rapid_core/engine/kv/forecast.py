"""Keys and values that move on while their tokens are left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .keys import Keys, pick, resized


class Clock:
    """Noise levels at which the image tokens of a stream were computed last and before, to forecast from them."""

    def __init__(self, batch: int, number: int, reach: float):
        self.number, self.reach = number, reach
        self.sigma = 0.0
        self.levels: list[tuple[Tensor, Tensor] | None] = [None] * batch
        self._ahead: tuple[object, Tensor] | None = None

    def tick(self, images: Sequence[int], sigma: float, tokens: Tensor | None, device: torch.device) -> None:
        """A model call at `sigma` computes these images' tokens (len(images), K), all if None."""
        self.sigma, self._ahead = sigma, None
        for row, image in enumerate(images):
            pair = self.levels[image]
            new = torch.full((self.number,), sigma, device=device)
            if pair is None:
                self.levels[image] = (new, new)
            elif tokens is None:
                self.levels[image] = (pair[1], new)
            else:
                ran = torch.zeros(self.number, dtype=torch.bool, device=device).index_fill(0, tokens[row], True)
                self.levels[image] = torch.where(ran, pair[1], pair[0]), torch.where(ran, sigma, pair[1])

    def ahead(self, images: Sequence[int], text: int, total: int) -> Tensor:
        """How far each row of the sequence is forecast, in distances of its latest two points: (len(images), total)."""
        key = (tuple(images), text, total)
        if self._ahead is None or self._ahead[0] != key:
            rows = []
            for image in images:
                pair = self.levels[image]
                assert pair is not None
                before, latest = pair
                gap = latest - before
                far = torch.where(gap == 0, 0.0, (self.sigma - latest) / torch.where(gap == 0, 1.0, gap))
                rows.append(torch.nn.functional.pad(far.clamp(0, self.reach), (text, total - text - self.number)))
            self._ahead = key, torch.stack(rows)
        return self._ahead[1]


class Forecast:
    """Every row twice: keys and values of a token that is left out move on along the line through its latest two,
    as its derivative does. Twice the memory of `Whole`; far nearer to dense, since what is attended to is not stale."""

    def __init__(self, batch: int, axis: int, clock: Clock):
        self.batch, self.axis, self.clock = batch, axis, clock
        self.held: dict[str, tuple[Tensor, Tensor]] = {}  # the one before the latest, the latest

    def write(self, images: Sequence[int], k: Tensor, v: Tensor, text: int) -> None:
        for name, values in (("k", k), ("v", v)):
            pair = self.held.get(name)
            if pair is not None and pair[1].shape[self.axis] != values.shape[self.axis]:  # another length of text
                pair = self.held[name] = self._resized(name, values.shape[self.axis])
            if pair is None:
                empty = values.new_zeros(self.batch, *values.shape[1:])
                pair = self.held[name] = (empty, empty.clone())
            if len(images) == self.batch:  # the older of the two takes the new values and becomes the latest
                pair[0].copy_(values)
                self.held[name] = (pair[1], pair[0])
                continue
            for row, image in enumerate(images):
                pair[0][image].copy_(pair[1][image])
                pair[1][image].copy_(values[row])

    def merge(self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int) -> Keys:
        ahead = self.clock.ahead(images, text, total)
        return Keys(
            self._merged("k", images, k, rows, ahead, total), self._merged("v", images, v, rows, ahead, total)
        )

    def _merged(
        self, name: str, images: Sequence[int], fresh: Tensor, rows: Tensor, ahead: Tensor, total: int
    ) -> Tensor:
        if self.held[name][1].shape[self.axis] != total:
            self.held[name] = self._resized(name, total)
        before, latest = self.held[name]
        for row, image in enumerate(images):
            old = latest[image].index_select(self.axis - 1, rows[row])
            before[image].index_copy_(self.axis - 1, rows[row], old)
            latest[image].index_copy_(self.axis - 1, rows[row], fresh[row])
        if len(images) < self.batch:
            before, latest = pick(before, images), pick(latest, images)
        shape = [len(images)] + [1] * (latest.ndim - 1)
        shape[self.axis] = total
        line = latest.float() - before.float()  # a difference of rounded values: half precision would round it again
        return torch.addcmul(latest.float(), line, ahead.view(shape)).to(latest.dtype)

    def _resized(self, name: str, total: int) -> tuple[Tensor, Tensor]:
        before, latest = self.held[name]
        return resized(before, self.axis, total), resized(latest, self.axis, total)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for pair in self.held.values() for t in pair]

    def drop(self) -> None:
        self.held.clear()
