"""Image tokens regrouped into compact tiles: tokens that are neighbours in the picture attend to
much the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...transfer import to_device

SIZE = 64  # tokens of a key tile, 8 x 8 where the grid allows it


@dataclass(frozen=True)
class Tiles:
    """A grid of image tokens (frames, rows, columns) cut into tiles.

    The tokens are walked through frame by frame, in strips of about the root of `size` columns,
    down one and up the next; every `size` tokens of the walk are a tile. No tile is padded,
    whatever the grid: the last tokens of the walk, fewer than a tile, are the rest."""

    walk: Tensor
    """(N,) token numbers in the order of the walk."""
    size: int = SIZE
    """Tokens of a tile."""

    @staticmethod
    def of(grid: tuple[int, int, int], size: int = SIZE) -> Tiles:
        """Tiles of a grid."""
        frames, rows, columns = grid
        wide = math.isqrt(size)
        strips = max(1, round(columns / wide))
        walk: list[int] = []
        down = True
        for frame in range(frames):
            for strip in range(strips):
                start = strip * columns // strips
                stop = (strip + 1) * columns // strips
                for row in range(rows) if down else range(rows - 1, -1, -1):
                    first = (frame * rows + row) * columns
                    walk += range(first + start, first + stop)
                down = not down
        return Tiles(torch.tensor(walk), size)

    def to(self, device: torch.device) -> Tiles:
        """The same on a device."""
        return (
            self if self.walk.device == device else Tiles(to_device(self.walk, device), self.size)
        )

    @property
    def number(self) -> int:
        """Whole tiles."""
        return len(self.walk) // self.size

    @property
    def rest(self) -> int:
        """Tokens after the last whole tile."""
        return len(self.walk) - self.number * self.size
