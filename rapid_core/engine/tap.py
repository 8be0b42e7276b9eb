"""The one place where learned heads see a run: each image's latent, derivative and modulation
vector and, where a policy asks for them, the model's own tokens.

Optional: a run has at most one `Tap`, and only where a policy requires logits. What the host shows
comes in by `see_modulation` and `FeatureStore.add`, and goes out as `HeadInput`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping

import torch
from torch import Tensor

from ..reasons import ReasonCode
from ..types import Features, HeadInput, Reason

Shown = tuple[Tensor, Tensor]  # tokens (N, 2 C) and modulation (C,) of one condition


class Tap:
    """What heads see of one run.

    positive: uuids of the conditions of that name, whose modulation vector counts. features: where
    a policy looks at the model's own tokens."""

    def __init__(
        self, positive: Iterable[Hashable] = (), features: FeatureStore | None = None
    ) -> None:
        self.positive = frozenset(positive)
        self.features = features
        self.pooled: dict[int, Tensor] = {}
        """By image: its modulation vector (D,) at the first evaluation, float32."""
        self.wants_modulation = True
        """Whether the evaluation in progress is the first, whose modulation vector is kept."""

    def see_modulation(self, image: int, vector: Tensor) -> None:
        """Keep an image's modulation vector (..., D), the mean over what is before its last
        axis."""
        if self.wants_modulation:
            self.pooled[image] = vector.float().reshape(-1, vector.shape[-1]).mean(0)

    def head_input(
        self,
        image: int,
        latent: Tensor,
        last_latent: Tensor | None,
        derivative: Tensor | None,
        error: Tensor | None,
    ) -> HeadInput | None:
        """What heads see of an image before an evaluation; None before its first computed one, and
        where the latent has another shape than then.

        latent: (C, ...) the present one. last_latent: the one at the last computed evaluation.
        derivative: the latest guided one. error: 0-d, estimated for a fresh sigma."""
        if derivative is None or last_latent is None or last_latent.shape != latent.shape:
            return None
        return HeadInput(
            latent=latent,
            latent_change=latent - last_latent,
            derivative=derivative,
            pooled=self.pooled.get(image),
            features=None if self.features is None else self.features.latest.get(image),
            error=error,
        )

    def end(self, evaluation: int, images: Iterable[int], scale: float) -> Reason | None:
        """An evaluation is over: mix what conditions showed of the images that were computed, at a
        guidance scale. Why heads cannot see one of them; None where they can, or look at no
        tokens."""
        self.wants_modulation = False
        if self.features is None:
            return None
        reason = self.features.end(evaluation, images, scale)
        return None if reason is None else heads_blind(self.features.kind, reason)

    @property
    def bytes(self) -> int:
        """Memory of the features that are kept between evaluations."""
        return 0 if self.features is None else self.features.bytes

    def drop(self) -> None:
        """Let go of all tensors."""
        self.pooled.clear()
        self.features = None


def heads_blind(kind: str, why: Reason) -> Reason:
    """What a report says where heads cannot look."""
    return Reason(ReasonCode.HEADS_BLIND, kind=kind, why=why)


class FeatureStore:
    """Features of one run: of each image those of its last computed evaluation, nothing older.

    kind: of the heads that look. shape: of one latent (C, H, W). positive, negative: uuids of the
    conditions of these names."""

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        positive: Iterable[Hashable],
        negative: Iterable[Hashable],
    ) -> None:
        self.kind = kind
        self.shape = shape
        self.positive = frozenset(positive)
        self.negative = frozenset(negative)
        self.latest: dict[int, Features] = {}
        """By image."""
        self._shown: dict[int, dict[Hashable, Shown]] = {}
        """By image and uuid, of the evaluation in progress."""

    def add(self, image: int, uuid: Hashable, tokens: Tensor, modulation: Tensor) -> None:
        """What one condition made of an image: tokens (N, 2 C), modulation (C,)."""
        self._shown.setdefault(image, {})[uuid] = tokens, modulation

    def end(self, evaluation: int, images: Iterable[int], scale: float) -> Reason | None:
        """Mix what the conditions made of the images that were computed, at a guidance scale; the
        reason where that is not known of one of them."""
        reason = None
        for image in images:
            self.latest.pop(image, None)
            pair = self._pair(self._shown.get(image, {}), scale)
            if isinstance(pair, Reason):
                reason = pair
                continue
            positive, negative = pair
            tokens = guided(positive[0], negative[0], scale)
            modulation = guided(positive[1], negative[1], scale)
            self.latest[image] = Features(tokens, modulation, evaluation)
        self._shown = {}
        return reason

    def _pair(self, shown: Mapping[Hashable, Shown], scale: float) -> tuple[Shown, Shown] | Reason:
        """What the positive condition made of an image, and the negative one (the same without
        guidance); or why there is no such pair."""
        positive = [uuid for uuid in shown if uuid in self.positive]
        negative = [uuid for uuid in shown if uuid in self.negative]
        if not shown:
            return Reason(ReasonCode.NO_FULL_COND)
        if len(positive) != 1 or len(negative) > 1:
            return Reason(ReasonCode.COND_NUMBERS, positive=len(positive), negative=len(negative))
        if not negative and not math.isclose(scale, 1.0):
            return Reason(ReasonCode.NO_NEGATIVE_COND, scale=float(scale))
        return shown[positive[0]], shown[(negative or positive)[0]]

    @property
    def bytes(self) -> int:
        """Memory of the features that are kept between evaluations."""
        return sum(f.tokens.nbytes + f.modulation.nbytes for f in self.latest.values())


def guided(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """f_u + s (f_c - f_u) in float32, on the negative's device."""
    if positive is negative:
        return positive.to(torch.float32, copy=True)
    base = negative.float()
    return base + scale * (positive.to(base) - base)  # conditions may have been on two devices
