"""Set-ups of the host in which decisions cannot be followed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import comfy.model_base
from comfy.patcher_extension import WrappersMP, get_wrappers_with_key

from ..engine.evaluation import Evaluation
from ..reasons import ReasonCode
from ..types import Mode, Reason
from . import blocks

if TYPE_CHECKING:
    from .bind import BoundRun


def check_host(bound: BoundRun, evaluation: Evaluation, model_options: dict) -> None:
    """Fall back where the host is set up in a way that decisions cannot follow."""
    refusals = bound.run.refusals
    for reason in whole_run(bound, model_options):
        evaluation.force_full(reason)
        bound.give_up_tokens(reason)
    foreign = blocks.foreign_patches(model_options.get("transformer_options", {}))
    if foreign is not None:
        evaluation.force_full(foreign, evaluation.in_part())
        if evaluation.images(Mode.RUN):
            # A part of the batch would be given what the patch keeps of other rows.
            evaluation.force_full(foreign, evaluation.images(Mode.SKIP))
        bound.give_up_tokens(foreign)
    if evaluation.images(Mode.RUN) and _is_one_video(bound.base):
        evaluation.force_full(Reason(ReasonCode.ONE_VIDEO), evaluation.images(Mode.SKIP))
    if refusals.no_hooks is not None:
        reused = evaluation.images(Mode.REUSE)
        evaluation.force_full(refusals.no_hooks, reused)
        evaluation.force_full(refusals.no_hooks, evaluation.sparse(), attention=True)
        bound.give_up_tokens(refusals.no_hooks)
    no_tokens = refusals.no_tokens or refusals.no_split
    if no_tokens is not None:
        evaluation.force_full(no_tokens, evaluation.partial())
    kind = WrappersMP.DIFFUSION_MODEL
    if get_wrappers_with_key(kind, "easycache", model_options, is_model_options=True):
        easycache = Reason(ReasonCode.EASYCACHE)
        evaluation.force_full(easycache, evaluation.in_part())
        bound.give_up_tokens(easycache)


def _is_one_video(base: Any) -> bool:
    """Whether the rows of a batch are frames that attend to each other (SVD, SV3D)."""
    kind = getattr(comfy.model_base, "SVD_img2vid", None)
    return kind is not None and isinstance(base, kind)


def whole_run(bound: BoundRun, model_options: dict) -> Iterator[Reason]:
    """Why all of a run is computed in full."""
    plan = bound.run.plan
    if any(a < b for a, b in itertools.pairwise(plan.sigmas)):
        yield Reason(ReasonCode.SIGMAS_RISE)
    if plan.sampler == "ar_video":
        yield Reason(ReasonCode.AR_VIDEO)
    if "sampler_calc_cond_batch_function" in model_options:
        yield Reason(ReasonCode.FOREIGN_COND_BATCH)
    if model_options.get("context_handler") is not None:
        yield Reason(ReasonCode.CONTEXT_WINDOWS)
    if "multigpu_clones" in model_options:
        yield Reason(ReasonCode.SEVERAL_GPUS)
