"""Fréchet distance (Heusel et al. 2017) of drawn pictures to true scenes, on the judge's features
of nine places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from demo import judge, scenes
from demo.scenes import Scenes

PART = 50  # scenes drawn at a time


class Given(nn.Module):
    """Stands in for torchmetrics' network: what it gets are features already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def true_features(
    critic: judge.Judge, chosen: Scenes, size: int, draws: int = 3, seed: int = 71
) -> Tensor:
    """Features (n, width) of the scenes themselves, drawn `draws` times with their own noise."""
    generator, found = torch.Generator().manual_seed(seed), []
    for rows in torch.arange(len(chosen)).repeat(draws).split(PART):
        found.append(judge.features(critic, scenes.draw(chosen.take(rows), size, size, generator)))
    return torch.cat(found).flatten(0, 1)


def distance(drawn: Tensor, true: Tensor) -> float:
    """Fréchet distance of features (n, width) and (m, width), by torchmetrics."""
    metric = FrechetInceptionDistance(feature=Given(drawn.shape[-1]), normalize=True)
    metric.update(true.float(), real=True)
    metric.update(drawn.float(), real=False)
    return float(metric.compute())
