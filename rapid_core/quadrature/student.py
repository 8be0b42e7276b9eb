"""Student's t: how far the mean of a few numbers may be off by chance."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import mean, stdev


def chance(numbers: Sequence[float], probability: float, of_next: bool = False) -> float:
    """By how much the mean of numbers that are drawn at random is below their true mean at most, with
    a probability of 0.5 to 1; inf for one number. of_next: by how much another such number is below
    the mean."""
    count = len(numbers)
    if count < 2:
        return math.inf
    share = 1 / count + (1.0 if of_next else 0.0)
    return quantile(probability, count - 1) * stdev(numbers) * math.sqrt(share)


def surely_above_zero(numbers: Sequence[float], probability: float, of_next: bool = False) -> bool:
    """Whether the true mean of such numbers, or the next one, is above zero with a probability."""
    return bool(numbers) and mean(numbers) > chance(numbers, probability, of_next)


@functools.cache
def quantile(probability: float, freedom: int) -> float:
    """That of Student's distribution with so many degrees of freedom."""
    from scipy.special import stdtrit  # a requirement of ComfyUI's; its import takes half a second

    return float(stdtrit(freedom, probability))
