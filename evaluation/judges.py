"""What a suite asks of whoever judges its pictures. The demo's is `demo.scene_judge`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class PictureJudge(Protocol):
    """Prompts, and what pictures of them show."""

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts, by whose numbers pictures are known."""
        ...

    def right(self, picture: Tensor, number: int) -> tuple[int, int]:
        """How many of the things that a prompt names the picture (3, H, W) in 0 .. 1 shows, and how
        many there are."""
        ...

    def features(self, picture: Tensor) -> Tensor:
        """(n, width) what is compared between a picture (3, H, W) in 0 .. 1 and true ones."""
        ...

    def true_features(self, size: int) -> Tensor:
        """(m, width) the same of true pictures of all prompts, `size` pixels wide and high."""
        ...
