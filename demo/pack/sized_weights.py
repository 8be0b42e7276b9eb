"""Files of demo models whose sizes the host does not tell from the weights: they are in the metadata."""

from __future__ import annotations

import json

import torch
from safetensors import SafetensorError, safe_open


def read(path: str, key: str, loader: str, model: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings in a file's metadata (`key`, JSON), and its tensors. Raises ValueError where it cannot
    be read or is no such model. loader, model: names of the node and of its model, for errors."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{loader}: {path} cannot be read ({error}); restore it.") from error
    if key not in meta:
        raise ValueError(
            f"{loader}: {path} is not the {model}-like demo model; pick "
            f"{model.lower().replace('-', '_')}.safetensors."
        )
    return json.loads(meta[key]), weights
