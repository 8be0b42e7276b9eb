"""Trainable twin of ComfyUI's MMDiT (SD3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from demo.twins.layers import AdaLNLast, EmbedSequential, TwinConfig, attend, modulate, sinusoid

SIZE = TwinConfig(double_blocks=4, single_blocks=0)


class SD3Attention(nn.Module):
    """Projections of one stream of a joint block; queries and keys RMS-normalised per head of
    64."""

    def __init__(self, hidden: int, pre_only: bool):
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.ln_q = nn.RMSNorm(64, eps=1e-6)
        self.ln_k = nn.RMSNorm(64, eps=1e-6)
        if not pre_only:
            self.proj = nn.Linear(hidden, hidden)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, d=64)
        return self.ln_q(q).to(v), self.ln_k(k).to(v), v


class SD3MLP(nn.Module):
    """Four-fold MLP in SD3's names."""

    def __init__(self, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SD3Stream(nn.Module):
    """One stream of a joint block; `pre_only`: the last block's text, which only feeds the
    attention."""

    def __init__(self, hidden: int, pre_only: bool):
        super().__init__()
        self.attn = SD3Attention(hidden, pre_only)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden, (2 if pre_only else 6) * hidden)
        )
        self.pre_only = pre_only
        if not pre_only:
            self.mlp = SD3MLP(hidden)

    def before(
        self, x: Tensor, c: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        mod = self.adaLN_modulation(c).chunk(2 if self.pre_only else 6, -1)
        return self.attn.project(modulate(x, mod[0], mod[1])), mod

    def after(self, x: Tensor, attention: Tensor, mod: tuple[Tensor, ...]) -> Tensor:
        x = x + self.attn.proj(attention) * mod[2][:, None]
        return x + self.mlp(modulate(x, mod[3], mod[4])) * mod[5][:, None]


class JointBlock(nn.Module):
    """SD3 block: text and image streams with one joint attention."""

    def __init__(self, hidden: int, last: bool):
        super().__init__()
        self.context_block = SD3Stream(hidden, pre_only=last)
        self.x_block = SD3Stream(hidden, pre_only=False)

    def forward(self, txt: Tensor, img: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor]:
        txt_qkv, txt_mod = self.context_block.before(txt, c)
        img_qkv, img_mod = self.x_block.before(img, c)
        joint = attend(*(torch.cat(pair, 2) for pair in zip(txt_qkv, img_qkv, strict=True)))
        image = self.x_block.after(img, joint[:, txt.shape[1] :], img_mod)
        if self.context_block.pre_only:
            return None, image
        return self.context_block.after(txt, joint[:, : txt.shape[1]], txt_mod), image


def sd3_positions(hidden: int, height: int, width: int, device=None) -> Tensor:
    """The host's sine-cosine embedding for files without `pos_embed`: 15 units across the shorter
    side."""
    small = min(height, width)

    def encode(count: int) -> Tensor:
        reach = count / small * 7.5
        place = torch.linspace(7.5 - reach, 7.5 + reach, count, device=device)
        omega = 10000.0 ** -(torch.arange(hidden // 4, device=device) / (hidden // 4))
        angle = place[:, None] * omega
        return torch.cat((angle.sin(), angle.cos()), -1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat((columns, rows), -1).view(1, height * width, hidden)


class PatchEmbed(nn.Module):
    """Convolution over patches, in SD3's names."""

    def __init__(self, channels: int, hidden: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, hidden, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class SD3Twin(nn.Module):
    """MMDiT; forward gives the velocity (noise - data) of x at time t in 0 .. 1. `guidance` is not
    used."""

    def __init__(self, config: TwinConfig = SIZE):
        super().__init__()
        hidden, depth = config.hidden, config.double_blocks
        if hidden != 64 * depth:
            raise ValueError(
                f"SD3Twin: hidden {hidden} with depth {depth} given; the host accepts hidden = 64 * depth"
            )
        self.config = config
        self.x_embedder = PatchEmbed(config.channels, hidden, config.patch)
        self.t_embedder = EmbedSequential(256, hidden)
        self.y_embedder = EmbedSequential(config.pooled, hidden)
        self.context_embedder = nn.Linear(config.context, hidden)
        self.joint_blocks = nn.ModuleList(
            JointBlock(hidden, last=i == depth - 1) for i in range(depth)
        )
        self.final_layer = AdaLNLast(hidden, config.channels * config.patch**2)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), t (B,), context (B, L, 64), pooled (B, 64) -> (B, C, H, W).

        keep (B, K): image tokens that the model sees, as numbers; of all others the velocity is 0."""
        p, (height, width) = self.config.patch, x.shape[-2:]
        positions = sd3_positions(self.config.hidden, height // p, width // p, x.device)
        img = self.x_embedder(x) + positions.to(x)
        if keep is not None:
            img = img.take_along_dim(keep[..., None], 1)
        c = self.t_embedder(sinusoid(t).to(x)) + self.y_embedder(pooled)
        txt = self.context_embedder(context)
        for block in self.joint_blocks:
            txt, img = block(txt, img, c)
        out = self.final_layer(img, c)
        if keep is not None:
            whole = out.new_zeros(len(out), height // p * (width // p), out.shape[-1])
            out = whole.scatter(1, keep[..., None].expand_as(out), out)
        return rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=height // p, p=p, q=p)
