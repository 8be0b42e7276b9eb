"""Frozen networks that say what a picture looks like, for the discriminator to tell pictures by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from training.clip import Clip
from training.rewards.judged import Judged

SIDE = 128  # px of a picture's shorter side that random features are taken at, about
WIDTHS = (3, 16, 32, 64)
FLOOR = 1e-2  # below which responses are alike
FEATURES = ("clip", "judge", "random")


class Features(Protocol):
    """name: said in metadata; width: numbers a picture."""

    name: str
    width: int

    def __call__(self, pictures: Tensor) -> Tensor:
        """(n, width) of pictures (n, 3, H, W) in 0 .. 1."""
        ...


class ClipFeatures:
    """CLIP's picture embeddings, as in RAPID3."""

    def __init__(self, clip: Clip | None = None):
        self.clip = clip or Clip("discriminator on CLIP's features")
        self.name = self.clip.name
        self.width = int(self.clip.model.config.projection_dim)

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.clip.pictures(pictures)


class JudgeFeatures:
    """What the demo's training judge sees in the nine places of a picture."""

    name = "the demo's training judge"

    def __init__(self, prompts: Sequence[str]) -> None:
        """prompts: by which the world is known."""
        judged = Judged()
        judged.check(prompts)
        self.network = judged.network
        self.features = judged.world.features
        self.width = self(torch.zeros(1, 3, SIDE, SIDE)).shape[1]

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.features(self.network, pictures).flatten(1)


class RandomFeatures:
    """Convolutions with fixed random weights, averaged over 3 x 3 parts of the picture: no network
    has to be there. In logarithms, so that a small change counts by its share of what is there,
    whatever the picture shows."""

    name = "fixed random convolutions"
    width = 9 * WIDTHS[-1]

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2509)
        self.kernels = [
            torch.randn(n_out, n_in, 3, 3, generator=generator) * (2 / (9 * n_in)) ** 0.5
            for n_in, n_out in zip(WIDTHS[:-1], WIDTHS[1:], strict=True)
        ]

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        factor = min(pictures.shape[-2:]) // SIDE
        x = F.avg_pool2d(pictures, factor) if factor > 1 else pictures
        for kernel in self.kernels:
            x = F.relu(F.conv2d(x, kernel, stride=2, padding=1))
        return (F.adaptive_avg_pool2d(x, 3).flatten(1) + FLOOR).log()


def features_for(name: str, prompts: Sequence[str] = ()) -> Features:
    """Features of a name of `FEATURES`; of "auto" CLIP's where it is here, else random ones. prompts:
    of the training. Raises ValueError."""
    if name not in ("auto", *FEATURES):
        raise ValueError(f"features {name}: give one of auto, {', '.join(FEATURES)}")
    if name in ("judge", "random"):
        return JudgeFeatures(prompts) if name == "judge" else RandomFeatures()
    try:
        return ClipFeatures()
    except ValueError:
        if name == "clip":
            raise
        return RandomFeatures()
