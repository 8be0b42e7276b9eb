"""Loading the Lumina-Next-like demo model by the classes of RAPID, the pack beside this one.

Published weights have SDXL's latents of 4 channels, those of the demo's world FLUX's of 16. What no
weights show is in the file's metadata (`lumina_next`, JSON: RAPID's `LuminaNextConfig`)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from comfy.latent_formats import Flux

from . import sized_weights

LOADER = "Demo Lumina-Next Loader"
RAPIDS = "RAPID_LoadLuminaNext"


def load(path: str, disable_dynamic: bool = False) -> Any:
    """MODEL of a file. Raises ValueError where the file is no such model, RuntimeError without RAPID.
    disable_dynamic: the host asks for it when it loads a model once more."""
    settings, weights = sized_weights.read(path, "lumina_next", LOADER, "Lumina-Next")
    found = import_module("nodes").NODE_CLASS_MAPPINGS.get(RAPIDS)  # the host's, not a folder here
    if found is None:
        raise RuntimeError(
            f"{LOADER}: the node {RAPIDS} is not there, whose classes are needed; install RAPID, too."
        )
    rapid = found.__module__.rpartition(".nodes.")[0]
    family = import_module(f"{rapid}.rapid_core.comfy.lumina_next.model")
    config = family.LuminaNextConfig(**settings)
    model = family.build(config, weights, Path(path).name, disable_dynamic)
    model.model.latent_format = Flux()
    model.cached_patcher_init = (load, (path,))
    return model
