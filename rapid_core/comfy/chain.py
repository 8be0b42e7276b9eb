"""Attaching policies to a model: an immutable chain in transformer_options, and one wrapper on the
patcher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..architectures import describe
from ..engine.plan import plan_run
from ..engine.run import Run
from ..reasons import ReasonCode
from ..record import RunLog, RunRecord, fingerprint
from ..types import Mode, Policy, Reason
from .bind import BoundRun
from .blocks import LayerHook, layer_patches
from .facts import host_facts
from .learning import Lesson, lesson_for
from .sampler_facts import sampler_name

KEY = "rapid"
# What the report says of a policy's file, and no longer once another policy took its place.
OF_A_FILE = {
    code.value
    for code in (ReasonCode.POLICY_FOUND, ReasonCode.POLICY_GIVEN, ReasonCode.LEARN_BESIDE_FILE)
}


@dataclass(frozen=True)
class Chain:
    """Policies in the order in which nodes attached them, and the log of the last node's runs."""

    policies: tuple[Policy, ...]
    log: RunLog = field(default_factory=RunLog)
    notes: tuple[Reason, ...] = ()
    node: str = ""
    """Execution id of the node where runs tell how they go on; empty for none."""
    shown: Callable[[Run], None] | None = None
    """Is given every run that has come to its end, before it is dropped."""


# Runs of RAPID Policy Sampler on models without a chain: a sampler has no clone to put a log on.
# Records are found in it by the latent that came out.
SAMPLER_LOG = RunLog()


def node_of(hidden: Any) -> str:
    """Execution id of a node; empty where it is called from elsewhere than a graph.

    Nodes that keep it have to be `not_idempotent`: else the host takes their output from its cache
    for a node of another id, in the next workflow, and what is told goes to the id of before.
    (V3 hides `unique_id` from the cache's own check.)"""
    return str(hidden.unique_id or "") if hidden else ""


def chain_of(model: Any) -> Chain | None:
    """The chain on a MODEL; None where no RAPID node patched it."""
    return model.model_options.get("transformer_options", {}).get(KEY)


def record_of(model: Any, latent: Any) -> RunRecord | None:
    """The record of the run of this MODEL that made a latent; None where there is none."""
    made = fingerprint(latent)
    chain = chain_of(model)
    record = chain.log.find(made) if chain is not None else None
    return record or SAMPLER_LOG.find(made)


def why_no_record(model: Any) -> Reason:
    """Why there is no record of a latent, of a MODEL that a RAPID node patched."""
    chain = chain_of(model)
    failure = chain.log.failure() if chain is not None else None
    return failure or Reason(ReasonCode.OTHER_LATENT)


def attach(model: Any, policy: Policy, hidden: Any = None, said: Sequence[Reason] = ()) -> Any:
    """A clone of `model` with `policy` added; a policy of the same technique is replaced and the
    report says so. Those that decide which evaluations are computed are one technique. hidden: of
    the node, as ComfyUI gives it; said: what else the report says."""
    clone = model.clone()
    before = chain_of(clone)
    policies = before.policies if before else ()
    notes = before.notes if before else ()
    others = tuple(p for p in policies if not _replaces(policy, p))
    for gone in policies:
        if _replaces(policy, gone):
            notes = tuple(note for note in notes if note.code not in OF_A_FILE)
            notes = (*notes, _replaced(gone.technique, policy.technique))
            break
    notes = (*notes, *said)
    options = clone.model_options.setdefault("transformer_options", {})
    options[KEY] = Chain((*others, policy), notes=notes, node=node_of(hidden))
    needs = policy.requirements
    if needs.tokens or needs.attention or Mode.REUSE in needs.modes:
        _prepare_blocks(clone)
    if not clone.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    return clone


def _replaces(policy: Policy, other: Policy) -> bool:
    """Whether two policies are the same technique, or both decide which evaluations are
    computed."""
    both = policy.requirements.decides_schedule and other.requirements.decides_schedule
    return both or policy.technique == other.technique


def _replaced(gone: str, technique: str) -> Reason:
    if gone == technique:
        return Reason(ReasonCode.SET_TWICE, technique=technique)
    return Reason(ReasonCode.TWO_SCHEDULES, first=gone, second=technique)


def _prepare_blocks(clone: Any) -> None:
    """Object patches of the blocks that the host has no hooks for. Nothing where a model is not as
    this version knows it; a run of it will say so."""
    try:
        architecture = describe(clone.model.diffusion_model)
        if architecture is None:
            return
        hook_layers(clone)
    except Exception:
        logging.exception("RAPID: the blocks of this model cannot be prepared")
        return
    if architecture.hookless and not clone.get_callbacks(CallbacksMP.ON_CLONE, KEY):
        clone.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, rebind)


def rebind(patcher: Any, clone: Any) -> None:
    """A clone on another copy of the model (conditionings with LoRA hooks, several GPUs) needs hooks
    of that copy's layers; ours would call the layers of the model that they were made for."""
    if clone.model is patcher.model:
        return
    for name, hook in list(clone.object_patches.items()):
        if isinstance(hook, LayerHook):
            del clone.object_patches[name]
    hook_layers(clone)


def hook_layers(patcher: Any) -> None:
    """Object patches for the blocks that the host has no hooks for; none for most families."""
    architecture = describe(patcher.model.diffusion_model)
    for name, hook in layer_patches(architecture, patcher).items() if architecture else ():
        patcher.add_object_patch(name, hook)


def outer_sample(
    executor: Any,
    noise: Any,
    latent_image: Any,
    sampler: Any,
    sigmas: Any,
    denoise_mask: Any = None,
    callback: Any = None,
    *args: Any,
    **named: Any,
) -> Any:
    """OUTER_SAMPLE, around one whole sampling run: state is created here, lives in cloned options
    and dies in `finally`."""
    guider = executor.class_obj
    original = guider.model_options
    chain: Chain | None = original.get("transformer_options", {}).get(KEY)
    given = (noise, latent_image, sampler, sigmas, denoise_mask)
    if chain is None or not chain.policies:
        return executor(*given, callback, *args, **named)
    prepared = prepare(chain, guider, noise, sampler, sigmas, denoise_mask, named)
    if prepared is None:
        return executor(*given, callback, *args, **named)
    bound, options, lesson = prepared
    if bound.architecture is not None:
        check_channels(guider.model_patcher.model, noise)

    def passed(step: int, *rest: Any) -> Any:
        bound.run.counter.passed(step)
        return None if callback is None else callback(step, *rest)

    result = None
    status = "failed"
    try:
        guider.model_options = options
        result = executor(*given, passed, *args, **named)
        status = "finished"
        bound.recorder.add_notes(lesson.end(bound.run))
        if chain.shown is not None:
            chain.shown(bound.run)
        return result
    except BaseException as error:
        status = ended_by(error)
        raise
    finally:
        guider.model_options = original
        log_run(chain.log, bound, status, lambda: bound.finish(status, result))


def prepare(
    chain: Chain,
    guider: Any,
    noise: Tensor,
    sampler: Any,
    sigmas: Tensor,
    mask: Tensor | None,
    named: dict[str, Any],
) -> tuple[BoundRun, dict, Lesson] | None:
    """The run of a chain, the model_options with its wrappers in them, and what it learns; None, with
    a record that says why, where a model is not as this version knows it: then all is computed in full."""
    try:
        shapes = named.get("latent_shapes")
        notes = (*chain.notes, *both_skip(chain.policies, guider.model_options))
        facts = host_facts(guider, noise, sampler, sigmas, shapes, notes)
        lesson = lesson_for(chain.policies, guider, facts)
        facts = replace(facts, notes=(*facts.notes, *lesson.notes))
        bound = BoundRun(plan_run(lesson.policies, facts), guider, mask, chain.node)
        return bound, bound.install(guider.model_options), lesson
    except Exception as error:
        logging.exception("RAPID: this run is computed in full")
        failed = Reason(ReasonCode.NOT_PLANNED, error=f"{type(error).__name__}: {error}")
        family = type(guider.model_patcher.model.diffusion_model).__name__
        record = RunRecord(
            sampler=sampler_name(sampler),
            family=family,
            shape=tuple(noise.shape),
            sigmas=tuple(sigmas.tolist()),
            policies=(),
            evaluations=(),
            seconds=0.0,
            bytes=0,
            notes=(*chain.notes, failed),
        )
        chain.log.add(record)
        return None


def both_skip(policies: Sequence[Policy], options: dict[str, Any]) -> list[Reason]:
    """What is said where ComfyUI's own EasyCache or LazyCache skips steps of the same model."""
    other = options.get("transformer_options", {}).get("easycache")
    ours = any(m in p.requirements.modes for p in policies for m in (Mode.SKIP, Mode.REUSE))
    if other is None or not ours:
        return []
    return [Reason(ReasonCode.BOTH_SKIP, node=str(getattr(other, "name", "EasyCache")))]


def log_run(log: RunLog, bound: BoundRun, status: str, finish: Callable[[], RunRecord]) -> None:
    """Keep the record of a run that has ended, which `finish` makes, and free what the run held.
    Whatever goes wrong here costs neither the picture nor the error that ended the run."""
    try:
        log.add(finish())
    except Exception as error:
        logging.exception("RAPID: the record of this run could not be made")
        plan = bound.run.plan
        failed = Reason(ReasonCode.RECORD_FAILED, error=f"{type(error).__name__}: {error}")
        log.add(
            RunRecord(
                sampler=plan.sampler,
                family=plan.family,
                shape=plan.shape,
                sigmas=plan.sigmas,
                policies=(),
                evaluations=tuple(bound.recorder.evaluations),
                seconds=0.0,
                bytes=bound.recorder.peak,
                status=status,
                notes=(*bound.recorder.notes, failed),
            )
        )
    finally:
        bound.drop()


def ended_by(error: BaseException) -> str:
    """Status of a run that an exception ended."""
    return "interrupted" if type(error).__name__ == "InterruptProcessingException" else "failed"


def check_channels(model: Any, noise: Tensor) -> None:
    """Raise ValueError for a latent of another model family; the host would fail inside a matrix
    product. model: of a family that is known."""
    accepted = getattr(getattr(model, "latent_format", None), "latent_channels", None)
    if accepted and noise.ndim == 4 and noise.shape[1] != accepted:
        raise ValueError(
            f"RAPID: a latent of {noise.shape[1]} channels was given; {type(model).__name__} takes "
            f"{accepted}. Use an empty latent node or a VAE of this model's family."
        )
