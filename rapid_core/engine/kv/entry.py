"""What the computed queries attend to, and how it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttendedKV:
    """What the computed queries attend to. bias (rows, P) or None: where given, k and v are the
    fresh tokens followed by P others with this bias on their logits; without it they are the whole
    sequence. fresh_only: nothing but the fresh tokens."""

    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    fresh_only: bool = False


class KVEntry(Protocol):
    """Keys and values of one attention in one stream, for the images of a batch."""

    def write(self, images: Sequence[int], k: Tensor, v: Tensor, text: int) -> None:
        """Keep all rows of these images, `text` of them before the image."""
        ...

    def merge(
        self, images: Sequence[int], k: Tensor, v: Tensor, rows: Tensor, text: int, total: int
    ) -> AttendedKV:
        """Take fresh tokens, which stand at `rows` (len(images), M) of a sequence of `total` with
        `text` before the image, and give what their queries attend to."""
        ...

    @property
    def tensors(self) -> list[Tensor]:
        """What is held."""
        ...

    def drop(self) -> None:
        """Let go of what is held, for good."""
        ...


def pick(kept: Tensor, images: Sequence[int]) -> Tensor:
    """Rows of these images; a list as an index would be copied to the device, and waited for, each
    time."""
    return kept if len(images) == len(kept) else torch.stack([kept[i] for i in images])


def put(kept: Tensor, images: Sequence[int], values: Tensor) -> None:
    """Copy values (len(images), ...) into the rows of these images."""
    if len(images) == len(kept):
        kept.copy_(values, non_blocking=True)
        return
    for row, image in enumerate(images):
        kept[image].copy_(values[row], non_blocking=True)


def resized(values: Tensor, axis: int, total: int) -> Tensor:
    """The same image rows behind another number of text tokens: the host pads prompts that it
    joins."""
    extra = total - values.shape[axis]
    if extra < 0:
        return values.narrow(axis, -extra, total).clone()
    shape = list(values.shape)
    shape[axis] = extra
    return torch.cat((values.new_zeros(shape), values), axis)
