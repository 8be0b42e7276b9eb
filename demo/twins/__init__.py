"""Trainable twins of ComfyUI's Flux, MMDiT and NextDiT, and of this pack's Lumina-Next: the same
state-dict keys and the same function, with autograd.

ComfyUI's classes update activations in place and use fused kernels without gradients; these do
not. Only what the demo models use is here. A test holds the twins against the classes that draw.
"""

from __future__ import annotations

from torch import nn

from demo.twins.flux import FluxTwin
from demo.twins.layers import TwinConfig
from demo.twins.lumina import LuminaConfig, LuminaTwin
from demo.twins.lumina_next import LuminaNextTwin
from demo.twins.sd3 import SD3Twin

__all__ = [
    "TWINS",
    "FluxTwin",
    "LuminaConfig",
    "LuminaNextTwin",
    "LuminaTwin",
    "SD3Twin",
    "TwinConfig",
    "initialise",
]

TWINS = {
    "flux": FluxTwin,
    "sd3": SD3Twin,
    "lumina": LuminaTwin,
    "lumina_next": LuminaNextTwin,
}
# Names of the layers that give scales and gates (or what is added), and of the last one.
MODULATIONS = (".lin", "adaLN_modulation.1", ".norm1.linear")
LAST = ("final_layer.linear", "norm_out.linear_2")


def initialise(model: nn.Module) -> nn.Module:
    """AdaLN-zero start: gates and output at zero, so that each block begins as the identity
    (Peebles & Xie)."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name.endswith(MODULATIONS) or name in LAST:
            nn.init.zeros_(module.weight)
    return model
