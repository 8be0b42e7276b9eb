"""Scenes of the emoji world, with the prompt that describes them. Torch, no ComfyUI.

A scene is a background (flat, gradient, noise or grid, in one of nine colours) and one to four objects, each with a
size and a place in a 3 x 3 grid; later objects stand in front of earlier ones, each throws a soft shadow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demo.emoji.sprites import MARGIN, sprite
from demo.pack.emoji_words import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    OBJECT_ROWS,
    OBJECTS,
    PAD,
    PLACES,
    SIZES,
    TOKENS,
    VOCABULARY,
    Item,
    Prompt,
    word_rows,
)

# sRGB, soft, but far enough apart that the colour of a region can be read back by rule.
PALETTE = torch.tensor(
    [
        [0.92, 0.30, 0.30],
        [1.00, 0.63, 0.25],
        [0.99, 0.88, 0.36],
        [0.42, 0.76, 0.40],
        [0.48, 0.87, 0.90],
        [0.30, 0.49, 0.92],
        [0.66, 0.44, 0.84],
        [0.97, 0.97, 0.97],
        [0.11, 0.11, 0.13],
    ]
)
SIDES = torch.tensor(
    [0.25, 0.375, 0.75]
)  # longer side of an object, of the shorter side of the picture
SPREAD = torch.tensor(
    [0.3125, 0.3125, 0.125]
)  # distance between places of the grid, by size, in sides
CELL = 8  # px: objects stand on the cells of the latents, so that one drawing has one pattern of latents
JITTER = 1 / 32  # of the shorter side: an object's place varies so much, in whole cells
COUNT_WEIGHTS = torch.tensor([0.0, 0.45, 0.27, 0.17, 0.11])  # of 0 .. 4 objects
HUGE_ALONE = 0.6  # share of single objects that are huge
HUGE_BEHIND = 0.2  # share of scenes of two and three objects with a huge one behind small ones
SPLITS = ("train", "dev", "test")


def shade(colour: Tensor) -> Tensor:
    """The second tone of a colour, used by backgrounds: darker, or lighter where the colour is dark."""
    dark = colour.mean(-1, keepdim=True) < 0.2
    return torch.where(dark, colour + 0.25 * (1 - colour), 0.7 * colour)


@dataclass(frozen=True)
class Scenes:
    """A batch of B scene descriptions; object columns beyond `count` are ignored."""

    count: Tensor  # (B,)
    object: Tensor  # (B, 4) and so on: indices into the word lists
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

    @classmethod
    def of_prompts(cls, prompts: Sequence[Prompt]) -> Scenes:
        """The scenes that parsed prompts ask for."""
        count = torch.tensor([len(prompt.items) for prompt in prompts])
        columns = {
            name: torch.zeros(len(prompts), MAX_OBJECTS, dtype=torch.long)
            for name in ("object", "size", "place")
        }
        for row, prompt in enumerate(prompts):
            for k, item in enumerate(prompt.items):
                for name, column in columns.items():
                    column[row, k] = getattr(item, name)
        ground = torch.tensor([prompt.ground for prompt in prompts])
        return cls(
            count,
            **columns,
            ground=ground,
            ground_colour=torch.tensor([prompt.colour for prompt in prompts]),
        )

    def parsed(self) -> list[Prompt]:
        """The prompts as `words.parse` gives them."""
        prompts = []
        for row in range(len(self)):
            items = tuple(
                Item(int(self.size[row, k]), int(self.object[row, k]), int(self.place[row, k]))
                for k in range(int(self.count[row]))
            )
            prompts.append(Prompt(int(self.ground[row]), int(self.ground_colour[row]), items))
        return prompts

    def prompts(self) -> list[str]:
        """One prompt a scene, e.g. 'flat red background, big lobster top left'."""
        texts = []
        for prompt in self.parsed():
            parts = [f"{BACKGROUNDS[prompt.ground]} {COLOURS[prompt.colour]} background"]
            parts += [
                f"{SIZES[item.size]} {OBJECTS[item.object]} {PLACES[item.place]}"
                for item in prompt.items
            ]
            texts.append(", ".join(parts))
        return texts

    def bag(self) -> Tensor:
        """Word counts (B, TOKENS, words + 1) as `words.bag` counts those of the prompts, without the text between."""
        pair, single = _phrase_tables()
        counts = torch.zeros(len(self), TOKENS, PAD + 1)
        counts[:, 0] = single[self.ground, self.ground_colour]
        for k in range(MAX_OBJECTS):
            phrase = pair[self.size[:, k], self.place[:, k]].clone()
            phrase[torch.arange(len(self)), OBJECT_ROWS[self.object[:, k]]] += 1
            counts[:, k + 1] = phrase
        empty = torch.arange(-1, TOKENS - 1) >= self.count[:, None]
        counts[empty] = torch.nn.functional.one_hot(torch.tensor(PAD), PAD + 1).float()
        return counts


@functools.cache
def _phrase_tables() -> tuple[Tensor, Tensor]:
    """Word counts by (size, place) without an object, and by (kind, colour) of the background."""
    pair = torch.zeros(len(SIZES), len(PLACES), PAD + 1)
    single = torch.zeros(len(BACKGROUNDS), len(COLOURS), PAD + 1)
    for size in range(len(SIZES)):
        for place in range(len(PLACES)):
            pair[size, place, word_rows(Prompt(0, 0, (Item(size, 0, place),)))[1]] = 1
    pair[..., VOCABULARY.index(OBJECTS[0])] = 0
    for ground in range(len(BACKGROUNDS)):
        for colour in range(len(COLOURS)):
            single[ground, colour, word_rows(Prompt(ground, colour, ()))[0]] = 1
    return pair, single


@functools.cache
def combination_split() -> Tensor:
    """Split of each (object, place, kind of background): 0 train (80 %), 1 dev, 2 test; fixed for the weights' life."""
    shape = (len(OBJECTS), len(PLACES), len(BACKGROUNDS))
    order = torch.randperm(
        shape[0] * shape[1] * shape[2], generator=torch.Generator().manual_seed(2027)
    )
    split = torch.zeros(len(order), dtype=torch.long)
    tenth = len(order) // 10
    split[order[:tenth]] = 2
    split[order[tenth : 2 * tenth]] = 1
    return split.view(shape)


def sample(n: int, generator: torch.Generator, split: str = "train") -> Scenes:
    """Draw n scene descriptions of a split.

    Scenes of `train` hold only train combinations of object, place and kind of background; those of `dev` and `test`
    have a first object of their own split, all others are train combinations. No object stands twice in a scene."""

    def chance() -> Tensor:
        return torch.rand(n, generator=generator)

    count = torch.multinomial(COUNT_WEIGHTS, n, replacement=True, generator=generator)
    size = (torch.rand(n, MAX_OBJECTS, generator=generator) < 0.65).long()
    alone = (count == 1) & (chance() < HUGE_ALONE)
    behind = ((count == 2) | (count == 3)) & (chance() < HUGE_BEHIND)
    size[behind] = 0
    size[alone | behind, 0] = 2
    place = torch.rand(n, len(PLACES), generator=generator).argsort(dim=1)[:, :MAX_OBJECTS]
    ground = torch.randint(len(BACKGROUNDS), (n,), generator=generator)
    wanted = torch.zeros(n, MAX_OBJECTS, dtype=torch.long)
    wanted[:, 0] = SPLITS.index(split)
    allowed = (
        combination_split()[:, place, ground[:, None]].movedim(0, -1) == wanted[..., None]
    )  # (n, 4, objects)
    chosen = []
    for k in range(MAX_OBJECTS):
        column = torch.multinomial(allowed[:, k].float(), 1, generator=generator)
        allowed.scatter_(2, column[:, None].expand(-1, MAX_OBJECTS, 1), False)
        chosen.append(column[:, 0])
    colour = torch.randint(len(COLOURS), (n,), generator=generator)
    return Scenes(count, torch.stack(chosen, 1), size, place, ground, colour)


def centres(scenes: Scenes) -> Tensor:
    """Object centres (B, 4, 2) as (x, y) in units of the sides; the larger an object, the nearer the middle."""
    grid = torch.stack((scenes.place % 3, scenes.place // 3), -1).float()
    return 0.5 + (grid - 1) * SPREAD[scenes.size][..., None]


@functools.lru_cache(maxsize=8)
def _noise_bank(height: int, width: int) -> Tensor:
    """64 cloudy fields of unit deviation, periodic, so that a random roll gives a new one; (64, H, W)."""
    generator = torch.Generator().manual_seed(height * 10007 + width)
    fy = torch.fft.fftfreq(height)[:, None] * height
    fx = torch.fft.rfftfreq(width)[None] * width
    amplitude = (fy.square() + fx.square()).clamp_min(1) ** -0.8
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


def _background(scenes: Scenes, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W)."""
    n = len(scenes)
    ys = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
    xs = ((torch.arange(width) + 0.5) / width).view(1, 1, -1)
    base = PALETTE[scenes.ground_colour]
    second = shade(base)
    weight = torch.zeros(n, height, width)
    across = torch.rand(n, generator=generator) < 0.5
    gradient, noise, grid = (scenes.ground == kind for kind in (1, 2, 3))
    weight[gradient & across] = xs
    weight[gradient & ~across] = ys
    weight[noise] = (
        (0.45 + 0.4 * _noise(int(noise.sum()), height, width, generator)).clamp(0, 1)
        if noise.any()
        else 0.0
    )
    weight[grid] = (
        (((xs * 8 + 0.5) % 1 - 0.5).abs() < 0.08) | (((ys * 8 + 0.5) % 1 - 0.5).abs() < 0.08)
    ).float()
    weight = weight[:, None]
    return base[:, :, None, None] * (1 - weight) + second[:, :, None, None] * weight


def jitter(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random moves of objects (n, 4, 2) as (x, y) in pixels, whole cells."""
    reach = int(JITTER * min(height, width) / CELL)
    return CELL * torch.randint(-reach, reach + 1, (n, MAX_OBJECTS, 2), generator=generator)


def corners(scenes: Scenes, height: int, width: int, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Left upper corners (B, 4, 2) as (x, y) and sides (B, 4) of the objects' squares, in pixels."""
    side = (SIDES[scenes.size] * min(height, width)).round()
    corner = centres(scenes) * torch.tensor([width, height]) - side[..., None] / 2
    return ((corner / CELL).round() * CELL + moves).long(), side.long()


def draw(
    scenes: Scenes, height: int, width: int, generator: torch.Generator, moves: Tensor | None = None
) -> Tensor:
    """Pictures (B, 3, H, W) in 0 .. 1. `moves` of the objects (`jitter`) are drawn at random unless given."""
    pictures = _background(scenes, height, width, generator)
    if moves is None:
        moves = jitter(len(scenes), height, width, generator)
    corner, side = (part.tolist() for part in corners(scenes, height, width, moves))
    for row, prompt in enumerate(scenes.parsed()):
        for k, item in enumerate(prompt.items):
            (left, top), edge = corner[row][k], round(side[row][k] * MARGIN)
            _paste(pictures[row], sprite(item.object, side[row][k]), left - edge, top - edge)
    return pictures.clamp_(0, 1)  # roundings of drawing and remainder may add up to a little more


def _paste(picture: Tensor, stamp: Tensor, left: int, top: int) -> None:
    """Draw a sprite into a picture (3, H, W) in place; what lies outside is cut off."""
    height, width = picture.shape[-2:]
    y0, y1 = max(0, top), min(height, top + stamp.shape[1])
    x0, x1 = max(0, left), min(width, left + stamp.shape[2])
    part = stamp[:, y0 - top : y1 - top, x0 - left : x1 - left].float().mul_(1 / 255)
    picture[:, y0:y1, x0:x1].mul_(part[3]).add_(part[:3])


def cover(scenes: Scenes, height: int, width: int, moves: Tensor | None = None) -> Tensor:
    """Whether an object's square lies over each pixel, (B, H, W) bool; without `moves`, wherever it may stand."""
    corner, side = corners(scenes, height, width, torch.zeros(1) if moves is None else moves)
    reach = int(JITTER * min(height, width)) if moves is None else 0
    first, last = corner - reach, corner + side[..., None] + reach
    there = (torch.arange(MAX_OBJECTS) < scenes.count[:, None])[..., None]
    xs, ys = torch.arange(width), torch.arange(height)
    inside_x = (xs >= first[..., :1]) & (xs < last[..., :1])  # (B, 4, W)
    inside_y = (ys >= first[..., 1:]) & (ys < last[..., 1:]) & there
    return (inside_y[..., None] & inside_x[..., None, :]).any(1)
