"""Trainable twin of ComfyUI's NextDiT (Lumina Image 2.0)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from demo.pack.words import WIDTH
from demo.twins.layers import EmbedSequential, attend, rotary, rotate, sinusoid

AXES = (32, 32, 32)


@dataclass(frozen=True)
class LuminaConfig:
    """Size of a NextDiT: heads of 96 = three axes of 32; `kv_heads` divides `heads`; MLP of `multiple` * n channels."""

    heads: int = 3
    kv_heads: int = 1
    layers: int = 6
    refiners: int = 1
    widening: float = 2.5
    multiple: int = 256
    channels: int = 16
    patch: int = 2
    context: int = WIDTH

    @property
    def hidden(self) -> int:
        return self.heads * sum(AXES)

    def host(self) -> dict:
        """The host's own configuration of this model (`unet_config`)."""
        return {
            "image_model": "lumina2",
            "patch_size": self.patch,
            "in_channels": self.channels,
            "dim": self.hidden,
            "n_layers": self.layers,
            "n_refiner_layers": self.refiners,
            "n_heads": self.heads,
            "n_kv_heads": self.kv_heads,
            "multiple_of": self.multiple,
            "ffn_dim_multiplier": self.widening,
            "qk_norm": True,
            "cap_feat_dim": self.context,
            "axes_dims": list(AXES),
            "axes_lens": [300, 512, 512],
            "rope_theta": 10000.0,
        }


SIZE = LuminaConfig()


class GroupedAttention(nn.Module):
    """Attention with fewer key and value heads than query heads; queries and keys RMS-normalised per head."""

    def __init__(self, config: LuminaConfig):
        super().__init__()
        self.heads, self.kv_heads, self.width = config.heads, config.kv_heads, sum(AXES)
        self.qkv = nn.Linear(
            config.hidden, (config.heads + 2 * config.kv_heads) * self.width, bias=False
        )
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)
        self.q_norm = nn.RMSNorm(self.width, eps=torch.finfo(torch.float32).eps)
        self.k_norm = nn.RMSNorm(self.width, eps=torch.finfo(torch.float32).eps)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        parts = self.qkv(x).split(
            [n * self.width for n in (self.heads, self.kv_heads, self.kv_heads)], -1
        )
        q, k, v = (rearrange(p, "b n (h d) -> b h n d", d=self.width) for p in parts)
        q, k = rotate(self.q_norm(q).to(v), rope), rotate(self.k_norm(k).to(v), rope)
        repeats = self.heads // self.kv_heads
        return self.out(attend(q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)))


class GatedMLP(nn.Module):
    """SiLU-gated MLP."""

    def __init__(self, config: LuminaConfig):
        super().__init__()
        width = -(-int(config.widening * config.hidden) // config.multiple) * config.multiple
        self.w1 = nn.Linear(config.hidden, width, bias=False)
        self.w2 = nn.Linear(width, config.hidden, bias=False)
        self.w3 = nn.Linear(config.hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class NextDiTBlock(nn.Module):
    """Attention and MLP between sandwich norms, with tanh gates where modulated."""

    def __init__(self, config: LuminaConfig, modulated: bool):
        super().__init__()
        self.attention, self.feed_forward = GroupedAttention(config), GatedMLP(config)
        for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
            setattr(self, name, nn.RMSNorm(config.hidden, eps=1e-5))
        if modulated:
            self.adaLN_modulation = nn.Sequential(
                nn.SiLU(), nn.Linear(config.hidden, 4 * config.hidden)
            )

    def forward(self, x: Tensor, rope: Tensor, c: Tensor | None = None) -> Tensor:
        scales, gates = (0.0, 0.0), (1.0, 1.0)
        if c is not None:
            scale_a, gate_a, scale_m, gate_m = self.adaLN_modulation(c)[:, None].chunk(4, -1)
            scales, gates = (scale_a, scale_m), (gate_a.tanh(), gate_m.tanh())
        x = x + gates[0] * self.attention_norm2(
            self.attention(self.attention_norm1(x) * (1 + scales[0]), rope)
        )
        return x + gates[1] * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * (1 + scales[1])))


class ScaledLast(nn.Module):
    """Final norm, scale and projection to patches."""

    def __init__(self, hidden: int, out: int):
        super().__init__()
        self.linear = nn.Linear(hidden, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(
            F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + self.adaLN_modulation(c)[:, None])
        )


def positions(tokens: int, height: int, width: int, device=None) -> Tensor:
    """Positions (tokens + height * width, 3): captions count along the first axis, the image follows them there."""
    text = torch.zeros(tokens, 3, device=device)
    text[:, 0] = torch.arange(tokens, device=device) + 1
    image = torch.full((height, width, 3), tokens + 1.0, device=device)
    image[..., 1] = torch.arange(height, device=device)[:, None]
    image[..., 2] = torch.arange(width, device=device)[None]
    return torch.cat((text, image.view(-1, 3)))


class LuminaTwin(nn.Module):
    """NextDiT; forward gives the velocity (noise - data) of x at time t. `pooled` and `guidance` are not used."""

    def __init__(self, config: LuminaConfig = SIZE):
        super().__init__()
        self.config, hidden = config, config.hidden
        self.x_embedder = nn.Linear(config.channels * config.patch**2, hidden)
        self.cap_embedder = nn.Sequential(
            nn.RMSNorm(config.context, eps=1e-5), nn.Linear(config.context, hidden)
        )
        self.t_embedder = EmbedSequential(256, hidden)
        self.noise_refiner = nn.ModuleList(
            NextDiTBlock(config, True) for _ in range(config.refiners)
        )
        self.context_refiner = nn.ModuleList(
            NextDiTBlock(config, False) for _ in range(config.refiners)
        )
        self.layers = nn.ModuleList(NextDiTBlock(config, True) for _ in range(config.layers))
        self.final_layer = ScaledLast(hidden, config.channels * config.patch**2)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), t (B,) in 0 .. 1, context (B, L, 64) -> (B, C, H, W)."""
        p, (height, width), tokens = self.config.patch, x.shape[-2:], context.shape[1]
        rope = rotary(positions(tokens, height // p, width // p, x.device), AXES)
        c = self.t_embedder(
            sinusoid(1 - t, factor=1.0).to(x)
        )  # the host gives Lumina times in 0 .. 1, unscaled
        txt = self.cap_embedder(context)
        for block in self.context_refiner:
            txt = block(txt, rope[:, :tokens])
        img = self.x_embedder(rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p))
        for block in self.noise_refiner:
            img = block(img, rope[:, tokens:], c)
        both = torch.cat((txt, img), 1)
        for block in self.layers:
            both = block(both, rope, c)
        out = self.final_layer(both[:, tokens:], c)
        return -rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=height // p, p=p, q=p)
