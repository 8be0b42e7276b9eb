"""What a picture shows, by rule: the colour of its background, from the nearest palette tones."""

from __future__ import annotations

import torch
from torch import Tensor

from demo.emoji import scenes
from demo.emoji.scenes import PALETTE, Scenes, shade
from demo.pack.emoji_words import COLOURS


def colour_of_pixels(pictures: Tensor) -> Tensor:
    """The colour between whose two tones each pixel lies best; (B, 3, H, W) -> (B, H, W).

    Gradients and clouds mix the tones, so the distance is to the line between them, not to its ends."""
    first = PALETTE.to(pictures)
    along = shade(first) - first  # (9, 3)
    flat = pictures.movedim(1, -1).reshape(-1, 1, 3) - first  # (pixels, 9, 3)
    share = ((flat * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
    away = (flat - share[..., None] * along).square().sum(-1)
    return away.argmin(1).view(pictures.shape[0], *pictures.shape[2:])


def backgrounds(pictures: Tensor, chosen: Scenes) -> Tensor:
    """The most frequent colour (B,) of the pixels that no object covers; -1 where there is none."""
    # Every fourth pixel each way is enough.
    height, width = pictures.shape[-2:]
    seen = colour_of_pixels(pictures[..., ::4, ::4])
    free = ~scenes.cover(chosen, height, width)[..., ::4, ::4]
    votes = torch.stack(
        [((seen == colour) & free).sum((1, 2)) for colour in range(len(COLOURS))], 1
    )
    return torch.where(votes.sum(1) > 0, votes.argmax(1), -1)
