"""Fréchet distance (Heusel et al. 2017) of drawn pictures to true ones, on a judge's features."""

from __future__ import annotations

from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


class Given(nn.Module):
    """Stands in for torchmetrics' network: what it gets are features already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Features as they come."""
        return features


def distance(drawn: Tensor, true: Tensor) -> float:
    """Fréchet distance of features (n, width) and (m, width), by torchmetrics."""
    metric = FrechetInceptionDistance(feature=Given(drawn.shape[-1]), normalize=True)
    metric.update(true.float(), real=True)
    metric.update(drawn.float(), real=False)
    return float(metric.compute())
