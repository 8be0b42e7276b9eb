"""Rewards of pictures, and how cost enters them."""

from __future__ import annotations

from collections.abc import Sequence

from training.rewards.mixture import REWARDS, Mixture, parsed

__all__ = ["REWARDS", "Mixture", "discount", "discounted", "parsed"]


def discount(equivalent_steps: float, rate: float) -> float:
    """RAPID3's m(K) = (1 - rate^K) / (K (1 - rate)), the mean of rate^(K - k) over k = 1 .. K, for
    real K above 0."""
    return (1 - rate**equivalent_steps) / (equivalent_steps * (1 - rate))


def discounted(
    quality: Sequence[float], equivalent_steps: Sequence[float], rate: float
) -> list[float]:
    """r = m(K) q. Raises ValueError for quality below 0, where the discount would reward spending
    more on bad pictures."""
    if min(quality) < 0:
        raise ValueError(
            f"quality {min(quality):.3g} is below 0; a reward that cost discounts must not be"
        )
    return [q * discount(k, rate) for q, k in zip(quality, equivalent_steps, strict=True)]
