"""What a picture shows, by rule: the colour of each object and of the background, from the nearest
palette tones."""

from __future__ import annotations

import torch
from torch import Tensor

from demo import scenes
from demo.pack.words import COLOURS, MAX_OBJECTS
from demo.scenes import PALETTE, RADII, Scenes, shade

INSIDE = 0.1  # inner pixels lie at least this share of the radius inside the outline
OUTSIDE = 0.25  # and the background's this share outside of every object


def colour_of_pixels(pictures: Tensor) -> Tensor:
    """The colour whose tone, or second tone, is nearest to each pixel; (B, 3, H, W) -> (B, H,
    W)."""
    tones = torch.cat((PALETTE, shade(PALETTE))).to(pictures)  # (18, 3)
    flat = pictures.movedim(1, -1).reshape(-1, 3)
    nearest = torch.cdist(flat, tones).argmin(1) % len(COLOURS)
    return nearest.view(pictures.shape[0], *pictures.shape[2:])


def majority(colours: Tensor, mask: Tensor) -> Tensor:
    """The most frequent colour inside each mask, -1 where the mask is empty; both (N, H, W) ->
    (N,)."""
    votes = torch.stack([((colours == c) & mask).sum((1, 2)) for c in range(len(COLOURS))], 1)
    return torch.where(votes.sum(1) > 0, votes.argmax(1), -1)


def outlines(chosen: Scenes, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Signed distance of each pixel to each object in radii (N, H, W), negative inside; row and
    object index (N,)."""
    row, k = (torch.arange(MAX_OBJECTS) < chosen.count[:, None]).nonzero().unbind(1)
    short = min(height, width)
    centre = scenes.centres(chosen)[row, k][:, :, None, None]
    radius = RADII[chosen.size[row, k]].view(-1, 1, 1)
    dx = (((torch.arange(width) + 0.5) / width).view(1, 1, -1) - centre[:, 0]) * (width / short)
    dy = (((torch.arange(height) + 0.5) / height).view(1, -1, 1) - centre[:, 1]) * (height / short)
    dx, dy = dx.expand(-1, height, -1), dy.expand(-1, -1, width)
    if not len(row):
        return torch.zeros(0, height, width), row, k
    return scenes._distance(chosen.shape[row, k], dx, dy, radius) / radius, row, k


def colours_right(pictures: Tensor, chosen: Scenes) -> tuple[Tensor, Tensor]:
    """Whether each object (N,) and each background (B,) has the colour of its prompt."""
    seen = colour_of_pixels(pictures)
    distance, row, k = outlines(chosen, *pictures.shape[-2:])
    objects = majority(seen[row], distance < -INSIDE) == chosen.colour[row, k]
    free = torch.ones_like(seen, dtype=torch.bool)
    for i in range(len(row)):
        free[row[i]] &= distance[i] > OUTSIDE
    return objects, majority(seen, free) == chosen.ground_colour
