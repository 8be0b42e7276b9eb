"""What is handed to a cache of keys and values, what the computed queries attend to, and what every
kind of cache answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...types import Reason

if TYPE_CHECKING:
    from .predicted import KVSigmas

Cond = tuple[int, Hashable]  # place of the conditioning's list (0: positive), and its uuid


@dataclass(frozen=True)
class Write:
    """All rows of one attention under one cond."""

    images: Sequence[int]
    """Numbers of the images that the rows belong to."""
    k: Tensor
    """One row an image, tokens along `axis`: (R, L, H * D) or (R, H, L, D)."""
    v: Tensor
    axis: int
    """Of tokens: 1 or 2."""
    text: int
    """Tokens before the image."""


@dataclass(frozen=True)
class Merge:
    """Rows of the computed tokens of one attention under one cond."""

    images: Sequence[int]
    k: Tensor
    """One row an image, M computed tokens along the axis that was written: (R, M, H * D) or
    (R, H, M, D)."""
    v: Tensor
    rows: Tensor
    """(R, M) places of the computed tokens in the whole sequence, sorted."""
    text: int
    """Tokens before the image in the whole sequence."""
    total: int
    """Tokens of the whole sequence."""


@dataclass(frozen=True)
class AttendedKV:
    """What the computed queries attend to."""

    k: Tensor
    """Keys of the whole sequence, or of the computed tokens only (`fresh_only`)."""
    v: Tensor
    fresh_only: bool = False


class KVEntry(ABC):
    """Keys and values of one attention under one cond, for the images of a batch; one class a
    `KVKind`."""

    predicts: ClassVar[bool] = False
    """Whether it needs the sigmas at which tokens were computed (`KVSigmas`)."""

    def __init__(self, batch: int, axis: int, sigmas: KVSigmas | None = None):  # noqa: ARG002
        self.batch = batch
        self.axis = axis

    @classmethod
    def bytes_of(cls, rows: int, width: int, pieces: int, element: int) -> int:  # noqa: ARG003
        """Memory of `rows` keys and values of `width` channels, `element` bytes each, in all
        attentions, conds and images together, which are `pieces`."""
        return 2 * rows * width * element

    @classmethod
    def keys_seen(cls, computed: int) -> int | None:  # noqa: ARG003
        """Image keys that `computed` tokens of an image attend to; None for those of all tokens."""
        return None

    @classmethod
    def missing(cls, device_type: str) -> Reason | None:  # noqa: ARG003
        """Why this kind cannot be kept for a model on this type of device."""
        return None

    @abstractmethod
    def write(self, write: Write) -> None:
        """Keep all rows of some images."""

    @abstractmethod
    def merge(self, merge: Merge) -> AttendedKV:
        """Take in computed tokens, and give what their queries attend to."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What is held."""

    @abstractmethod
    def drop(self) -> None:
        """Let go of what is held, for good."""


def rows_of_images(held: Tensor, images: Sequence[int]) -> Tensor:
    """Rows of these images; a list as an index would be copied to the device, and waited for, each
    time."""
    return held if len(images) == len(held) else torch.stack([held[i] for i in images])


def copy_rows(held: Tensor, images: Sequence[int], values: Tensor, asynchronous: bool) -> None:
    """Copy values (len(images), ...) into the rows of these images. asynchronous: between a device
    and pinned memory, where somebody waits before the host reads or writes it."""
    if len(images) == len(held):
        held.copy_(values, non_blocking=asynchronous)
        return
    for row, image in enumerate(images):
        held[image].copy_(values[row], non_blocking=asynchronous)


def fill_resized(out: Tensor, values: Tensor, axis: int) -> Tensor:
    """`out` with the last rows of `values` along `axis` at its end, zeros before them: the same
    image rows behind another number of text tokens (the host pads prompts that it joins)."""
    total, known = out.shape[axis], values.shape[axis]
    common = min(total, known)
    out.narrow(axis, 0, total - common).zero_()
    out.narrow(axis, total - common, common).copy_(values.narrow(axis, known - common, common))
    return out


def resized_shape(values: Tensor, axis: int, total: int) -> list[int]:
    """Shape of `values` with `total` rows along `axis`."""
    shape = list(values.shape)
    shape[axis] = total
    return shape
