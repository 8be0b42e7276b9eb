"""Trainable twins of ComfyUI's Flux and MMDiT: the same state-dict keys and the same function, with autograd.

The host's classes update activations in place and use fused kernels without gradients; these do not. Only what
the demo models use is here. A test holds the twins against the host's classes.
"""

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
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, device=t.device) / (width // 2))
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


class EmbedMLP(nn.Module):
    """Two linear layers with SiLU, in FLUX's names."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.in_layer = nn.Linear(width, hidden)
        self.out_layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class Modulation(nn.Module):
    """Linear map from the condition vector to `parts` vectors."""

    def __init__(self, hidden: int, parts: int):
        super().__init__()
        self.lin = nn.Linear(hidden, parts * hidden)
        self.parts = parts

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec)).chunk(self.parts, -1)


class QKNorm(nn.Module):
    """RMS norm of queries and keys, per head."""

    def __init__(self, width: int):
        super().__init__()
        self.query_norm = nn.RMSNorm(width, eps=1e-6)
        self.key_norm = nn.RMSNorm(width, eps=1e-6)


class FluxAttention(nn.Module):
    """Projections of one stream of a double block."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.norm = QKNorm(hidden // heads)
        self.proj = nn.Linear(hidden, hidden)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.norm.query_norm(q).to(v), self.norm.key_norm(k).to(v), v


def mlp(hidden: int) -> nn.Sequential:
    """Four-fold MLP with tanh GELU."""
    return nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden))


class DoubleBlock(nn.Module):
    """FLUX double-stream block: text and image with weights of their own and one joint attention."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        for stream in ("img", "txt"):
            setattr(self, f"{stream}_mod", Modulation(hidden, 6))
            setattr(self, f"{stream}_attn", FluxAttention(hidden, heads))
            setattr(self, f"{stream}_mlp", mlp(hidden))

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        mods = {"txt": self.txt_mod(vec), "img": self.img_mod(vec)}
        streams = {"txt": txt, "img": img}
        parts = [
            getattr(self, f"{s}_attn").project(modulate(streams[s], mods[s][0], mods[s][1])) for s in ("txt", "img")
        ]
        q, k, v = (torch.cat(pair, 2) for pair in zip(*parts, strict=True))
        joint = attend(rotate(q, rope), rotate(k, rope), v)
        halves = {"txt": joint[:, : txt.shape[1]], "img": joint[:, txt.shape[1] :]}
        out = {}
        for s, x in streams.items():
            shift, scale, gate = mods[s][3:]
            x = x + getattr(self, f"{s}_attn").proj(halves[s]) * mods[s][2][:, None]
            out[s] = x + getattr(self, f"{s}_mlp")(modulate(x, shift, scale)) * gate[:, None]
        return out["img"], out["txt"]


class SingleBlock(nn.Module):
    """FLUX single-stream block: attention and MLP in parallel."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.linear1 = nn.Linear(hidden, 7 * hidden)
        self.linear2 = nn.Linear(5 * hidden, hidden)
        self.norm = QKNorm(hidden // heads)
        self.modulation = Modulation(hidden, 3)

    def forward(self, x: Tensor, vec: Tensor, rope: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        qkv, wide = self.linear1(modulate(x, shift, scale)).split((3 * x.shape[-1], 4 * x.shape[-1]), -1)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = self.norm.query_norm(q).to(v), self.norm.key_norm(k).to(v)
        attention = attend(rotate(q, rope), rotate(k, rope), v)
        return x + self.linear2(torch.cat((attention, F.gelu(wide, approximate="tanh")), -1)) * gate[:, None]


class FluxLast(nn.Module):
    """Final AdaLN and projection to patches."""

    def __init__(self, hidden: int, out: int):
        super().__init__()
        self.linear = nn.Linear(hidden, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec).chunk(2, -1)
        return self.linear(modulate(x, shift, scale))


def flux_rope(tokens: int, height: int, width: int, device=None) -> Tensor:
    """cos and sin of the rotary angles (2, tokens + height * width, 64); text tokens stand at the origin."""
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    ids = torch.cat((torch.zeros(tokens, 3, device=device), ids.view(-1, 3)))
    angles = []
    for axis, size in enumerate((16, 56, 56)):
        omega = 10000.0 ** -(torch.arange(0, size, 2, device=device, dtype=torch.float64) / size)
        angles.append(ids[:, axis, None] * omega)
    angle = torch.cat(angles, -1)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (B, H, N, D) by the angles whose cos and sin are `rope` (2, N, D / 2)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x)


class FluxTwin(nn.Module):
    """FLUX with guidance embedding; forward gives the velocity (noise - data) of x at time t in 0 .. 1."""

    def __init__(self, config: TwinConfig = TwinConfig()):
        super().__init__()
        hidden, heads = config.hidden, config.hidden // 128
        self.config = config
        self.img_in = nn.Linear(config.channels * config.patch**2, hidden)
        self.txt_in = nn.Linear(config.context, hidden)
        self.time_in = EmbedMLP(256, hidden)
        self.vector_in = EmbedMLP(config.pooled, hidden)
        self.guidance_in = EmbedMLP(256, hidden)
        self.double_blocks = nn.ModuleList(DoubleBlock(hidden, heads) for _ in range(config.double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(hidden, heads) for _ in range(config.single_blocks))
        self.final_layer = FluxLast(hidden, config.channels * config.patch**2)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,), context (B, L, 64), pooled (B, 64), guidance (B,) -> (B, C, H, W)."""
        p, (height, width) = self.config.patch, x.shape[-2:]
        img = self.img_in(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))
        vec = self.time_in(sinusoid(t).to(x)) + self.guidance_in(sinusoid(guidance).to(x)) + self.vector_in(pooled)
        txt = self.txt_in(context)
        rope = flux_rope(txt.shape[1], height // p, width // p, x.device)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, rope)
        both = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            both = block(both, vec, rope)
        out = self.final_layer(both[:, txt.shape[1] :], vec)
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=height // p, p=p, q=p)


class EmbedSequential(nn.Module):
    """Two linear layers with SiLU, in SD3's names."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class SD3Attention(nn.Module):
    """Projections of one stream of a joint block; queries and keys RMS-normalised per head of 64."""

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
    """One stream of a joint block; `pre_only`: the last block's text, which only feeds the attention."""

    def __init__(self, hidden: int, pre_only: bool):
        super().__init__()
        self.attn = SD3Attention(hidden, pre_only)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, (2 if pre_only else 6) * hidden))
        self.pre_only = pre_only
        if not pre_only:
            self.mlp = SD3MLP(hidden)

    def before(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
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
    """The host's sine-cosine embedding for files without `pos_embed`: 15 units across the shorter side."""
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
    """MMDiT; forward gives the velocity (noise - data) of x at time t in 0 .. 1. `guidance` is not used."""

    def __init__(self, config: TwinConfig = TwinConfig(double_blocks=4, single_blocks=0)):
        super().__init__()
        hidden, depth = config.hidden, config.double_blocks
        if hidden != 64 * depth:
            raise ValueError(f"SD3Twin: hidden {hidden} with depth {depth} given; the host accepts hidden = 64 * depth")
        self.config = config
        self.x_embedder = PatchEmbed(config.channels, hidden, config.patch)
        self.t_embedder = EmbedSequential(256, hidden)
        self.y_embedder = EmbedSequential(config.pooled, hidden)
        self.context_embedder = nn.Linear(config.context, hidden)
        self.joint_blocks = nn.ModuleList(JointBlock(hidden, last=i == depth - 1) for i in range(depth))
        self.final_layer = FluxLast(hidden, config.channels * config.patch**2)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), t (B,), context (B, L, 64), pooled (B, 64) -> (B, C, H, W)."""
        p, (height, width) = self.config.patch, x.shape[-2:]
        positions = sd3_positions(self.config.hidden, height // p, width // p, x.device)
        img = self.x_embedder(x) + positions.to(x)
        c = self.t_embedder(sinusoid(t).to(x)) + self.y_embedder(pooled)
        txt = self.context_embedder(context)
        for block in self.joint_blocks:
            txt, img = block(txt, img, c)
        out = self.final_layer(img, c)
        return rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=height // p, p=p, q=p)


TWINS = {"flux": FluxTwin, "sd3": SD3Twin}


def initialise(model: nn.Module) -> nn.Module:
    """AdaLN-zero start: gates and output at zero, so that each block begins as the identity (Peebles & Xie)."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)
        if name.endswith((".lin", "adaLN_modulation.1")) or name == "final_layer.linear":
            nn.init.zeros_(module.weight)
    return model
