"""The policy heads of RAPID3 (Zhao et al. 2025): one small network each, its condition coming in
through AdaLN.

The structure is that of the one published implementation of this family of policies (TPDM, Ye et
al. 2024): 3 x 3 convolution, group norm modulated by the condition, 3 x 3 convolution of stride 2,
pooling to 16 x 16 and its maximum, two linear layers. Where the condition comes from is ours: the
model's pooled modulation vector, seen once at the first evaluation, and an embedding of sigma."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Module = TypeVar("Module", bound=nn.Module)
NUMBER_WIDTH = 64  # of the embedding of a number such as sigma
POOLED_SIDE = 16  # pixels to a side that a picture is pooled to, at most


def packed(latent: Tensor) -> Tensor:
    """Latents (B, C, H, W) -> (B, 4 C, H / 2, W / 2): 2 x 2 pixels a token, odd sides padded. Of
    videos (B, C, T, H, W) the root mean square over the frames, with the mean's sign: one row an
    image, however many frames."""
    if latent.ndim == 5:
        mean = latent.float().mean(2)
        latent = latent.float().square().mean(2).sqrt().copysign(mean)
    high, wide = latent.shape[-2:]
    latent = functional.pad(latent, (0, wide % 2, 0, high % 2), mode="replicate")
    return functional.pixel_unshuffle(latent, 2)


def embedding(values: Tensor) -> Tensor:
    """Sinusoidal embedding (..., NUMBER_WIDTH) of numbers about 0 .. 1."""
    half = NUMBER_WIDTH // 2
    rates = torch.exp(-math.log(1000.0) * torch.arange(half, device=values.device) / half) * 1000.0
    angles = values[..., None].float() * rates
    return torch.cat((angles.cos(), angles.sin()), -1)


class AdaNorm(nn.Module):
    """Group norm over all channels, scaled and shifted by the condition."""

    def __init__(self, width: int, condition: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.GroupNorm(1, width, eps)
        self.linear = nn.Linear(condition, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.linear(functional.silu(condition)).chunk(2, 1)
        return self.norm(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


class Head(nn.Module):
    """Logits (B, outputs) of a packed latent (B, channels, H, W) and a condition (B, D).

    eps: of the group norm."""

    def __init__(
        self, channels: int, condition: int, outputs: int, width: int = 128, eps: float = 1e-5
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm1 = AdaNorm(width, condition, eps)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, outputs)
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2, self.norm1.linear):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = functional.silu(self.norm1(self.conv1(x), condition))
        x = self.conv2(x)
        high, wide = x.shape[-2:]
        x = functional.adaptive_avg_pool2d(x, (min(POOLED_SIDE, high), min(POOLED_SIDE, wide)))
        return self.fc2(functional.silu(self.fc1(x.amax((2, 3)))))


class Condition(nn.Module):
    """Condition (B, D) of all heads: the model's pooled vector (B, hidden), and embeddings of
    numbers (B, n): sigma and, where the policy knows budgets, what is left of it.

    The layer `levels` is called so in policy files."""

    def __init__(self, hidden: int, numbers: int, width: int = 128):
        super().__init__()
        self.hidden, self.numbers = hidden, numbers
        self.pooled = nn.Linear(hidden, width)
        self.levels = nn.Linear(numbers * NUMBER_WIDTH, width)

    def forward(self, pooled: Tensor, numbers: Tensor) -> Tensor:
        # Models differ in the size of their vectors.
        scale = pooled.square().mean(1, keepdim=True).add(1e-6).rsqrt()
        return self.pooled(pooled * scale) + self.levels(embedding(numbers).flatten(1))


def beta(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters (alpha, beta) of a jump, each 1 + exp(logit): unimodal. logits (..., 2), paper's
    P_step."""
    alpha, other = (1 + logits.clamp(-8, 8).exp()).unbind(-1)
    return alpha, other


def beta_mode(logits: Tensor) -> Tensor:
    """The most likely jump, (alpha - 1) / (alpha + beta - 2)."""
    alpha, other = beta(logits)
    return (alpha - 1) / (alpha + other - 2)


def on_device(heads: Module, device: torch.device) -> Module:
    """Heads, or a copy of them on another device: clones of a model, and training, share the
    module."""
    here = next(heads.parameters()).device
    return heads if here == device else copy.deepcopy(heads).to(device)


class RunHeads:
    """A policy's heads in one run: the actors of all its images share the copy that lies on the
    latents' device."""

    def __init__(self, heads: nn.Module):
        self._heads = heads

    def on(self, device: torch.device) -> Any:
        """The heads on a device; copied there at most once."""
        self._heads = on_device(self._heads, device)
        return self._heads
