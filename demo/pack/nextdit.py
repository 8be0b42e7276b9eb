"""Loading a NextDiT (Lumina Image 2.0) of any size through the host's own configuration class.

The host tells a Lumina from its weights only at the published widths; the sizes of a small one are
in the file's metadata (`nextdit`, JSON: the host's `unet_config`)."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from . import sized_weights


def load(path: str) -> Any:
    """MODEL of a file. Raises ValueError where the file is no such model."""
    settings, weights = sized_weights.read(path, "nextdit", "Demo Lumina Loader", "Lumina")
    return build(settings, weights)


def build(config: dict, weights: dict[str, torch.Tensor]) -> Any:
    """MODEL of the host's Lumina 2 classes, made from `config` as detection would give it."""
    management = comfy.model_management
    settings = comfy.supported_models.Lumina2(dict(config))
    device, parameters = management.get_torch_device(), sum(w.numel() for w in weights.values())
    dtype = management.unet_dtype(
        model_params=parameters,
        supported_dtypes=list(settings.supported_inference_dtypes),
        weight_dtype=next(iter(weights.values())).dtype,
    )
    cast = management.unet_manual_cast(dtype, device, settings.supported_inference_dtypes)
    settings.set_inference_dtype(dtype, cast)
    model = settings.get_model(weights, "")
    model.load_model_weights(dict(weights), "")
    model.to(management.unet_offload_device())
    return comfy.model_patcher.ModelPatcher(model, device, management.unet_offload_device())
