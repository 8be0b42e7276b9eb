"""Models of any size with random weights, built through the host's own configuration classes.

Most families the host's detection accepts only at their published widths; here only that detection
is left out. Random weights draw noise: such models serve to test and to time, never to judge
quality."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch


def fill_randomly(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights N(0, 1/fan_in), biases N(0, 0.05^2), norms 1: outputs neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name == "pos_embed":
                tensor.copy_(noise * 0.5)
            elif tensor.ndim >= 2:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            elif name.endswith("bias"):
                tensor.copy_(noise * 0.05)
            else:
                tensor.fill_(1.0)
    return model


@dataclass(frozen=True)
class FamilyModel:
    """A model of one family."""

    kind: str
    """Name of its class in comfy.supported_models; with its module where it lies elsewhere."""
    config: dict
    """What the host's detection would find."""
    latent: tuple[int, ...] = (16, 16, 24)
    """The latent it takes, (C, [T,] H, W)."""

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """MODEL with random weights, which computes in `dtype`."""
        module, _, name = self.kind.rpartition(".")
        owner = import_module(module) if module else comfy.supported_models
        settings = getattr(owner, name)(dict(self.config))
        settings.set_inference_dtype(dtype, None)
        device = comfy.model_management.get_torch_device()
        model = settings.get_model({}, "")
        fill_randomly(model.diffusion_model, seed)
        model.eval()
        return comfy.model_patcher.ModelPatcher(
            model, device, comfy.model_management.unet_offload_device()
        )
