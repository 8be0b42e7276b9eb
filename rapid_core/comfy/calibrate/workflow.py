"""The workflow that is calibrated: what SamplerCustom is given, and what decides its pictures."""

from __future__ import annotations

import hashlib
import inspect
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...calibration.model_key import ModelKey
from ..functions import settings_of

# What a ControlNet of a conditioning is told, beside its weights.
TOLD = ("strength", "timestep_percent_range", "cond_hint_original", "previous_controlnet")


@dataclass(frozen=True, eq=False)
class Workflow:
    """What SamplerCustom is given."""

    model: Any
    noise_seed: int
    cfg: float
    positives: Sequence[list]
    """Prompts, which the seeds are drawn with in turn."""
    negative: list
    sampler: Any
    sigmas: Tensor
    """(N + 1,)"""
    latent: Mapping[str, Any]


def latent_of(workflow: Workflow) -> Any:
    """The latent as SamplerCustom makes it fit the model."""
    given = workflow.latent
    fit = comfy.sample.fix_empty_latent_channels
    known = inspect.signature(fit).parameters  # older hosts take less
    ratios = {
        name: given[name]
        for name in ("downscale_ratio_spacial", "downscale_ratio_temporal")
        if name in given and name in known
    }
    return fit(workflow.model, given["samples"], **ratios)


def inputs_of(workflow: Workflow, key: ModelKey) -> str:
    """Fingerprint of all that decides the pictures of a workflow."""
    digest = hashlib.sha256()
    options = getattr(workflow.sampler, "extra_options", None)
    given = [key.to_json(), workflow.noise_seed, workflow.positives, workflow.negative, options]
    given.append(dict(workflow.latent))
    # Guidance of other nodes (RescaleCFG, SkipLayerGuidance) and how the model is sampled. A model that
    # nothing was done to is told as it was before there was this.
    changed = _filled([workflow.model.model_options, workflow.model.object_patches])
    _add(digest, [*given, *(changed or ())])
    return digest.hexdigest()[:32]


def _filled(value: Any) -> Any:
    """Options without what is empty in them."""
    if isinstance(value, Mapping):
        return {
            name: inner for name, one in value.items() if (inner := _filled(one)) is not None
        } or None
    if isinstance(value, (list, tuple)):
        return [inner for one in value if (inner := _filled(one)) is not None] or None
    return value


def _add(digest: Any, value: Any) -> None:
    """Add a value's content to a digest: tensors whole, functions by their name and what they were
    made with, other objects by their class and what a ControlNet is told; what else they hold changes
    while they are used."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().flatten()
        digest.update(data.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(f"{name}:".encode())
            _add(digest, value[name])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for one in value:
            _add(digest, one)
    elif value is None or isinstance(value, (str, bytes, numbers.Number)):
        digest.update(repr(value).encode())
    else:
        digest.update(getattr(value, "__qualname__", type(value).__qualname__).encode())
        _add(digest, [getattr(value, name, None) for name in TOLD])
        _add(digest, settings_of(value))
