"""Set-ups of the host in which decisions cannot be followed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from comfy.patcher_extension import WrappersMP, get_wrappers_with_key

from ..engine.evaluation import Evaluation
from ..types import Mode
from . import blocks

if TYPE_CHECKING:
    from .run import HostRun


def check_host(run: HostRun, evaluation: Evaluation, model_options: dict) -> None:
    """Fall back where the host is set up in a way that decisions cannot follow."""
    for reason in always(run, model_options):
        evaluation.force_full(reason)
        keep_nothing(run, reason)
    foreign = blocks.foreign(model_options.get("transformer_options", {}))
    if foreign:
        evaluation.force_full(foreign, [*evaluation.images(Mode.REUSE), *evaluation.partial()])
        if evaluation.images(
            Mode.RUN
        ):  # a part of the batch would be given what the patch keeps of other rows
            evaluation.force_full(foreign, evaluation.images(Mode.SKIP))
        keep_nothing(run, foreign)
    if run.reuse_blocked:
        evaluation.force_full(run.reuse_blocked, evaluation.images(Mode.REUSE))
        evaluation.force_full(run.reuse_blocked, evaluation.sparse(), attention=True)
    blocked = run.blocked or run.calls.unsplit
    if blocked:
        evaluation.force_full(blocked, evaluation.partial())
    if get_wrappers_with_key(
        WrappersMP.DIFFUSION_MODEL, "easycache", model_options, is_model_options=True
    ):
        inside = "EasyCache, which is on this model, too, would keep what was computed in part"
        evaluation.force_full(inside, [*evaluation.images(Mode.REUSE), *evaluation.partial()])
        keep_nothing(run, inside)


def always(run: HostRun, model_options: dict) -> Iterator[str]:
    """Why all of a run is computed."""
    if any(a < b for a, b in itertools.pairwise(run.sigmas)):
        yield "noise levels that rise are computed densely"
    if run.sampler == "ar_video":
        yield "the sampler ar_video keeps keys and values of every call: all are computed"
    if "sampler_calc_cond_batch_function" in model_options:
        yield "another node computes the conditions (sampler_calc_cond_batch_function)"
    if model_options.get("context_handler") is not None:
        yield "context windows are computed densely"
    if "multigpu_clones" in model_options:
        yield "several GPUs share this run"


def keep_nothing(run: HostRun, reason: str) -> None:
    """Give up the keys and values that nobody would ever read."""
    if run.calls.store is not None:
        run.blocked = run.blocked or reason
        run.calls.store.drop()
        run.calls.store = run.conditions.store = None
