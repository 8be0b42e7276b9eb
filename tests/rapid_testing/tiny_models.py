"""Tiny random checkpoints of real architectures, small but recognised by ComfyUI's own detection.

All take conditioning of width CONTEXT and pooled width POOLED, and latents of 16 channels at 1/8.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.ops
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from safetensors.torch import save_file

from evaluation.random_models import fill_randomly
from rapid_testing import CHANNELS, CONTEXT, POOLED

OPERATIONS = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


def build_flux(double: int = 2, single: int = 2, heads: int = 1) -> torch.nn.Module:
    """FLUX with guidance: `double` + `single` blocks, hidden width 128 a head."""
    return Flux(
        image_model="flux",
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        patch_size=2,
        vec_in_dim=POOLED,
        context_in_dim=CONTEXT,
        hidden_size=128 * heads,
        num_heads=heads,
        mlp_ratio=4.0,
        depth=double,
        depth_single_blocks=single,
        axes_dim=[16, 56, 56],
        theta=10000,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
        **OPERATIONS,
    )


def build_sd3(
    depth: int = 2, self_attention: tuple[int, ...] = (), side: int = 64
) -> torch.nn.Module:
    """SD3's MMDiT: `depth` blocks and heads, width 64 depth; `self_attention`: blocks as in SD3.5
    medium."""
    return MMDiT(
        input_size=None,
        in_channels=CHANNELS,
        patch_size=2,
        depth=depth,
        adm_in_channels=POOLED,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": CONTEXT, "out_features": 64 * depth},
        },
        num_patches=side * side,
        pos_embed_max_size=side,
        qk_norm="rms",
        x_block_self_attn_layers=list(self_attention),
        **OPERATIONS,
    )


BUILDERS: dict[str, Callable[[], torch.nn.Module]] = {
    "flux": build_flux,
    "sd3": build_sd3,
    "sd35": lambda: build_sd3(self_attention=(0,)),
}


def save_tiny_model(kind: str, path: Path, seed: int = 0) -> Path:
    """Write a checkpoint that UNETLoader and comfy.sd.load_diffusion_model accept."""
    model = fill_randomly(BUILDERS[kind](), seed)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, str(path))
    return path
