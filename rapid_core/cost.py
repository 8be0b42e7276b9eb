"""Cost of an evaluation in FLOPs, as torch's counter counts them: a multiply-add is two, only matrix products.

Pure functions of architecture and token counts, never of the clock, so that plans and pictures are deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Flops:
    """FLOPs of one image in one conditioning stream: everything, and what remains when the blocks are passed over."""

    dense: int
    reuse: int


def attention_flops(queries: int, keys: int, hidden: int) -> int:
    """Scores and weighted values of one attention."""
    return 4 * queries * keys * hidden


def flux_flops(model: Any, image: int, text: int) -> Flops:
    """FLUX with `image` and `text` tokens; `model` is the host's Flux, or anything with its attributes."""
    p, h = model.params, model.hidden_size
    mlp = int(h * p.mlp_ratio)
    n = image + text
    embed = 2 * image * model.in_channels * h + 2 * text * p.context_in_dim * h + _vector_flops(p, h)
    final = 2 * image * h * model.out_channels + 4 * h * h
    per_token = 2 * (4 * h * h + 2 * h * mlp)
    double = n * per_token + attention_flops(n, n, h) + 2 * 12 * h * h
    single = n * per_token + attention_flops(n, n, h) + 2 * 3 * h * h
    blocks = len(model.double_blocks) * double + len(model.single_blocks) * single
    return Flops(embed + blocks + final, embed + final)


def _vector_flops(p: Any, h: int) -> int:
    inputs = 256 + (p.vec_in_dim or 0) + (256 if p.guidance_embed else 0)
    embedders = 1 + (p.vec_in_dim is not None) + bool(p.guidance_embed)
    return 2 * inputs * h + embedders * 2 * h * h


def sd3_flops(model: Any, image: int, text: int) -> Flops:
    """SD3's MMDiT with `image` and `text` tokens; the last block's text only feeds the attention."""
    h, patch = model.hidden_size, model.patch_size
    patch = patch[0] if isinstance(patch, (tuple, list)) else patch
    context = getattr(model.context_embedder, "in_features", 0)
    pooled = 0 if model.y_embedder is None else 2 * h * (model.y_embedder.mlp[0].in_features + h)
    embed = 2 * image * model.in_channels * patch**2 * h + 2 * text * context * h + 2 * h * (256 + h) + pooled
    final = 2 * image * h * model.out_channels * patch**2 + 4 * h * h
    n = image + text
    mlp = model.joint_blocks[0].x_block.mlp.fc1.out_features
    per_token = 2 * (4 * h * h + 2 * h * mlp)
    total = 0
    for block in model.joint_blocks:
        last = block.context_block.pre_only
        twice = getattr(block.x_block, "x_block_self_attn", False)
        total += image * per_token + attention_flops(n, n, h)
        total += 2 * text * 3 * h * h if last else text * per_token
        total += 2 * (2 if last else 6) * h * h + 2 * (9 if twice else 6) * h * h
        if twice:
            total += 2 * image * 4 * h * h + attention_flops(image, image, h)
    return Flops(embed + total + final, embed + final)
