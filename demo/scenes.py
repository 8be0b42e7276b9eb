"""Scenes drawn by code, with the prompt that describes them. Vectorised torch, no ComfyUI.

A scene is a background (flat, gradient, noise or grid, in one of nine colours) and 0 to 6 objects,
each with a size, colour, texture, shape and place in a 3 x 3 grid. Natural roughness (1/f noise,
specks) is added to most.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demo.pack.words import BACKGROUNDS, COLOURS, MAX_OBJECTS, PLACES, SHAPES, SIZES, TEXTURES

# sRGB, chosen far apart, so that the colour of a region can be read back by rule.
PALETTE = torch.tensor(
    [
        [0.90, 0.12, 0.12],
        [1.00, 0.55, 0.05],
        [0.98, 0.92, 0.15],
        [0.10, 0.62, 0.20],
        [0.15, 0.85, 0.90],
        [0.12, 0.25, 0.90],
        [0.60, 0.15, 0.75],
        [0.97, 0.97, 0.97],
        [0.04, 0.04, 0.04],
    ]
)
RADII = torch.tensor([0.105, 0.155, 0.28])  # of the shorter side
COUNT_WEIGHTS = torch.tensor([0.06, 0.30, 0.20, 0.15, 0.12, 0.09, 0.08])  # of 0 .. 6 objects
SPLITS = ("train", "dev", "test")


def shade(colour: Tensor) -> Tensor:
    """The second tone of a colour, used by textures: darker, or lighter where the colour is
    dark."""
    dark = colour.mean(-1, keepdim=True) < 0.2
    return torch.where(dark, colour + 0.33 * (1 - colour), 0.55 * colour)


@dataclass(frozen=True)
class Scenes:
    """A batch of B scene descriptions; object columns beyond `count` are ignored."""

    count: Tensor  # (B,)
    colour: Tensor  # (B, 6) and so on: indices into the word lists
    shape: Tensor
    texture: Tensor
    size: Tensor
    place: Tensor
    ground: Tensor  # (B,)
    ground_colour: Tensor  # (B,)

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows) -> Scenes:
        """The chosen rows."""
        return Scenes(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, parts: Sequence[Scenes]) -> Scenes:
        """The rows of all parts."""
        return cls(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in cls.__dataclass_fields__
            )
        )

    def prompts(self) -> list[str]:
        """One prompt a scene, e.g. 'flat red background, big blue striped circle top left'."""
        return [self._prompt(row) for row in range(len(self))]

    def _prompt(self, row: int) -> str:
        parts = [f"{BACKGROUNDS[self.ground[row]]} {COLOURS[self.ground_colour[row]]} background"]
        for k in range(int(self.count[row])):
            words = (
                SIZES[self.size[row, k]],
                COLOURS[self.colour[row, k]],
                TEXTURES[self.texture[row, k]],
            )
            parts.append(" ".join((*words, SHAPES[self.shape[row, k]], PLACES[self.place[row, k]])))
        return ", ".join(parts)


@functools.cache
def combination_split() -> Tensor:
    """Split of each (colour, texture, shape): 0 train (80 %), 1 dev, 2 test; fixed for the life of
    the weights."""
    order = torch.randperm(
        len(COLOURS) * len(TEXTURES) * len(SHAPES), generator=torch.Generator().manual_seed(2026)
    )
    split = torch.zeros(len(order), dtype=torch.long)
    split[order[: len(order) // 10]] = 2
    split[order[len(order) // 10 : len(order) // 5]] = 1
    return split.view(len(COLOURS), len(TEXTURES), len(SHAPES))


def sample(
    n: int, generator: torch.Generator, split: str = "train", crowded: float = 1.0
) -> Scenes:
    """Draw n scene descriptions of a split. `crowded` scales the share of scenes with more than two
    objects.

    Scenes of `train` hold only train combinations; those of `dev` and `test` hold at least one of
    their own (empty scenes apart) and none of the other's."""

    def pick(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (n, *shape), generator=generator)

    weights = COUNT_WEIGHTS.clone()
    weights[3:] *= crowded
    count = torch.multinomial(weights, n, replacement=True, generator=generator)
    ground_colour = pick(len(COLOURS))
    colour = (ground_colour[:, None] + 1 + pick(len(COLOURS) - 1, MAX_OBJECTS)) % len(COLOURS)
    texture, shape = _held_out(colour, SPLITS.index(split), generator)
    size = pick(2, MAX_OBJECTS)
    alone = (count == 1) & (torch.rand(n, generator=generator) < 0.5)
    size[alone, 0] = 2
    place = torch.rand(n, len(PLACES), generator=generator).argsort(dim=1)[:, :MAX_OBJECTS]
    return Scenes(count, colour, shape, texture, size, place, pick(len(BACKGROUNDS)), ground_colour)


def _held_out(colour: Tensor, split: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texture and shape for each object so that its combination is allowed: the first object of a
    dev or test scene is of that split where its colour has one, all others are train
    combinations."""
    table = combination_split().flatten(1)[colour.flatten()]  # (B * 6, textures * shapes)
    own = (table == split).float()
    train = (table == 0).float()
    first = torch.zeros(colour.shape, dtype=torch.bool)
    first[:, 0] = True
    use_own = first.flatten() & (own.sum(1) > 0)
    choice = torch.multinomial(
        torch.where(use_own[:, None], own, train), 1, generator=generator
    ).view(colour.shape)
    return choice // len(SHAPES), choice % len(SHAPES)


def centres(scenes: Scenes) -> Tensor:
    """Object centres (B, 6, 2) as (x, y) in units of the picture's sides; huge objects stand nearer
    the middle."""
    column, row = scenes.place % 3, scenes.place // 3
    grid = torch.stack((column, row), -1).float()
    spread = torch.where(scenes.size == 2, 0.17, 1 / 3)[..., None]
    return 0.5 + (grid - 1) * spread


@functools.lru_cache(maxsize=8)
def _noise_bank(height: int, width: int) -> Tensor:
    """64 fields of 1/f noise of unit deviation, periodic, so that a random roll gives a new one;
    (64, H, W)."""
    generator = torch.Generator().manual_seed(height * 10007 + width)
    fy = torch.fft.fftfreq(height)[:, None] * height
    fx = torch.fft.rfftfreq(width)[None] * width
    amplitude = 1 / (fy.square() + fx.square()).sqrt().clamp_min(1)
    spectrum = torch.fft.rfft2(torch.randn(64, height, width, generator=generator)) * amplitude
    field = torch.fft.irfft2(spectrum, s=(height, width))
    field = field - field.mean((1, 2), keepdim=True)
    return field / field.std((1, 2), keepdim=True)


def _noise(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    bank = _noise_bank(height, width)
    pick = torch.randint(len(bank), (n,), generator=generator).tolist()
    dy = torch.randint(height, (n,), generator=generator).tolist()
    dx = torch.randint(width, (n,), generator=generator).tolist()
    return torch.stack([bank[p].roll((y, x), (0, 1)) for p, y, x in zip(pick, dy, dx, strict=True)])


def _background(
    scenes: Scenes, ys: Tensor, xs: Tensor, noise: Tensor, generator: torch.Generator
) -> Tensor:
    """(B, 3, H, W)."""
    base = PALETTE[scenes.ground_colour]
    second = shade(base)
    across = torch.rand(len(scenes), generator=generator)[:, None, None] < 0.5
    gradient = torch.where(across, xs, ys).expand(noise.shape)
    lines = (
        (((xs * 8 + 0.5) % 1 - 0.5).abs() < 0.1) | (((ys * 8 + 0.5) % 1 - 0.5).abs() < 0.1)
    ).float()
    weights = torch.stack(
        (
            torch.zeros_like(noise),
            gradient,
            (0.45 + 0.4 * noise).clamp(0, 1),
            lines.expand_as(noise),
        )
    )
    weight = weights[scenes.ground, torch.arange(len(scenes))][:, None]
    return base[:, :, None, None] * (1 - weight) + second[:, :, None, None] * weight


def _distance(shape: Tensor, dx: Tensor, dy: Tensor, r: Tensor) -> Tensor:
    """Signed distance (negative inside) to one shape a row; dx, dy (B, H, W), r (B, 1, 1)."""
    ax, ay = dx.abs(), dy.abs()
    radial = (dx.square() + dy.square()).sqrt()
    square = torch.maximum(ax, ay) - 0.86 * r
    triangle = torch.maximum(0.894 * ax - 0.447 * (dy + r), dy - 0.8 * r)
    arm = 0.34 * r
    cross = torch.minimum(torch.maximum(ax - arm, ay - r), torch.maximum(ay - arm, ax - r))
    ring = (radial - 0.74 * r).abs() - 0.26 * r
    return torch.stack((radial - r, square, triangle, cross, ring))[shape, torch.arange(len(shape))]


def _texture(texture: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Weight of the second tone (B, H, W), 0 or 1; the period is a ninth of the picture."""
    u, v = (xs * 9) % 1, (ys * 9) % 1
    stripes = (((xs + ys) * 7) % 1 < 0.5).float()
    checks = ((u < 0.5) ^ (v < 0.5)).float()
    dots = (((u - 0.5).square() + (v - 0.5).square()) < 0.09).float()
    return torch.stack((torch.zeros_like(checks), stripes, checks, dots))[
        texture, torch.arange(len(texture))
    ]


def draw(
    scenes: Scenes, height: int, width: int, generator: torch.Generator, rough: bool = True
) -> Tensor:
    """Pictures (B, 3, H, W) in 0 .. 1. `rough` adds 1/f noise of random strength and specks."""
    n = len(scenes)
    ys = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
    xs = ((torch.arange(width) + 0.5) / width).view(1, 1, -1)
    noise = _noise(n, height, width, generator)
    picture = _background(scenes, ys, xs, noise, generator)
    if rough:
        picture = _specks(picture, generator)
    aspect = torch.tensor([width, height]) / min(height, width)
    middle = centres(scenes) + (torch.rand(n, MAX_OBJECTS, 2, generator=generator) - 0.5) * 0.02
    for k in range(int(scenes.count.max()) if n else 0):
        rows = (scenes.count > k).nonzero().flatten()
        dx = (xs - middle[rows, k, 0, None, None]) * aspect[0]
        dy = (ys - middle[rows, k, 1, None, None]) * aspect[1]
        dx, dy = dx.expand(-1, height, -1), dy.expand(-1, -1, width)
        radius = RADII[scenes.size[rows, k]].view(-1, 1, 1)
        cover = (0.5 - _distance(scenes.shape[rows, k], dx, dy, radius) * min(height, width)).clamp(
            0, 1
        )[:, None]
        tone = _texture(scenes.texture[rows, k], dx + 2, dy + 2)[:, None]
        colour = PALETTE[scenes.colour[rows, k]][:, :, None, None]
        paint = colour * (1 - tone) + shade(colour.movedim(1, -1)).movedim(-1, 1) * tone
        picture[rows] = picture[rows] * (1 - cover) + paint * cover
    if rough:
        strength = torch.rand(n, 1, 1, 1, generator=generator).square() * 0.06
        picture = picture + strength * _noise(n, height, width, generator)[:, None]
    return picture.clamp(0, 1)


def _specks(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Clutter: up to 24 soft dots a picture, in half of them, each in a random grey."""
    n, _, height, width = picture.shape
    for row in (torch.rand(n, generator=generator) < 0.5).nonzero().flatten().tolist():
        number = int(torch.randint(4, 25, (1,), generator=generator))
        half = max(1, height // 64)
        ys = torch.randint(half, height - half, (number,), generator=generator).tolist()
        xs = torch.randint(half, width - half, (number,), generator=generator).tolist()
        greys = torch.rand(number, generator=generator).tolist()
        for y, x, grey in zip(ys, xs, greys, strict=True):
            patch = picture[row, :, y - half : y + half, x - half : x + half]
            patch.mul_(0.4).add_(0.6 * grey)
    return picture
