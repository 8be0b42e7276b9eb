"""What the twins share: embeddings, AdaLN, rotary positions, attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from demo.pack.words import WIDTH


@dataclass(frozen=True)
class TwinConfig:
    """Size of a twin. FLUX: heads of 128 on axes (16, 56, 56); SD3: heads of 64, depth = number of heads."""

    hidden: int = 256
    double_blocks: int = 2
    single_blocks: int = 6
    channels: int = 16
    patch: int = 2
    context: int = WIDTH
    pooled: int = WIDTH


def sinusoid(t: Tensor, width: int = 256, factor: float = 1000.0) -> Tensor:
    """Timestep embedding (B, width): cosines, then sines; `factor` scales t in 0 .. 1 to the usual 0 .. 1000."""
    frequencies = torch.exp(
        -math.log(10000) * torch.arange(width // 2, device=t.device) / (width // 2)
    )
    angles = factor * t.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN: normalise without affine weights, then scale and shift per image; shift and scale (B, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, N, D) each -> (B, N, H * D)."""
    if q.is_cuda or q.shape[2] > 300:
        out = F.scaled_dot_product_attention(q, k, v)
    else:  # on a CPU the fused kernel's backward is several times slower than three products on short sequences
        out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
    return rearrange(out, "b h n d -> b n (h d)")


def rotary(ids: Tensor, axes: tuple[int, ...], theta: float = 10000.0) -> Tensor:
    """cos and sin of the rotary angles (2, N, sum(axes) / 2) at positions `ids` (N, len(axes))."""
    angles = []
    for axis, size in enumerate(axes):
        omega = theta ** -(torch.arange(0, size, 2, device=ids.device, dtype=torch.float64) / size)
        angles.append(ids[:, axis, None] * omega)
    angle = torch.cat(angles, -1)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (B, H, N, D) by the angles whose cos and sin are `rope` (2, N, D / 2).

    As complex numbers: one product, where cos and sin by hand would walk through memory eight times."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(rope[0], rope[1])).flatten(-2).to(x)


class EmbedSequential(nn.Module):
    """Two linear layers with SiLU, in SD3's names."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class AdaLNLast(nn.Module):
    """Final AdaLN and projection to patches."""

    def __init__(self, hidden: int, out: int):
        super().__init__()
        self.linear = nn.Linear(hidden, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec).chunk(2, -1)
        return self.linear(modulate(x, shift, scale))
