"""What a calibration came to as a picture: closeness against speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .plans import Chosen

WIDTH, HEIGHT = 720, 480  # pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 50, 60  # margins in pixels
FONT = 16
INK, GRID = (40, 40, 40), (225, 225, 225)
OWN, DEFAULT = (31, 119, 180), (160, 160, 160)
ROOM = 2.0  # dB above and below all points
MOST_LINES = 8  # of the grid, from below to above

Point = tuple[float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(chosen: Sequence[Chosen], title: str) -> Tensor:
    """(1, H, W, 3) float32 in 0 .. 1: decibels of each speed-up, and those without a policy where they
    are known."""
    own = [(one.speedup, one.psnr) for one in chosen if one.psnr is not None]
    default = [(one.speedup, one.psnr_default) for one in chosen if one.psnr_default is not None]
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    font = _font()
    pen.text((LEFT, 14), title, INK, font)
    if own:
        axes = _Axes([*own, *default])
        axes.draw(pen, font, [one.speedup for one in chosen])
        for points, colour in ((default, DEFAULT), (own, OWN)):
            places = [axes.place(point) for point in points]
            pen.line(places, colour, 3)
            for x, y in places:
                pen.ellipse((x - 5, y - 5, x + 5, y + 5), colour)
        for i, (label, colour) in enumerate((("this file", OWN), ("without a policy", DEFAULT))):
            y = TOP + 10 + 24 * i
            pen.line((WIDTH - 190, y + 9, WIDTH - 160, y + 9), colour, 3)
            pen.text((WIDTH - 150, y), label, INK, font)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]


class _Axes:
    """Where points lie on the picture."""

    def __init__(self, points: Sequence[Point]):
        xs, ys = zip(*points, strict=True)
        self.low_x, self.high_x = min(xs) - 0.2, max(xs) + 0.2
        self.low_y, self.high_y = min(ys) - ROOM, max(ys) + ROOM

    def place(self, point: Point) -> Point:
        """Pixels of a point (speed-up, dB)."""
        across = (point[0] - self.low_x) / (self.high_x - self.low_x)
        up = (point[1] - self.low_y) / (self.high_y - self.low_y)
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def draw(self, pen: ImageDraw.ImageDraw, font: Font, xs: Sequence[float]) -> None:
        """The grid and its numbers. xs: speed-ups."""
        sizes = (1, 2, 5, 10, 20, 50)
        span = self.high_y - self.low_y
        step = next((size for size in sizes if span / size <= MOST_LINES), sizes[-1])
        first = -int(-self.low_y // step) * step
        for decibels in np.arange(first, self.high_y, step):
            (left, y), (right, _) = (
                self.place((x, float(decibels))) for x in (self.low_x, self.high_x)
            )
            pen.line((left, y, right, y), GRID)
            pen.text((12, y - 9), f"{decibels:.0f} dB", INK, font)
        for speedup in xs:
            x, y = self.place((speedup, self.low_y))
            pen.line((x, TOP, x, y), GRID)
            pen.text((x - 12, y + 8), f"{speedup:g}x", INK, font)
        pen.text((LEFT, HEIGHT - 26), "PSNR to the full picture, by speed-up", INK, font)


def _font() -> Font:
    """Pillow's own."""
    try:
        return ImageFont.load_default(FONT)
    except TypeError:  # before Pillow 10.1
        return ImageFont.load_default()
