"""Threshold files: Cache Reuse's threshold for each budget.

Tensors: `thresholds` (budgets,) float32. Metadata: `max_consecutive`, if it is another than Cache
Reuse's own."""

from __future__ import annotations

import math

import torch

from ..techniques.step_skip.threshold import MAX_CONSECUTIVE, ThresholdPolicy
from .format import PolicyFile


def threshold_policy(file: PolicyFile, speedup: float) -> ThresholdPolicy:
    """Cache Reuse with the file's threshold. Raises PolicyError."""
    longest = MAX_CONSECUTIVE
    if "max_consecutive" in file.metadata:
        longest = file.whole("max_consecutive", 1, 100)
    return ThresholdPolicy(
        threshold=threshold_of(file, speedup), max_consecutive=longest, source=file.name
    )


def threshold_of(file: PolicyFile, speedup: float) -> float:
    """The threshold at a speed-up, between those of the budgets on a line of logarithms. Raises
    PolicyError."""
    budgets = file.budgets
    thresholds = file.tensor("thresholds", (len(budgets),), torch.float32).tolist()
    if min(thresholds) <= 0:
        raise file.refusal("thresholds", thresholds, "values above 0")
    if speedup <= budgets[0] or len(budgets) == 1:
        return thresholds[0]
    high = next((i for i, b in enumerate(budgets) if b >= speedup), len(budgets) - 1)
    low = high - 1
    place = min(1.0, (speedup - budgets[low]) / (budgets[high] - budgets[low]))
    return math.exp((1 - place) * math.log(thresholds[low]) + place * math.log(thresholds[high]))
