"""The model's own tokens, for policies that look at them: kept of each condition while an
evaluation goes on, mixed by guidance when it ends."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from ..types import Features


class FeatureStore:
    """Features of one run: of each image those of its last computed evaluation, nothing older.

    kind: of the heads that look; shape: of one latent (C, H, W); positive, negative: uuids of the
    conditions of these names."""

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        positive: Iterable[Hashable],
        negative: Iterable[Hashable],
    ):
        self.kind, self.shape = kind, shape
        self.positive, self.negative = frozenset(positive), frozenset(negative)
        self.streams: dict[
            tuple[int, Hashable], tuple[Tensor, Tensor]
        ] = {}  # of the evaluation in progress
        self.mixed: dict[int, Features] = {}

    def keep(self, image: int, uuid: Hashable, tokens: Tensor, modulation: Tensor) -> None:
        """What one condition made of an image: tokens (N, 2 C), modulation (C,)."""
        self.streams[image, uuid] = tokens, modulation

    def end(self, evaluation: int, images: Iterable[int], scale: float) -> str | None:
        """Mix what the conditions made of the images that were computed, at a guidance scale; the
        reason where that is not known of one of them."""
        said = None
        for i in images:
            self.mixed.pop(i, None)
            pair = self._pair(
                {uuid: seen for (image, uuid), seen in self.streams.items() if image == i}, scale
            )
            if isinstance(pair, str):
                said = pair
                continue
            tokens, modulation = (_mixed(*parts, scale) for parts in zip(*pair, strict=True))
            self.mixed[i] = Features(tokens, modulation, evaluation)
        self.streams = {}
        return said

    def _pair(self, seen: dict, scale: float) -> tuple | str:
        """What the positive condition made of an image, and the negative one (the same without
        guidance); or why there is no such pair."""
        positive, negative = (
            ([u for u in seen if u in group]) for group in (self.positive, self.negative)
        )
        if not seen:
            return "no condition was computed on all tokens"
        if len(positive) != 1 or len(negative) > 1:
            there = f"{len(positive)} positive and {len(negative)} negative conditions"
            return f"{there} were computed on all tokens, and one of each is understood"
        if not negative and not math.isclose(scale, 1.0):
            return f"at guidance {scale:g} no negative condition was computed on all tokens"
        return seen[positive[0]], seen[negative[0] if negative else positive[0]]

    @property
    def bytes(self) -> int:
        """Memory of the features that are kept between evaluations."""
        return sum(4 * (f.tokens.numel() + f.modulation.numel()) for f in self.mixed.values())


def _mixed(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    if positive is negative:
        return positive.to(torch.float32, copy=True)
    base = negative.float()
    return base + scale * (positive.to(base) - base)  # conditions may have been on two devices
