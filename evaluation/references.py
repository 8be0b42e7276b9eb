"""Latents that pictures are compared with, drawn once and kept: those of the full run ("full"), and
the converged ones ("ode")."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from evaluation.files import replaced

PICTURES = 64  # decoded ones that are kept


class References:
    """Those of one model in a folder, by kind and number of the prompt."""

    def __init__(self, folder: Path, model: str):
        self.folder = folder
        self.model = model
        self.pictures: dict[tuple[str, int], Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"{self.model}-{kind}-{number}.pt"

    def missing(self, kind: str, numbers: list[int]) -> list[int]:
        """Those that are not there yet."""
        return [n for n in numbers if not self._path(kind, n).exists()]

    def keep(self, kind: str, numbers: list[int], latents: Tensor) -> None:
        """Keep latents (len(numbers), ...), but for those that are there."""
        for latent, n in zip(latents, numbers, strict=True):
            if self.missing(kind, [n]):
                replaced(self._path(kind, n), partial(torch.save, latent.clone()))

    def read(self, kind: str, numbers: list[int]) -> Tensor:
        """Latents (len(numbers), ...)."""
        return torch.stack([torch.load(self._path(kind, n), weights_only=True) for n in numbers])

    def picture(self, kind: str, number: int, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """What `decode` makes of a latent (1, ...); kept for a few prompts, which all methods ask
        for in turn."""
        if (kind, number) not in self.pictures:
            if len(self.pictures) >= PICTURES:
                self.pictures.clear()
            self.pictures[kind, number] = decode(self.read(kind, [number]))
        return self.pictures[kind, number]
