"""Keys and values that move on while their tokens are left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .entry import AttendedKV, pick, resized


class KVSigmas:
    """Noise levels at which the image tokens of a stream were computed last and before, to forecast
    from them."""

    def __init__(self, batch: int, number: int, reach: float):
        self.number, self.reach = number, reach
        self.sigma = 0.0
        self.levels: list[tuple[Tensor, Tensor] | None] = [None] * batch
        self._again: list[Tensor | None] = [
            None
        ] * batch  # tokens whose latest level is that of this call already
        self._ahead: tuple[object, Tensor] | None = None

    def tick(
        self, images: Sequence[int], sigma: float, tokens: Tensor | None, device: torch.device
    ) -> None:
        """A model call at `sigma` computes these images' tokens (len(images), K), all if None."""
        before, self.sigma, self._ahead = self.sigma, sigma, None
        for row, image in enumerate(images):
            pair = self.levels[image]
            new = torch.full((self.number,), sigma, device=device)
            if pair is None:
                self.levels[image], self._again[image] = (new, new), None
                continue
            # A second look at a level (heun) takes the place of the first: a line needs two levels.
            again = self._again[image] = pair[1] == sigma if sigma == before else None
            older = pair[1] if again is None else torch.where(again, pair[0], pair[1])
            if tokens is None:
                self.levels[image] = (older, new)
            else:
                ran = torch.zeros(self.number, dtype=torch.bool, device=device).index_fill(
                    0, tokens[row], True
                )
                self.levels[image] = (
                    torch.where(ran, older, pair[0]),
                    torch.where(ran, sigma, pair[1]),
                )

    def again(self, image: int, text: int, total: int) -> Tensor | None:
        """Rows of the sequence (total,) that were computed at this call's level before; None for
        none."""
        found = self._again[image]
        if found is None:
            return None
        return torch.nn.functional.pad(found, (text, total - text - self.number))

    def ahead(self, images: Sequence[int], text: int, total: int) -> Tensor:
        """How far each row of the sequence is forecast, in distances of its latest two points:
        (len(images), total)."""
        key = (tuple(images), text, total)
        if self._ahead is None or self._ahead[0] != key:
            rows = []
            for image in images:
                pair = self.levels[image]
                assert pair is not None
                before, latest = pair
                gap = latest - before
                far = torch.where(
                    gap == 0, 0.0, (self.sigma - latest) / torch.where(gap == 0, 1.0, gap)
                )
                rows.append(
                    torch.nn.functional.pad(
                        far.clamp(0, self.reach), (text, total - text - self.number)
                    )
                )
            self._ahead = key, torch.stack(rows)
        return self._ahead[1]


class Forecast:
    """Every row twice: keys and values of a token that is left out move on along the line through
    its latest two, as its derivative does. Twice the memory of `Whole`; far nearer to dense, since
    what is attended to is not stale."""

    def __init__(self, batch: int, axis: int, clock: KVSigmas):
        self.batch, self.axis, self.clock = batch, axis, clock
        self.held: dict[str, tuple[Tensor, Tensor]] = {}  # the one before the latest, the latest

    def write(self, images: Sequence[int], k: Tensor, v: Tensor, text: int) -> None:
        again = [self.clock.again(image, text, k.shape[self.axis]) for image in images]
        for name, values in (("k", k), ("v", v)):
            pair = self.held.get(name)
            if (
                pair is not None and pair[1].shape[self.axis] != values.shape[self.axis]
            ):  # another length of text
                pair = self.held[name] = self._resized(name, values.shape[self.axis])
            if pair is None:
                empty = values.new_zeros(self.batch, *values.shape[1:])
                pair = self.held[name] = (empty, empty.clone())
            if len(images) == self.batch and not any(rows is not None for rows in again):
                pair[0].copy_(
                    values
                )  # the older of the two takes the new values and becomes the latest
                self.held[name] = (pair[1], pair[0])
                continue
            for row, image in enumerate(images):
                pair[0][image].copy_(self._older(pair[0][image], pair[1][image], again[row]))
                pair[1][image].copy_(values[row])

    def _older(self, before: Tensor, latest: Tensor, again: Tensor | None) -> Tensor:
        """What stands before new values: the latest, but for rows that are computed again at its
        level."""
        if again is None:
            return latest
        shape = [1] * before.ndim
        shape[self.axis - 1] = -1
        return torch.where(again.view(shape), before, latest)

    def merge(
        self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int
    ) -> AttendedKV:
        return AttendedKV(
            self._merged("k", images, k, rows, text, total),
            self._merged("v", images, v, rows, text, total),
        )

    def _merged(
        self, name: str, images: Sequence[int], fresh: Tensor, rows: Tensor, text: int, total: int
    ) -> Tensor:
        ahead = self.clock.ahead(images, text, total)
        if self.held[name][1].shape[self.axis] != total:
            self.held[name] = self._resized(name, total)
        before, latest = self.held[name]
        for row, image in enumerate(images):
            old, again = (
                latest[image].index_select(self.axis - 1, rows[row]),
                self.clock.again(image, text, total),
            )
            if again is not None:
                older = before[image].index_select(self.axis - 1, rows[row])
                old = self._older(older, old, again[rows[row]])
            before[image].index_copy_(self.axis - 1, rows[row], old)
            latest[image].index_copy_(self.axis - 1, rows[row], fresh[row])
        if len(images) < self.batch:
            before, latest = pick(before, images), pick(latest, images)
        shape = [len(images)] + [1] * (latest.ndim - 1)
        shape[self.axis] = total
        line = (
            latest.float() - before.float()
        )  # a difference of rounded values: half precision would round it again
        return torch.addcmul(latest.float(), line, ahead.view(shape)).to(latest.dtype)

    def _resized(self, name: str, total: int) -> tuple[Tensor, Tensor]:
        before, latest = self.held[name]
        return resized(before, self.axis, total), resized(latest, self.axis, total)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for pair in self.held.values() for t in pair]

    def drop(self) -> None:
        self.held.clear()
