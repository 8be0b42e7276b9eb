"""What decisions cost on a model: the demo's own, or a published one in its usual size.

The same decisions save different shares: attention is a fifth of FLUX at 1024 px, half of a small
model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from evaluation.decisions import Decision
from evaluation.suites import CostOf
from rapid_core.architectures import describe
from rapid_core.comfy.lumina_next.config import LuminaNextConfig
from rapid_core.cost import CostModel
from rapid_core.types import Mode, Sparsity

SPARSITY = Sparsity(dense_first=1)
LUMINA_NEXT = LuminaNextConfig(
    hidden_size=2304, layers=24, heads=32, kv_heads=8, feed_forward=6144, text_width=2048
)


def cost_function(cost: CostModel, image: int, text: int, sparsity: Sparsity = SPARSITY) -> CostOf:
    """Cost of evaluations, in full ones, by their decisions."""
    full = cost.flops(image, text).full
    predicted = replace(sparsity, compensation="predict")

    def cost_of(decisions: list[Decision]) -> float:
        total = 0.0
        how = replace(sparsity, compensation="means")
        for mode, share, density, measured in decisions:
            if measured is not None:  # and the tiles chosen with it
                how = predicted
            if mode == Mode.REUSE.value:
                total += cost.flops(image, text).reuse
            elif mode == Mode.RUN.value:
                active = round(share * image)
                total += cost.flops(image, text, active, density, how, measured).full
        return total / full

    return cost_of


def published(name: str, sparsity: Sparsity = SPARSITY) -> CostOf:
    """Cost on a published model at 1024 px, from its dimensions; its classes come from the host,
    without weights. Raises ValueError for a name that is not one of PUBLISHED."""
    if name not in BUILDERS:
        raise ValueError(f"--cost-of {name!r} was given; accepted are demo, {', '.join(PUBLISHED)}")
    import comfy.ops

    build, text = BUILDERS[name]
    operations = comfy.ops.disable_weight_init
    model = build(device="meta", dtype=torch.bfloat16, operations=operations)
    architecture = describe(model)
    assert architecture is not None
    return cost_function(CostModel(model, architecture), 64 * 64, text, sparsity)


def _flux_dev(**common: Any) -> torch.nn.Module:
    from comfy.ldm.flux.model import Flux

    return Flux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=3072,
        mlp_ratio=4.0,
        num_heads=24,
        depth=19,
        depth_single_blocks=38,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
        **common,
    )


def _sd3_medium(**common: Any) -> torch.nn.Module:
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}}
    return MMDiT(
        input_size=None,
        depth=24,
        in_channels=16,
        patch_size=2,
        adm_in_channels=2048,
        num_patches=36864,
        context_embedder_config=embedder,
        pos_embed_max_size=192,
        **common,
    )


def _lumina2(**common: Any) -> torch.nn.Module:
    from comfy.ldm.lumina.model import NextDiT

    return NextDiT(
        patch_size=2,
        in_channels=16,
        dim=2304,
        n_layers=26,
        n_heads=24,
        n_kv_heads=8,
        qk_norm=True,
        cap_feat_dim=2304,
        axes_dims=[32, 32, 32],
        axes_lens=[300, 512, 512],
        **common,
    )


def _lumina_next(**common: Any) -> torch.nn.Module:
    from rapid_core.comfy.lumina_next.network import LuminaNextDiT

    return LuminaNextDiT(LUMINA_NEXT, **common)


# Models by name, and text tokens of a prompt.
BUILDERS: dict[str, tuple[Callable[..., torch.nn.Module], int]] = {
    "flux-dev": (_flux_dev, 512),
    "sd3-medium": (_sd3_medium, 154),
    "lumina2": (_lumina2, 256),
    "lumina-next": (_lumina_next, 256),
}
PUBLISHED = tuple(BUILDERS)
