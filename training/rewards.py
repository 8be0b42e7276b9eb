"""Rewards of pictures, and how cost enters them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from training.plan_search import latent_psnr
from training.references import Reference

MIDDLE, WIDTH = 40.0, 6.0  # dB at which fidelity is worth a half, and over which it rises


class Reward(Protocol):
    """Quality of pictures beside their reference, each in 0 .. 1 so that cost can only lower it."""

    name: str

    def __call__(self, latents: Tensor, reference: Reference) -> list[float]:
        """One figure an image of latents (B, ...)."""
        ...


class Fidelity:
    """PSNR of the latent to the dense run of the same seed, through a sigmoid. Legitimate because the sampler is an
    ODE: the same noise has one true picture, and no other reward has so little variance."""

    name = "psnr"

    def __call__(self, latents: Tensor, reference: Reference) -> list[float]:
        found = [latent_psnr(x[None].cpu(), reference.latent) for x in latents]
        return [1 / (1 + math.exp((MIDDLE - p) / WIDTH)) for p in found]


REWARDS: dict[str, type[Reward]] = {"psnr": Fidelity}


def discount(equivalent_steps: float, rate: float) -> float:
    """RAPID3's m(K) = (1 - rate^K) / (K (1 - rate)), the mean of rate^(K - k) over k = 1 .. K, for real K above 0."""
    return (1 - rate**equivalent_steps) / (equivalent_steps * (1 - rate))


def discounted(quality: Sequence[float], equivalent_steps: Sequence[float], rate: float) -> list[float]:
    """r = m(K) q. Raises ValueError for quality below 0, where the discount would reward spending more on bad
    pictures."""
    if min(quality) < 0:
        raise ValueError(f"quality {min(quality):.3g} is below 0; a reward that cost discounts must not be")
    return [q * discount(k, rate) for q, k in zip(quality, equivalent_steps, strict=True)]
