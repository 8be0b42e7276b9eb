"""Trainable twin of ComfyUI's Flux."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from demo.twins.layers import AdaLNLast, TwinConfig, attend, modulate, rotary, rotate, sinusoid

SIZE = TwinConfig()


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
    return nn.Sequential(
        nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden)
    )


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
            getattr(self, f"{s}_attn").project(modulate(streams[s], mods[s][0], mods[s][1]))
            for s in ("txt", "img")
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
        y, width = modulate(x, shift, scale), x.shape[-1]
        # The two halves of each layer by themselves: cheaper than to cut and to join large activations.
        qkv = F.linear(y, self.linear1.weight[: 3 * width], self.linear1.bias[: 3 * width])
        wide = F.linear(y, self.linear1.weight[3 * width :], self.linear1.bias[3 * width :])
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = self.norm.query_norm(q).to(v), self.norm.key_norm(k).to(v)
        attention = attend(rotate(q, rope), rotate(k, rope), v)
        out = F.linear(attention, self.linear2.weight[:, :width], self.linear2.bias)
        out = out + F.linear(F.gelu(wide, approximate="tanh"), self.linear2.weight[:, width:])
        return x + out * gate[:, None]


def flux_rope(tokens: int, height: int, width: int, device=None) -> Tensor:
    """cos and sin of the rotary angles (2, tokens + height * width, 64); text tokens stand at the origin."""
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    ids = torch.cat((torch.zeros(tokens, 3, device=device), ids.view(-1, 3)))
    return rotary(ids, (16, 56, 56))


class FluxTwin(nn.Module):
    """FLUX with guidance embedding; forward gives the velocity (noise - data) of x at time t in 0 .. 1."""

    def __init__(self, config: TwinConfig = SIZE):
        super().__init__()
        hidden, heads = config.hidden, config.hidden // 128
        self.config = config
        self.img_in = nn.Linear(config.channels * config.patch**2, hidden)
        self.txt_in = nn.Linear(config.context, hidden)
        self.time_in = EmbedMLP(256, hidden)
        self.vector_in = EmbedMLP(config.pooled, hidden)
        self.guidance_in = EmbedMLP(256, hidden)
        self.double_blocks = nn.ModuleList(
            DoubleBlock(hidden, heads) for _ in range(config.double_blocks)
        )
        self.single_blocks = nn.ModuleList(
            SingleBlock(hidden, heads) for _ in range(config.single_blocks)
        )
        self.final_layer = AdaLNLast(hidden, config.channels * config.patch**2)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, guidance: Tensor
    ) -> Tensor:
        """x (B, C, H, W), t (B,), context (B, L, 64), pooled (B, 64), guidance (B,) -> (B, C, H, W)."""
        p, (height, width) = self.config.patch, x.shape[-2:]
        img = self.img_in(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))
        vec = (
            self.time_in(sinusoid(t).to(x))
            + self.guidance_in(sinusoid(guidance).to(x))
            + self.vector_in(pooled)
        )
        txt = self.txt_in(context)
        rope = flux_rope(txt.shape[1], height // p, width // p, x.device)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, rope)
        both = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            both = block(both, vec, rope)
        out = self.final_layer(both[:, txt.shape[1] :], vec)
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=height // p, p=p, q=p)
