"""LoRAs for the tiny FLUX model, as files have them and as nodes put them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rapid_testing.sampling import Conditioning, make_conditioning

LAYER = "double_blocks.0.img_attn.proj"  # of the tiny FLUX: 128 x 128


def lora_file(seed: int, layer: str = LAYER, rank: int = 4) -> dict[str, torch.Tensor]:
    """What is in a file of a LoRA for one layer."""
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(2, 128, rank, generator=generator).unbind()
    name = f"diffusion_model.{layer}"
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down.T.contiguous()}


def with_lora(model: Any, seed: int = 0, strength: float = 1.0, layer: str = LAYER) -> Any:
    """A model as LoraLoaderModelOnly gives it."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora_file(seed, layer), strength, 0.0)[0]


def hooked(
    seed: int = 0, strength: float = 1.0, keyframes: Sequence[tuple[float, float]] = ()
) -> Conditioning:
    """A positive conditioning with a LoRA hook; keyframes: (strength, start)."""
    import comfy.hooks

    group = comfy.hooks.create_hook_lora(lora_file(seed), strength, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for factor, start in keyframes:
        frames.add(comfy.hooks.HookKeyframe(factor, start))
    group.set_keyframes_on_hooks(frames)
    return make_conditioning(0, hooks=group)
