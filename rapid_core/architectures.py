"""Table of Diffusion Transformer families: where their blocks are, their token layout, what an evaluation costs.

A family is told by the class name of the host's `diffusion_model` and by attributes; nothing here imports ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .cost import Flops, flux_flops, sd3_flops


@dataclass(frozen=True)
class Architecture:
    """A family. `groups`: (name in patches_replace["dit"], attribute of the block list), in order of execution."""

    family: str
    groups: tuple[tuple[str, str], ...]
    flops: Callable[[Any, int, int], Flops]
    patch: int = 2

    def blocks(self, model: Any) -> list[tuple[str, int]]:
        """Every block as (group, index), in order of execution."""
        return [(name, i) for name, attribute in self.groups for i in range(len(getattr(model, attribute)))]

    def image_tokens(self, shape: tuple[int, ...]) -> int:
        """Image tokens of a latent (B, C, H, W); odd sides are padded as the host does."""
        height, width = shape[-2:]
        return -(-height // self.patch) * -(-width // self.patch)


FLUX = Architecture("flux", (("double_block", "double_blocks"), ("single_block", "single_blocks")), flux_flops)
SD3 = Architecture("sd3", (("double_block", "joint_blocks"),), sd3_flops)


def describe(model: Any) -> Architecture | None:
    """Family of a host's `diffusion_model`; None where the family is not in the table."""
    name = type(model).__name__
    if name == "Flux" and not getattr(model.params, "global_modulation", False):
        return FLUX
    if name in ("OpenAISignatureMMDITWrapper", "MMDiT"):
        return SD3
    return None
