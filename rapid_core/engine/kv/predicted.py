"""Keys and values that move on while their tokens are not computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .entry import AttendedKV, KVEntry, Merge, Write, fill_resized, resized_shape


class KVSigmas:
    """The two sigmas at which each image token under a cond was computed last, to predict from
    them."""

    def __init__(self, batch: int, number: int, reach: float):
        """number: of image tokens; reach: how far a prediction may go, in distances of the two."""
        self.number = number
        self.reach = reach
        self._sigmas: list[float | None] = [None] * batch  # of each image's latest call
        self._pairs: list[tuple[Tensor, Tensor] | None] = [
            None
        ] * batch  # before, latest: (number,)
        # Tokens whose latest sigma was the current call's before it began.
        self._again: list[Tensor | None] = [None] * batch
        self._weights: dict[tuple, Tensor] = {}  # of the current call; the same in most blocks

    def tick(
        self,
        images: Sequence[int],
        sigmas: Sequence[float],
        tokens: Tensor | None,
        device: torch.device,
    ) -> None:
        """A model call at a sigma of each image computes these tokens of theirs (len(images), K),
        all if None."""
        self._weights.clear()
        for row, (image, sigma) in enumerate(zip(images, sigmas, strict=True)):
            before = self._sigmas[image]
            self._sigmas[image] = sigma
            pair = self._pairs[image]
            new = torch.full((self.number,), sigma, device=device)
            if pair is None:
                self._pairs[image] = (new, new)
                self._again[image] = None
                continue
            # A second look at a sigma (heun) takes the place of the first: a line needs two sigmas.
            again = self._again[image] = pair[1] == sigma if sigma == before else None
            older = pair[1] if again is None else torch.where(again, pair[0], pair[1])
            if tokens is None:
                self._pairs[image] = (older, new)
                continue
            ran = torch.zeros(self.number, dtype=torch.bool, device=device)
            ran.index_fill_(0, tokens[row], True)
            self._pairs[image] = (
                torch.where(ran, older, pair[0]),
                torch.where(ran, sigma, pair[1]),
            )

    def forget(self, image: int) -> None:
        """What was computed of an image no longer counts."""
        self._pairs[image] = None

    def again(self, image: int, text: int, total: int) -> Tensor | None:
        """Rows of the sequence (total,) that had been computed at this call's sigma before it;
        None for none."""
        again = self._again[image]
        return None if again is None else pad(again, (text, total - text - self.number))

    def lerp_weights(
        self, images: Sequence[int], text: int, total: int, dtype: torch.dtype
    ) -> Tensor:
        """Where each row of the sequence (len(images), total) is predicted, as a weight between its
        latest value (0) and the one before (1): a negative one lies beyond the latest."""
        key = (tuple(images), text, total, dtype)
        if key not in self._weights:
            around = (text, total - text - self.number)
            ahead = torch.stack([pad(self._ahead(image), around) for image in images])
            self._weights[key] = ahead.neg_().to(dtype)
        return self._weights[key]

    def _ahead(self, image: int) -> Tensor:
        """How far each image token (number,) is predicted, in distances of its two sigmas."""
        pair = self._pairs[image]
        assert pair is not None
        sigma = self._sigmas[image]
        assert sigma is not None
        before, latest = pair
        gap = latest - before
        far = (sigma - latest) / torch.where(gap == 0, 1.0, gap)
        return torch.where(gap == 0, 0.0, far).clamp(0, self.reach)


class PredictedKV(KVEntry):
    """Every row twice: keys and values of a token that is not computed move on along the line
    through its latest two, as its derivative does. Twice the memory of `LastKV`; far nearer to what
    a full evaluation would attend to, since nothing in it is stale.

    The prediction is one `torch.lerp`, which computes in float32 inside; its weights are of the
    model's own precision, so that in half precision a prediction is off by at most a rounding of
    its movement and one of itself."""

    predicts = True

    def __init__(self, batch: int, axis: int, sigmas: KVSigmas | None = None):
        super().__init__(batch, axis)
        assert sigmas is not None
        self.sigmas = sigmas
        self.held: dict[str, tuple[Tensor, Tensor]] = {}  # the one before the latest, the latest

    @classmethod
    def bytes_of(cls, rows: int, width: int, pieces: int, element: int) -> int:
        return 2 * super().bytes_of(rows, width, pieces, element)

    def write(self, write: Write) -> None:
        total = write.k.shape[self.axis]
        again = [self.sigmas.again(image, write.text, total) for image in write.images]
        everything = len(write.images) == self.batch and all(rows is None for rows in again)
        for name, values in (("k", write.k), ("v", write.v)):
            if name not in self.held:
                empty = values.new_zeros(self.batch, *values.shape[1:])
                self.held[name] = (empty, empty.clone())
            before, latest = self._sized(name, total)
            if everything:
                # The older of the two takes the new values and becomes the latest.
                before.copy_(values)
                self.held[name] = (latest, before)
                continue
            for row, image in enumerate(write.images):
                before[image].copy_(self._older(before[image], latest[image], again[row]))
                latest[image].copy_(values[row])

    def _sized(self, name: str, total: int) -> tuple[Tensor, Tensor]:
        """The pair that is held, of sequences of `total` tokens."""
        before, latest = self.held[name]
        if latest.shape[self.axis] != total:
            shape = resized_shape(latest, self.axis, total)
            before = fill_resized(before.new_empty(shape), before, self.axis)
            latest = fill_resized(latest.new_empty(shape), latest, self.axis)
            self.held[name] = (before, latest)
        return before, latest

    def _older(self, before: Tensor, latest: Tensor, again: Tensor | None) -> Tensor:
        """What stands before new values: the latest, but for rows that are computed again at its
        sigma."""
        if again is None:
            return latest
        return torch.where(self._along_tokens(again, before.ndim), before, latest)

    def _along_tokens(self, values: Tensor, ndim: int) -> Tensor:
        """values (L,) shaped to broadcast against one image's rows."""
        shape = [1] * ndim
        shape[self.axis - 1] = -1
        return values.view(shape)

    def merge(self, merge: Merge) -> AttendedKV:
        return AttendedKV(
            self._merged("k", merge, merge.k),
            self._merged("v", merge, merge.v),
        )

    def _merged(self, name: str, merge: Merge, fresh: Tensor) -> Tensor:
        before, latest = self._sized(name, merge.total)
        for row, image in enumerate(merge.images):
            again = self.sigmas.again(image, merge.text, merge.total)
            self._take_in(before[image], latest[image], fresh[row], merge.rows[row], again)
        return self._predicted(before, latest, merge)

    def _take_in(
        self, before: Tensor, latest: Tensor, fresh: Tensor, rows: Tensor, again: Tensor | None
    ) -> None:
        """Computed tokens of one image become its latest at their rows."""
        axis = self.axis - 1
        older = latest.index_select(axis, rows)
        if again is not None:
            older = self._older(before.index_select(axis, rows), older, again[rows])
        before.index_copy_(axis, rows, older)
        latest.index_copy_(axis, rows, fresh)

    def _predicted(self, before: Tensor, latest: Tensor, merge: Merge) -> Tensor:
        """The images' rows at the current sigma, in one kernel an image or one for all; where a row
        was just computed its weight is 0, and it is what it is."""
        shape = [len(merge.images)] + [1] * (latest.ndim - 1)
        shape[self.axis] = merge.total
        weights = self.sigmas.lerp_weights(merge.images, merge.text, merge.total, latest.dtype)
        weights = weights.view(shape)
        if len(merge.images) == self.batch:
            return torch.lerp(latest, before, weights)
        out = latest.new_empty(len(merge.images), *latest.shape[1:])
        for row, image in enumerate(merge.images):
            torch.lerp(latest[image], before[image], weights[row], out=out[row])
        return out

    @property
    def tensors(self) -> list[Tensor]:
        return [t for pair in self.held.values() for t in pair]

    def drop(self) -> None:
        self.held.clear()
