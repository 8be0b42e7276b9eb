"""A Lumina-Next network as a MODEL of the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_management as management
import comfy.model_patcher
import torch
from comfy.latent_formats import SDXL
from comfy.model_base import BaseModel, ModelType
from comfy.supported_models_base import BASE
from comfy.utils import calculate_parameters, weight_dtype
from torch import Tensor
from torch.nn.functional import pad

from .config import LuminaNextConfig, config_of
from .files import check_tensors, read_network
from .network import LuminaNextDiT

GUIDED_CHANNELS = 3  # of the latent, as published
LAYOUT = "Lumina-Next model in diffusers' layout"


class LuminaNextModel(BaseModel):
    """A network with its conditionings."""

    def __init__(self, model_config: LuminaNext, device: Any = None) -> None:
        network: Any = LuminaNextDiT
        super().__init__(model_config, ModelType.FLOW, device=device, unet_model=network)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Raises ValueError for text or a latent that this network was not made for."""
        out = super().extra_conds(**kwargs)
        config: Any = self.diffusion_model.config
        noise, text = kwargs.get("noise"), kwargs.get("cross_attn")
        if isinstance(noise, Tensor):
            check_latent(config, noise)
        if text is not None:
            check_text(config, text)
            out["c_crossattn"] = comfy.conds.CONDRegular(text)
            mask = kwargs.get("attention_mask")
            if mask is not None and not bool((mask != 0).all()):
                # What was joined to the text later has no mask of its own.
                whole = pad(mask, (0, text.shape[1] - mask.shape[1]), value=1)
                out["attention_mask"] = comfy.conds.CONDRegular(whole)
        return out


class LuminaNext(BASE):
    """The host's settings of the family. Sigmas are not shifted, as published: the host's scheduler
    "normal" gives the published ones."""

    unet_config: dict = {}
    unet_extra_config: dict = {}
    sampling_settings = {"multiplier": 1.0, "shift": 1.0}
    latent_format = SDXL
    memory_usage_factor = 1.4  # the host's of Lumina 2, whose blocks are as wide
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> LuminaNextModel:
        del state_dict, prefix
        return LuminaNextModel(self, device=device)


def check_latent(config: LuminaNextConfig, latent: Tensor) -> None:
    """Raise ValueError for a latent that another family's VAE made."""
    if latent.ndim != 4 or latent.shape[1] != config.channels:
        shape = " x ".join(map(str, latent.shape))
        raise ValueError(
            f"Lumina-Next was given a latent of {shape}; it takes (batch, {config.channels}, "
            f"height, width), as the VAE of SDXL makes them. Load that VAE, and take Empty Latent "
            f"Image or VAE Encode with it."
        )


def check_text(config: LuminaNextConfig, text: Tensor) -> None:
    """Raise ValueError for text of another encoder."""
    if text.shape[-1] != config.text_width:
        raise ValueError(
            f"Lumina-Next was given text of {text.shape[-1]} channels a token; this model takes "
            f"{config.text_width}, as Gemma 2B (version 1) makes them. Load it with RAPID Load "
            f"Lumina-Next Text Encoder, and encode both prompts with it."
        )


def load(
    path: Path,
    scaling_watershed: float = 1.0,
    proportional: bool = True,
    disable_dynamic: bool = False,
) -> Any:
    """MODEL of a file, or of all shards that belong to it. Raises ValueError where it cannot be
    such a model. disable_dynamic: the host asks for it when it loads a model once more."""
    weights, beside = read_network(path)
    config = replace(
        config_of(weights, beside), scaling_watershed=scaling_watershed, proportional=proportional
    )
    patcher = build(config, weights, path.name, disable_dynamic)
    patcher.cached_patcher_init = (load, (path, scaling_watershed, proportional))
    return patcher


def build(
    config: LuminaNextConfig,
    weights: Mapping[str, Tensor],
    name: str,
    disable_dynamic: bool = False,
) -> Any:
    """MODEL with these weights, at the precision that suits the device. name: of the file, for
    errors. Raises ValueError where weights are missing or have other shapes."""
    settings = LuminaNext({"config": config})
    device = management.get_torch_device()
    offload = management.unet_offload_device()
    supported = list(settings.supported_inference_dtypes)
    dtype = management.unet_dtype(
        model_params=calculate_parameters(weights),
        supported_dtypes=supported,
        weight_dtype=weight_dtype(weights),
    )
    cast = management.unet_manual_cast(dtype, device, supported)
    settings.set_inference_dtype(dtype, cast)
    model = settings.get_model({}, "")
    check_tensors(model.diffusion_model.state_dict(), weights, name, LAYOUT)
    kind = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        kind = getattr(comfy.model_patcher, "CoreModelPatcher", kind)  # older hosts have one kind
    patcher = kind(model, load_device=device, offload_device=offload)
    if not management.is_device_cpu(offload):
        model.to(offload)
    dynamic = hasattr(patcher, "is_dynamic") and patcher.is_dynamic()
    model.load_model_weights(dict(weights), "", **({"assign": True} if dynamic else {}))
    return patcher


def guide_first_channels(patcher: Any) -> Any:
    """A clone whose last latent channel is taken from the positive prompt alone, as in the published
    pipeline, which guides three channels of four."""
    clone = patcher.clone()
    clone.set_model_sampler_post_cfg_function(_unguided_rest)
    return clone


def _unguided_rest(args: dict[str, Any]) -> Tensor:
    guided, positive = args["denoised"], args["cond_denoised"]
    return torch.cat((guided[:, :GUIDED_CHANNELS], positive[:, GUIDED_CHANNELS:]), dim=1)
