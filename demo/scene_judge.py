"""The judge of the demo's suites: scenes are the prompts, colours are judged by rule (`rules`), shapes
by the network of `judge`, which also gives the features that sets of pictures are compared by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from demo import judge, rules, scenes
from demo.judge import Judge
from demo.scenes import Scenes

DRAWS = 3  # of each scene, with their own noise
PART = 50  # scenes drawn at a time
SEED = 71


@dataclass(frozen=True)
class SceneJudge:
    """An `evaluation.judges.PictureJudge` of scenes."""

    scenes: Scenes
    network: Judge = field(default_factory=judge.load)

    @property
    def prompts(self) -> list[str]:
        """A prompt a scene."""
        return self.scenes.prompts()

    def right(self, picture: Tensor, number: int) -> tuple[int, int]:
        """How many of the colours, backgrounds and shapes of a scene the picture (3, H, W) shows,
        and how many there are."""
        scene = self.scenes.take([number])
        colours, grounds = rules.colours_right(picture[None], scene)
        shapes, index = judge.shapes(self.network, picture[None], scene)
        parts = (colours, grounds, shapes == scene.shape[index[:, 0], index[:, 1]])
        return sum(int(part.sum()) for part in parts), sum(part.numel() for part in parts)

    def features(self, picture: Tensor) -> Tensor:
        """(9, width), a row for each of the nine places."""
        return judge.features(self.network, picture[None])[0]

    def true_features(self, size: int) -> Tensor:
        """Features (n, width) of the scenes themselves."""
        generator = torch.Generator().manual_seed(SEED)
        features = []
        for rows in torch.arange(len(self.scenes)).repeat(DRAWS).split(PART):
            pictures = scenes.draw(self.scenes.take(rows), size, size, generator)
            features.append(judge.features(self.network, pictures))
        return torch.cat(features).flatten(0, 1)
