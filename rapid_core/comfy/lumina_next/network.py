"""The network of Lumina-Next-T2I under the names of its published weights (diffusers' layout).

Image tokens attend to one another and, through a gate, to the text. Source: Lumina-Next (Gao et al.
2024, arXiv 2406.18583), sections 2.2 and 2.3."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention, optimized_attention_masked
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_management import cast_to
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

from .config import LuminaNextConfig

FREQUENCIES = 256  # of the embedding of time
THETA = 10000.0  # base of the frequencies of positions
QK_EPS = 1e-5
FINAL_EPS = 1e-6


class Layers:
    """Makes layers of the host's kind, which cast and offload their weights."""

    def __init__(self, operations: Any, dtype: Any, device: Any) -> None:
        self.operations = operations
        self.place = {"dtype": dtype, "device": device}

    def linear(self, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
        return self.operations.Linear(inputs, outputs, bias=bias, **self.place)

    def rms_norm(self, size: int, eps: float) -> nn.Module:
        return self.operations.RMSNorm(size, eps=eps, elementwise_affine=True, **self.place)

    def layer_norm(self, size: int, eps: float, affine: bool = True) -> nn.Module:
        return self.operations.LayerNorm(size, eps=eps, elementwise_affine=affine, **self.place)

    def parameter(self, size: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(size, **self.place))


class PatchEmbedder(nn.Module):
    """(B, C, H, W) -> tokens (B, N, hidden), rows first."""

    def __init__(self, config: LuminaNextConfig, make: Layers) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.proj = make.linear(config.channels * self.patch**2, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns, patch = x.shape[2] // self.patch, x.shape[3] // self.patch, self.patch
        x = x.reshape(x.shape[0], x.shape[1], rows, patch, columns, patch)
        return self.proj(x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class TimeEmbedder(nn.Module):
    """Frequencies of a time -> its embedding."""

    def __init__(self, size: int, make: Layers) -> None:
        super().__init__()
        self.linear_1 = make.linear(FREQUENCIES, size, bias=True)
        self.linear_2 = make.linear(size, size, bias=True)

    def forward(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(timestep_embedding(time, FREQUENCIES).to(dtype))))


class TimeCaptionEmbedding(nn.Module):
    """Times (B,) and text (B, L, D) -> what modulates the blocks, (B, condition_size)."""

    def __init__(self, config: LuminaNextConfig, make: Layers) -> None:
        super().__init__()
        size = config.condition_size
        self.timestep_embedder = TimeEmbedder(size, make)
        self.caption_embedder = nn.Sequential(
            make.layer_norm(config.text_width, QK_EPS), make.linear(config.text_width, size, True)
        )

    def forward(self, time: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """mask: (B, L), True where there is text; None for everywhere."""
        if mask is None:
            mean = text.float().mean(1)
        else:
            shares = mask.float() / mask.float().sum(1, keepdim=True)
            mean = (text.float() * shares[:, :, None]).sum(1)
        return self.timestep_embedder(time, text.dtype) + self.caption_embedder(mean.to(text))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LuminaNextConfig, make: Layers) -> None:
        super().__init__()
        self.linear_1 = make.linear(config.hidden_size, config.feed_forward)
        self.linear_2 = make.linear(config.feed_forward, config.hidden_size)
        self.linear_3 = make.linear(config.hidden_size, config.feed_forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))


class Attention(nn.Module):
    """Queries of the image, keys and values of `width` channels. The output matrix belongs to the
    second attention of a block, which has the sum of both."""

    def __init__(self, config: LuminaNextConfig, width: int, make: Layers, out: bool) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_size = config.head_size
        inner = config.kv_heads * config.head_size
        self.to_q = make.linear(config.hidden_size, config.hidden_size)
        self.to_k = make.linear(width, inner)
        self.to_v = make.linear(width, inner)
        self.norm_q = make.layer_norm(config.hidden_size, QK_EPS) if config.qk_norm else None
        self.norm_k = make.layer_norm(inner, QK_EPS) if config.qk_norm else None
        if out:
            self.to_out = nn.Sequential(make.linear(config.hidden_size, config.hidden_size))

    def queries(self, x: Tensor) -> Tensor:
        """(B, N, hidden) -> (B, N, heads, head_size), before positions."""
        q = self.to_q(x)
        q = q if self.norm_q is None else self.norm_q(q)
        return q.unflatten(2, (self.heads, self.head_size))

    def keys(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, kv_heads, head_size), before positions."""
        k = self.to_k(x)
        k = k if self.norm_k is None else self.norm_k(k)
        return k.unflatten(2, (-1, self.head_size))

    def values(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, kv_heads, head_size)."""
        return self.to_v(x).unflatten(2, (-1, self.head_size))

    def heads_first(self, x: Tensor) -> Tensor:
        """(B, L, n, head_size) -> (B, heads, L, head_size): what several heads share is repeated."""
        return x.repeat_interleave(self.heads // x.shape[2], dim=2).transpose(1, 2)


class Modulation(nn.Module):
    """Scale and gate of the attentions, scale and gate of the feed-forward part."""

    def __init__(self, config: LuminaNextConfig, make: Layers) -> None:
        super().__init__()
        self.linear = make.linear(config.condition_size, 4 * config.hidden_size, bias=True)
        self.norm = make.rms_norm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = self.linear(F.silu(vec))[:, None].chunk(4, dim=2)
        scale, gate, feed_scale, feed_gate = parts
        return self.norm(x) * (1 + scale), gate.tanh(), 1 + feed_scale, feed_gate.tanh()


class Block(nn.Module):
    """Both attentions on the same normed tokens, then the feed-forward part."""

    def __init__(self, config: LuminaNextConfig, make: Layers) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.norm_eps
        self.gate = make.parameter(config.heads)
        self.attn1 = Attention(config, hidden, make, out=False)
        self.attn2 = Attention(config, config.text_width, make, out=True)
        self.feed_forward = FeedForward(config, make)
        self.norm1 = Modulation(config, make)
        self.ffn_norm1 = make.rms_norm(hidden, eps)
        self.norm2 = make.rms_norm(hidden, eps)
        self.ffn_norm2 = make.rms_norm(hidden, eps)
        self.norm1_context = make.rms_norm(config.text_width, eps)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor,
        mask: Tensor | None,
        sharpness: float,
        options: dict,
    ) -> Tensor:
        """img (B, K, hidden), any of the image's tokens with their positions pe; txt (B, L, D);
        vec (B, condition_size); mask: additive, (B, 1, 1, L), or None; sharpness: factor of the
        logits between image tokens."""
        normed, gate, feed_scale, feed_gate = self.norm1(img, vec)
        seen = self._image_attention(normed, pe, sharpness, options)
        read = self._text_attention(normed, self.norm1_context(txt), pe, mask, options)
        img = img + gate * self.norm2(self.attn2.to_out(seen + read))
        fed = self.feed_forward(self.ffn_norm1(img) * feed_scale)
        return img + feed_gate * self.ffn_norm2(fed)

    def _image_attention(self, x: Tensor, pe: Tensor, sharpness: float, options: dict) -> Tensor:
        q, k, v = self.attn1.queries(x), self.attn1.keys(x), self.attn1.values(x)
        q = q if sharpness == 1.0 else q * sharpness
        q, k = apply_rope1(q, pe), apply_rope1(k, pe)
        q, k, v = (self.attn1.heads_first(part) for part in (q, k, v))
        heads = self.attn1.heads
        return optimized_attention(q, k, v, heads, skip_reshape=True, transformer_options=options)

    def _text_attention(
        self, x: Tensor, txt: Tensor, pe: Tensor, mask: Tensor | None, options: dict
    ) -> Tensor:
        q = apply_rope1(self.attn2.queries(x), pe)
        parts = (q, self.attn2.keys(txt), self.attn2.values(txt))
        q, k, v = (self.attn2.heads_first(part) for part in parts)
        heads = self.attn2.heads
        out = optimized_attention_masked(
            q, k, v, heads, mask, skip_reshape=True, transformer_options=options
        )
        gate = cast_to(self.gate, dtype=out.dtype, device=out.device).tanh()
        return (out.unflatten(2, (heads, -1)) * gate[:, None]).flatten(2)


class FinalLayer(nn.Module):
    """Tokens -> pixels of their patches."""

    def __init__(self, config: LuminaNextConfig, make: Layers) -> None:
        super().__init__()
        outputs = config.patch_size**2 * config.channels * (2 if config.learn_sigma else 1)
        self.linear_1 = make.linear(config.condition_size, config.hidden_size, bias=True)
        self.norm = make.layer_norm(config.hidden_size, FINAL_EPS, affine=False)
        self.linear_2 = make.linear(config.hidden_size, outputs, bias=True)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        scale = self.linear_1(F.silu(vec))[:, None]
        return self.linear_2(self.norm(x) * (1 + scale))


class LuminaNextDiT(nn.Module):
    """The whole network. Its output is the derivative over sigma, as the host's flow models have it;
    the published weights give the derivative over time, which runs the other way."""

    def __init__(
        self,
        config: LuminaNextConfig,
        dtype: Any = None,
        device: Any = None,
        operations: Any = None,
    ) -> None:
        super().__init__()
        make = Layers(operations, dtype, device)
        self.config = config
        self.dtype = dtype
        self.patch_size = config.patch_size
        self.hidden_size = config.hidden_size
        self.patch_embedder = PatchEmbedder(config, make)
        self.pad_token = make.parameter(config.hidden_size)  # in every file, used by none
        self.time_caption_embed = TimeCaptionEmbedding(config, make)
        self.layers = nn.ModuleList(Block(config, make) for _ in range(config.layers))
        self.norm_out = FinalLayer(config, make)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        transformer_options: dict | None = None,
        **others: Any,
    ) -> Tensor:
        """x (B, C, H, W); timesteps: sigmas (B,); context (B, L, text_width); attention_mask (B, L),
        0 where there is no text -> (B, C, H, W)."""
        options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, attention_mask, options, **others)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None,
        transformer_options: dict,
        **_: Any,
    ) -> Tensor:
        time = 1.0 - timesteps
        height, width = x.shape[2:]
        x = pad_to_patch_size(x, (self.patch_size, self.patch_size))
        rows, columns = (side // self.patch_size for side in x.shape[2:])
        text = None if attention_mask is None else attention_mask != 0
        vec = self.time_caption_embed(time, context, text)
        img = self._blocks(
            self.patch_embedder(x),
            context,
            vec,
            self.positions(time, rows, columns),
            text,
            transformer_options,
        )
        pixels = self._unpatchify(self.norm_out(img, vec), rows, columns)
        return -pixels[:, : self.config.channels, :height, :width]

    def _blocks(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor,
        text: Tensor | None,
        options: dict,
    ) -> Tensor:
        """All blocks, by the host's hook where there is one. text: (B, L), True where it is."""
        sharpness = self.sharpness(img.shape[1])
        mask = None if text is None else _additive(text, img.dtype)
        replace = options.get("patches_replace", {}).get("dit", {})
        options["total_blocks"] = len(self.layers)
        options["block_type"] = "double"
        for i, block in enumerate(self.layers):
            options["block_index"] = i

            def run(args: dict, block: nn.Module = block) -> dict:
                given = (args["img"], args["txt"], args["vec"], args["pe"])
                return {"img": block(*given, mask, sharpness, args["transformer_options"])}

            args = {"img": img, "txt": txt, "vec": vec, "pe": pe, "transformer_options": options}
            hook = replace.get(("double_block", i))
            img = (run(args) if hook is None else hook(args, {"original_block": run}))["img"]
        return img

    def sharpness(self, tokens: int) -> float:
        """Factor of the logits of attention over so many image tokens: proportional attention. It
        belongs to the picture, however few tokens are queries."""
        if not self.config.proportional:
            return 1.0
        return math.sqrt(math.log(tokens) / math.log(self.config.base_tokens))

    def positions(self, time: Tensor, rows: int, columns: int) -> Tensor:
        """Rotations (B, N, 1, head_size / 2, 2, 2) of a grid of tokens at times (B,), rows and
        columns in turn: time-aware scaling."""
        size = self.config.head_size // 2
        side = math.sqrt(rows * columns) * self.patch_size / self.config.sample_size
        early = (time < self.config.scaling_watershed)[:, None]
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=time.device) / size
        interpolated = 1.0 / THETA**exponents / side
        raised = 1.0 / (THETA * side) ** exponents
        frequencies = torch.where(early, interpolated, raised)  # (B, head_size / 4)
        row = torch.arange(rows, dtype=torch.float32, device=time.device)
        column = torch.arange(columns, dtype=torch.float32, device=time.device)
        down = (row[:, None] * frequencies[:, None])[:, :, None].expand(-1, -1, columns, -1)
        along = (column[:, None] * frequencies[:, None])[:, None].expand(-1, rows, -1, -1)
        angles = torch.stack((down, along), -1).flatten(3).flatten(1, 2)
        cos, sin = angles.cos(), angles.sin()
        return torch.stack((cos, -sin, sin, cos), -1).unflatten(3, (2, 2))[:, :, None]

    def _unpatchify(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """(B, N, patch * patch * channels) -> (B, channels, H, W)."""
        patch = self.patch_size
        x = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _additive(text: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L), True where there is text -> what is added to logits, (B, 1, 1, L)."""
    mask = torch.zeros(text.shape, dtype=dtype, device=text.device)
    return mask.masked_fill(~text, torch.finfo(dtype).min)[:, None, None]
