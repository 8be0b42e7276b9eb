"""The judge of the demo's suites: scenes of a world are the prompts, and the world says what is right in
their pictures and what sets of pictures are compared by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo.world import Scenes, World, world_of

DRAWS = 3  # of each scene, with their own noise
PART = 50  # scenes drawn at a time
SEED = 71


@dataclass(frozen=True)
class SceneJudge:
    """An `evaluation.judges.PictureJudge` of scenes of a world."""

    world: World
    scenes: Scenes
    network: Any
    """A judge of the world."""

    @classmethod
    def of(cls, weights: Path, number: int) -> SceneJudge:
        """That of so many test prompts of the world of a demo model's weights."""
        world = world_of(weights)
        return cls(world, world.prompts(number), world.load_judge(world.judge))

    @property
    def prompts(self) -> list[str]:
        """A prompt a scene."""
        return self.scenes.prompts()

    def right(self, picture: Tensor, number: int) -> tuple[int, int]:
        """How many of the things that a scene says the picture (3, H, W) shows, and how many there
        are."""
        parts = self.world.right(self.network, picture[None], self.scenes.take([number]))
        return sum(int(part.sum()) for part in parts), sum(part.numel() for part in parts)

    def features(self, picture: Tensor) -> Tensor:
        """(9, width), a row for each of the nine places."""
        return self.world.features(self.network, picture[None])[0]

    def true_features(self, size: int) -> Tensor:
        """Features (n, width) of the scenes themselves."""
        generator = torch.Generator().manual_seed(SEED)
        features = []
        for rows in torch.arange(len(self.scenes)).repeat(DRAWS).split(PART):
            pictures = self.world.draw(self.scenes.take(rows), size, size, generator)
            features.append(self.world.features(self.network, pictures))
        return torch.cat(features).flatten(0, 1)
