"""Trainable twin of this pack's Lumina-Next (`rapid_core/comfy/lumina_next`), at a demo's size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from demo.pack.words import WIDTH
from demo.twins.layers import attend, rotate, sinusoid
from rapid_core.comfy.lumina_next.config import LuminaNextConfig

THETA = 10000.0
QK_EPS = 1e-5
OPEN = 0.5  # start of the gates of text: without them what is drawn would long know of no prompt
SIZE = LuminaNextConfig(
    hidden_size=288,
    layers=7,
    heads=3,
    kv_heads=1,
    feed_forward=768,
    text_width=WIDTH,
    channels=16,
    learn_sigma=False,
    sample_size=32,
)


class PatchEmbedder(nn.Module):
    """Patches to tokens, rows first; a patch's channels stand first."""

    def __init__(self, config: LuminaNextConfig):
        super().__init__()
        self.patch = config.patch_size
        self.proj = nn.Linear(config.channels * self.patch**2, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(
            rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        )


class TimeEmbedder(nn.Module):
    """Two linear layers with SiLU, in diffusers' names."""

    def __init__(self, hidden: int):
        super().__init__()
        self.linear_1 = nn.Linear(256, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeCaptionEmbedding(nn.Module):
    """Time and mean of the text to the vector that modulates the blocks."""

    def __init__(self, config: LuminaNextConfig):
        super().__init__()
        self.timestep_embedder = TimeEmbedder(config.hidden_size)
        self.caption_embedder = nn.Sequential(
            nn.LayerNorm(config.text_width, eps=QK_EPS),
            nn.Linear(config.text_width, config.hidden_size),
        )

    def forward(self, time: Tensor, text: Tensor) -> Tensor:
        embedded = self.timestep_embedder(sinusoid(time, factor=1.0).to(text))
        return embedded + self.caption_embedder(text.mean(1))


class NextAttention(nn.Module):
    """Queries of the image, keys and values of tokens with `width` channels."""

    def __init__(self, config: LuminaNextConfig, width: int, out: bool):
        super().__init__()
        self.heads, self.repeats = config.heads, config.heads // config.kv_heads
        inner = config.kv_heads * config.head_size
        self.to_q = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.norm_q = nn.LayerNorm(config.hidden_size, eps=QK_EPS)
        self.norm_k = nn.LayerNorm(inner, eps=QK_EPS)
        if out:
            self.to_out = nn.Sequential(
                nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            )

    def forward(
        self, x: Tensor, read: Tensor, rope: Tensor, sharpness: float | None = None
    ) -> Tensor:
        """What the tokens x find in the tokens `read`. sharpness: of image tokens, whose keys have
        positions; None for text, whose keys have none."""
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(read)), self.to_v(read)
        q = rearrange(q, "b n (h d) -> b h n d", h=self.heads)
        k, v = (rearrange(p, "b n (h d) -> b h n d", d=q.shape[-1]) for p in (k, v))
        q = rotate(q, rope)
        if sharpness is not None:
            q, k = q * sharpness, rotate(k, rope)
        k, v = (p.repeat_interleave(self.repeats, 1) for p in (k, v))
        return attend(q, k, v)


class GatedMLP(nn.Module):
    """SiLU-gated MLP."""

    def __init__(self, config: LuminaNextConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.hidden_size, config.feed_forward, bias=False)
        self.linear_2 = nn.Linear(config.feed_forward, config.hidden_size, bias=False)
        self.linear_3 = nn.Linear(config.hidden_size, config.feed_forward, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))


class Modulation(nn.Module):
    """Norm of a block's tokens, and the linear map to its scales and gates."""

    def __init__(self, config: LuminaNextConfig):
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, gate, feed_scale, feed_gate = self.linear(F.silu(vec))[:, None].chunk(4, -1)
        return self.norm(x) * (1 + scale), gate.tanh(), 1 + feed_scale, feed_gate.tanh()


class LuminaNextBlock(nn.Module):
    """Attention to the image and, by gates, to the text; then the MLP."""

    def __init__(self, config: LuminaNextConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.norm_eps
        self.gate = nn.Parameter(torch.full((config.heads,), OPEN))
        self.attn1 = NextAttention(config, hidden, out=False)
        self.attn2 = NextAttention(config, config.text_width, out=True)
        self.feed_forward = GatedMLP(config)
        self.norm1 = Modulation(config)
        self.ffn_norm1 = nn.RMSNorm(hidden, eps=eps)
        self.norm2 = nn.RMSNorm(hidden, eps=eps)
        self.ffn_norm2 = nn.RMSNorm(hidden, eps=eps)
        self.norm1_context = nn.RMSNorm(config.text_width, eps=eps)

    def forward(self, x: Tensor, text: Tensor, vec: Tensor, rope: Tensor, sharpness: float):
        normed, gate, feed_scale, feed_gate = self.norm1(x, vec)
        seen = self.attn1(normed, normed, rope, sharpness)
        read = self.attn2(normed, self.norm1_context(text), rope)
        open_ = self.gate.tanh().repeat_interleave(read.shape[-1] // len(self.gate))
        x = x + gate * self.norm2(self.attn2.to_out(seen + read * open_))
        return x + feed_gate * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * feed_scale))


class FinalLayer(nn.Module):
    """Final norm, scale and projection to patches; their channels stand last."""

    def __init__(self, config: LuminaNextConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.channels * config.patch_size**2)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        scale = self.linear_1(F.silu(vec))[:, None]
        return self.linear_2(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale))


def rotations(config: LuminaNextConfig, rows: int, columns: int, device=None) -> Tensor:
    """cos and sin (2, rows * columns, head_size / 2) of the angles of a grid of tokens, row and
    column in turn, spread over the grid that the network is made for."""
    size = config.head_size // 2
    side = math.sqrt(rows * columns) * config.patch_size / config.sample_size
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
    frequencies = THETA**-exponents / side
    row, column = (torch.arange(n, dtype=torch.float32, device=device) for n in (rows, columns))
    down = (row[:, None] * frequencies)[:, None].expand(-1, columns, -1)
    along = (column[:, None] * frequencies)[None].expand(rows, -1, -1)
    angle = torch.stack((down, along), -1).flatten(2).flatten(0, 1)
    return torch.stack((angle.cos(), angle.sin()))


class LuminaNextTwin(nn.Module):
    """Lumina-Next; forward gives the velocity (noise - data) of x at time t. `pooled` and
    `guidance` are not used."""

    def __init__(self, config: LuminaNextConfig = SIZE):
        super().__init__()
        self.config = config
        self.patch_embedder = PatchEmbedder(config)
        self.pad_token = nn.Parameter(torch.zeros(config.hidden_size))  # used by none
        self.time_caption_embed = TimeCaptionEmbedding(config)
        self.layers = nn.ModuleList(LuminaNextBlock(config) for _ in range(config.layers))
        self.norm_out = FinalLayer(config)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), t (B,) in 0 .. 1, context (B, L, 64) -> (B, C, H, W)."""
        p = self.config.patch_size
        rows, columns = (side // p for side in x.shape[-2:])
        rope = rotations(self.config, rows, columns, x.device)
        sharpness = math.sqrt(math.log(rows * columns) / math.log(self.config.base_tokens))
        vec = self.time_caption_embed(1 - t, context)
        img = self.patch_embedder(x)
        for block in self.layers:
            img = block(img, context, vec, rope, sharpness)
        out = self.norm_out(img, vec)
        return -rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)
