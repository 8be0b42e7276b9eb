"""What decisions cost on a model: the demo's own, or a published one in its usual size.

The same decisions save different shares: attention is a fifth of FLUX at 1024 px, half of a small
model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from rapid_core.architectures import describe
from rapid_core.cost import CostModel
from rapid_core.types import Sparsity

SPARSITY = Sparsity(dense_first=1)
PUBLISHED = ("flux-dev", "sd3-medium", "lumina2")


class Decision(NamedTuple):
    """Of one evaluation: level, share of image tokens, density of attention, and the density that
    is measured."""

    level: str
    share: float = 1.0
    density: float = 1.0
    measures: float | None = None


def cost_function(
    cost: CostModel, image: int, text: int, sparsity: Sparsity = SPARSITY
) -> Callable[[list[Decision]], float]:
    """Cost of evaluations, in dense ones, by their decisions."""
    dense = cost.flops(image, text).dense

    def of(decisions: list[Decision]) -> float:
        total, how = 0.0, replace(sparsity, left_out="means")
        for level, share, density, measures in decisions:
            how = (
                how if measures is None else replace(sparsity, left_out="forecast")
            )  # and the tiles chosen with it
            if level == "reuse":
                total += cost.flops(image, text).reuse
            elif level == "run":
                total += cost.flops(image, text, round(share * image), density, how, measures).dense
        return total / dense

    return of


def published(name: str, sparsity: Sparsity = SPARSITY) -> Callable[[list[Decision]], float]:
    """Cost on a published model at 1024 px, from its dimensions; its classes come from the host,
    without weights."""
    import comfy.ops

    common: dict[str, Any] = dict(
        device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init
    )
    if name == "flux-dev":
        from comfy.ldm.flux.model import Flux

        model = Flux(
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
        text = 512
    elif name == "sd3-medium":
        from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

        embedder = {
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 1536},
        }
        model = MMDiT(
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
        text = 154
    elif name == "lumina2":
        from comfy.ldm.lumina.model import NextDiT

        model = NextDiT(
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
        text = 256
    else:
        raise ValueError(f"--cost-of {name!r} was given; accepted are demo, {', '.join(PUBLISHED)}")
    architecture = describe(model)
    assert architecture is not None
    return cost_function(CostModel(model, architecture), 64 * 64, text, sparsity)


def decisions(model: Any, image: int, computed: int) -> list[Decision]:
    """Decision of every evaluation of the latest run of a patched model; `computed` whole ones
    otherwise."""
    chain = model.model_options.get("transformer_options", {}).get("rapid")
    if chain is None:
        return [Decision("run")] * computed
    return [
        Decision(
            e.levels[image],
            e.share[image],
            *((e.density[image], e.measures[image]) if e.density else ()),
        )
        for e in chain.log.records[-1].evaluations
    ]
