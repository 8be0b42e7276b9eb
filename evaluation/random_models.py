"""Models of any size with random weights, built through the host's own configuration classes.

Most families the host's detection accepts only at their published widths; here only that detection
is left out. Random weights draw noise: such models serve to test and to time, never to judge
quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.nested_tensor
import comfy.sample
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


def _nothing() -> dict[str, Any]:
    return {}


Conditioning = list[list[Any]]


@dataclass(frozen=True)
class FamilyModel:
    """A model of one family."""

    kind: str
    """Name of its class in comfy.supported_models; with its module where it lies elsewhere."""
    config: dict
    """What the host's detection would find."""
    latent: tuple[int, ...] = (16, 16, 24)
    """The latent it takes, (C, [T,] H, W)."""
    others: tuple[tuple[int, ...], ...] = ()
    """The other parts of a latent that has several, such as audio beside video."""
    images: int = 2
    """Images of a batch that the host takes at most, in tests of two."""
    text: tuple[int, ...] = (16, 64)
    """Text of its conditioning, (tokens, width), after axes of its own where it has such."""
    pooled: int | None = 64
    """Width of the pooled text; None where it takes none."""
    file: Callable[[], dict[str, Any]] = _nothing
    """What the host reads of a checkpoint beside the diffusion model."""
    given: Callable[[], dict[str, Any]] = _nothing
    """What else its conditioning has to hold."""

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """MODEL with random weights, which computes in `dtype`."""
        module, _, name = self.kind.rpartition(".")
        owner = import_module(module) if module else comfy.supported_models
        settings = getattr(owner, name)(dict(self.config))
        settings.unet_config.update(self.config)  # also what the class sets to published sizes
        settings.set_inference_dtype(dtype, None)
        device = comfy.model_management.get_torch_device()
        model = settings.get_model(self.file(), "")
        fill_randomly(model.diffusion_model, seed)
        model.eval()
        return comfy.model_patcher.ModelPatcher(
            model, device, comfy.model_management.unet_offload_device()
        )

    def conditioning(self, seed: int = 0) -> Conditioning:
        """Random CONDITIONING as a prompt's."""
        make = torch.Generator().manual_seed(1000 + seed)
        text = torch.randn(1, *self.text, generator=make)
        more = self.given()
        if self.pooled is not None:
            more["pooled_output"] = torch.randn(1, self.pooled, generator=make)
        return [[text, more]]

    def empty_latent(self, batch: int = 1) -> Any:
        """Zeros (B, C, ...), nested where the latent has several parts."""
        parts = [torch.zeros(batch, *shape) for shape in (self.latent, *self.others)]
        return comfy.nested_tensor.NestedTensor(parts) if self.others else parts[0]

    def sample(
        self,
        model: Any,
        *,
        steps: int = 10,
        cfg: float = 1.0,
        batch: int = 1,
        first: int = 0,
    ) -> list[torch.Tensor]:
        """Parts of the latents (B, C, ...) as KSampler draws them with Euler. first: number of the
        first image of a batch of two, whose noise it has."""
        latent = self.empty_latent(batch)
        noise = comfy.sample.prepare_noise(self.empty_latent(max(batch, 2)), 0)
        parts = noise.unbind() if self.others else [noise]
        own = [part[first : first + batch].clone() for part in parts]
        noise = comfy.nested_tensor.NestedTensor(own) if self.others else own[0]
        with torch.inference_mode():
            out = comfy.sample.sample(
                model,
                noise,
                steps,
                cfg,
                "euler",
                "simple",
                self.conditioning(0),
                self.conditioning(1),
                latent,
                disable_pbar=True,
                seed=0,
            )
        return [part.clone() for part in (out.unbind() if self.others else [out])]
