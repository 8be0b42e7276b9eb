"""Sizes and settings of a Lumina-Next network; what of them its weights show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

CLASS = "LuminaNextDiT2DModel"  # in `_class_name` of a published config.json
BLOCK = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class LuminaNextConfig:
    """A network. Without defaults stands what weights always show."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    """Heads of keys and values; each serves heads / kv_heads heads of queries."""
    feed_forward: int
    """Channels inside the feed-forward part of a block."""
    text_width: int
    """Channels of a text token."""
    channels: int = 4
    """Of the latent."""
    patch_size: int = 2
    learn_sigma: bool = True
    """Whether there are twice as many output channels, of which the second half is not used."""
    qk_norm: bool = True
    norm_eps: float = 1e-5
    sample_size: int = 128
    """Latent pixels along a side of the pictures that the network was trained on."""
    scaling_watershed: float = 1.0
    """Time (0 noise, 1 picture) before which positions of larger pictures are interpolated, and
    after which the base of their frequencies is raised."""
    proportional: bool = True
    """Whether attention is sharpened for more tokens than the network was trained on, and softened
    for fewer."""

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.heads

    @property
    def condition_size(self) -> int:
        """Channels of the embedding of time and text that modulates the blocks."""
        return min(self.hidden_size, 1024)

    @property
    def base_tokens(self) -> int:
        """Image tokens of the pictures that the network was trained on, as published: always
        patches of 2."""
        return (self.sample_size // 2) ** 2


def config_of(weights: Mapping[str, Tensor], beside: Mapping[str, Any]) -> LuminaNextConfig:
    """The network of weights in the published layout. beside: its config.json, or nothing; of it
    count what no shape shows (patch size, epsilon, size of training pictures)."""
    blocks = {int(found[1]) for name in weights if (found := BLOCK.match(name))}
    hidden, inputs = weights["patch_embedder.proj.weight"].shape
    patch = int(beside.get("patch_size") or 2)
    heads = weights["layers.0.gate"].shape[0]
    kv_size, text_width = weights["layers.0.attn2.to_k.weight"].shape
    return LuminaNextConfig(
        hidden_size=hidden,
        layers=max(blocks) + 1,
        heads=heads,
        kv_heads=kv_size * heads // hidden,
        feed_forward=weights["layers.0.feed_forward.linear_1.weight"].shape[0],
        text_width=text_width,
        channels=inputs // patch**2,
        patch_size=patch,
        learn_sigma=weights["norm_out.linear_2.weight"].shape[0] == 2 * inputs,
        qk_norm="layers.0.attn1.norm_q.weight" in weights,
        norm_eps=float(beside.get("norm_eps") or 1e-5),
        sample_size=int(beside.get("sample_size") or 128),
    )
