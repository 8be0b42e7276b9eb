"""What ComfyUI knows of a run before it begins, as `engine.plan` wants it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.model_management
from torch import Tensor

from ..architectures import describe
from ..cost import CostModel
from ..engine.plan import CondFacts, HostFacts
from ..reasons import ReasonCode
from ..types import Reason
from . import blocks
from .block_table import block_table
from .conditions import turns_of
from .features import why_blind
from .sampler_facts import is_sensitive, sampler_kind, sampler_name


def host_facts(
    guider: Any,
    noise: Tensor,
    sampler: Any,
    sigmas: Tensor,
    latent_shapes: Sequence[Sequence[int]] | None = None,
    notes: tuple[Reason, ...] = (),
) -> HostFacts:
    """Facts of a run of `guider` on noise (B, C, ...). latent_shapes: of the parts of a packed
    latent."""
    patcher = guider.model_patcher
    model = patcher.model.diffusion_model
    shape = tuple(noise.shape)
    parts = parts_of(latent_shapes)
    shapes = [tuple(part) for part in latent_shapes or ()] if parts else [shape]
    known, unread = _known(model, shapes, guider.model_options)
    architecture = known.get("architecture")
    name = sampler_name(sampler)
    lists = evaluated(guider, name)
    conds = [c for list_name in lists for c in guider.conds[list_name]]
    cast = None
    if hasattr(patcher.model, "manual_cast_dtype"):
        cast = patcher.get_model_object("manual_cast_dtype")  # patches of it are not applied yet
    schedule = tuple(sigmas.tolist())
    sampling = patcher.get_model_object("model_sampling")  # patches of it are not applied yet

    def sigma_at(percent: float) -> float:
        return float(sampling.percent_to_sigma(percent))

    return HostFacts(
        shape=shape,
        sigmas=schedule,
        turns=turns_of(conds, schedule, sigma_at),
        sampler=name,
        sampler_kind=sampler_kind(sampler, schedule),
        sampler_sensitive=is_sensitive(sampler),
        model_name=type(model).__name__,
        conds=tuple(_cond(c, architecture, model) for c in conds),
        lists=len(lists),
        element=(cast or patcher.model.get_dtype()).itemsize,
        device_memory=comfy.model_management.get_total_memory(patcher.load_device),
        device_type=patcher.load_device.type,
        sigma_at=sigma_at,
        parts=parts,
        features_refused=partial(
            why_blind, architecture=architecture, model=model, shape=shape, guider=guider
        ),
        notes=notes if unread is None else (*notes, unread),
        **known,
    )


def _known(
    model: Any, shapes: Sequence[tuple[int, ...]], options: dict
) -> tuple[dict[str, Any], Reason | None]:
    """Facts of the model's tokens, blocks and cost, none where its class or its latents are not
    known; and why, where they could not be read. The one place where a model is looked into before a
    run: whatever it lacks, whole evaluations can be skipped. shapes: of the parts of a latent."""
    try:
        architecture = describe(model)
        shape, packed = shapes[0], len(shapes) > 1
        if architecture is None or not architecture.takes(shape):
            return {}, None
        if packed and not architecture.audio:
            return {}, None
        facts = {
            "video": shape[1:] if packed else (),
            "audio_tokens": architecture.audio_tokens(shapes),
            "architecture": architecture,
            "cost": CostModel(model, architecture),
            "patch": architecture.patch(model),
            "image_tokens": architecture.image_tokens(model, shape),
            "blocks": len(block_table(architecture, model)),
            "blocks_refused": blocks.foreign_block(_replaced(options), architecture, model),
        }
        return facts, None
    except Exception as error:
        name = type(model).__name__
        logging.exception("RAPID: the blocks of %s could not be read", name)
        why = f"{type(error).__name__}: {error}"
        return {}, Reason(ReasonCode.BLOCKS_UNREAD, model=name, error=why)


def evaluated(guider: Any, sampler: str) -> list[str]:
    """Names of the lists of conditionings that a run will evaluate."""
    known = set(guider.conds) <= {"positive", "negative"}
    unguided = known and abs(getattr(guider, "cfg", 0.0) - 1.0) < 1e-6
    # Samplers of that name look at the negative whatever the scale, and say so in options of their
    # own only.
    both = guider.model_options.get("disable_cfg1_optimization") or "cfg_pp" in sampler
    return [name for name in guider.conds if not (name == "negative" and unguided and not both)]


def parts_of(latent_shapes: Sequence[Sequence[int]] | None) -> tuple[slice, ...]:
    """Places of the parts of a packed latent on its last axis; none where it is not packed."""
    if latent_shapes is None or len(latent_shapes) < 2:
        return ()
    parts = []
    start = 0
    for shape in latent_shapes:
        size = 1
        for side in tuple(shape)[1:]:
            size *= side
        parts.append(slice(start, start + size))
        start += size
    return tuple(parts)


def _replaced(model_options: dict) -> dict:
    options = model_options.get("transformer_options", {})
    return options.get("patches_replace", {}).get("dit", {})


def _cond(cond: dict, architecture: Any, model: Any) -> CondFacts:
    text = cond.get("cross_attn")
    references = 0
    if architecture is not None:
        references = architecture.reference_tokens(model, cond.get("reference_latents"))
    return CondFacts(
        uuid=cond.get("uuid"),
        text_tokens=0 if text is None else text.shape[1],
        reference_tokens=references,
    )
