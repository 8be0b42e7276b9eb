"""Sprites of the emoji world: reading the drawings, scaling them, adding a soft shadow. No ComfyUI."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from demo.pack.emoji_words import OBJECTS

FOLDER = Path(__file__).parent / "sprites"
NATIVE = 256  # px, about: the drawings' own size
MARGIN = 0.15  # of a sprite's side, around it, for its shadow
SHADOW = 0.35  # strength where the shadow is full
DROP = 0.05  # of the side: the shadow lies so much lower
BLUR = 0.035  # of the side: standard deviation of the shadow's edge


class SpriteError(RuntimeError):
    """A drawing that is missing, damaged, or not as it must be."""


def file_of(name: str) -> Path:
    """File of an object's drawing."""
    return FOLDER / f"{name.replace(' ', '_')}.webp"


def read(name: str, path: Path | None = None) -> Image.Image:
    """An object's drawing, RGBA, cut to what is opaque. Raises SpriteError."""
    path = path or file_of(name)
    repair = (
        "Restore it from the repository (demo/emoji/sprites), or run demo/emoji/make_sprites.py."
    )
    if not path.is_file():
        raise SpriteError(f"Scenes: the drawing of {name!r}, {path}, is missing. {repair}")
    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise SpriteError(
            f"Scenes: the drawing of {name!r}, {path}, cannot be read ({error}). {repair}"
        ) from error
    if image.mode != "RGBA":
        raise SpriteError(
            f"Scenes: the drawing of {name!r}, {path}, has {len(image.getbands())} channels ({image.mode}), "
            f"accepted are 4 (RGBA). {repair}"
        )
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if box is None:
        raise SpriteError(f"Scenes: the drawing of {name!r}, {path}, has no opaque pixel. {repair}")
    return image.crop(box)


def _gauss(x: Tensor, deviation: float) -> Tensor:
    """Blur (H, W)."""
    half = max(1, int(3 * deviation + 0.5))
    at = torch.arange(-half, half + 1).float()
    kernel = (-at.square() / (2 * deviation**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    rows = F.conv1d(x[:, None], kernel, padding=half)[:, 0]
    return F.conv1d(rows.T[:, None].contiguous(), kernel, padding=half)[:, 0].T


@functools.lru_cache(maxsize=8192)
def sprite(index: int, side: int) -> Tensor:
    """An object whose longer side is `side` px, on a square canvas with a margin: (4, S, S) uint8.

    Three channels are what is added to a picture, the fourth is what is left of the picture below (its share is
    lost under the drawing and dimmed under the shadow), so one product and one sum draw it."""
    image = read(OBJECTS[index])
    factor = side / max(image.size)
    shape = [max(1, round(n * factor)) for n in image.size]
    image = image.resize(shape, Image.Resampling.BOX if factor < 0.5 else Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
        shape[1], shape[0], 4
    )
    pixels = pixels.movedim(-1, 0).float() / 255
    edge = round(side * MARGIN)
    canvas = torch.zeros(4, side + 2 * edge, side + 2 * edge)
    top = edge + (side - shape[1]) // 2
    left = edge + (side - shape[0]) // 2
    canvas[:, top : top + shape[1], left : left + shape[0]] = pixels
    alpha = canvas[3]
    shadow = _gauss(alpha.roll(round(side * DROP), 0), side * BLUR)
    left_over = (1 - alpha) * (1 - SHADOW * shadow)
    return (torch.cat((canvas[:3] * alpha, left_over[None])) * 255).round().byte()


@functools.lru_cache(maxsize=2)
def appearance(components: int) -> Tensor:
    """What objects look like, (objects, components) of about unit deviation: PCA of the drawings at 12 x 12 px.

    The word table starts from it, so that a model need not learn 256 drawings by heart before it can tell them apart:
    what looks alike has like words."""
    side = 12
    rows = []
    for index in range(len(OBJECTS)):
        canvas = sprite(index, 4 * side).float() / 255
        edge = round(4 * side * MARGIN)
        inner = canvas[:, edge : edge + 4 * side, edge : edge + 4 * side]
        rows.append(F.avg_pool2d(inner, 4).flatten())
    data = torch.stack(rows).double()
    data = data - data.mean(0)
    u, s, _ = torch.linalg.svd(data, full_matrices=False)
    kept = (
        u[:, :components] * s[:components].sqrt()
    )  # half whitened: small differences count, the large still more
    return (kept / kept.square().mean().sqrt()).float()
