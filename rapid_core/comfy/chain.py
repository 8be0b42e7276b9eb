"""Attaching techniques to a model: an immutable chain in transformer_options, and one wrapper on
the patcher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..architectures import describe
from ..record import RunLog
from ..types import Mode, Policy
from .blocks import LayerHook, layer_patches
from .run import HostRun

KEY = "rapid"
PLANS = (
    "schedule",
    "rapid3",
    "rapid+",
    "tpdm",
)  # techniques that settle which evaluations are computed


@dataclass(frozen=True)
class Chain:
    """Policies in the order in which nodes attached them, and the log of the last node's runs.
    node: the execution id of the one where runs tell how they go on; empty for none."""

    policies: tuple[Policy, ...]
    log: RunLog = field(default_factory=RunLog)
    notes: tuple[str, ...] = ()
    node: str = ""


def node_of(hidden: Any) -> str:
    """Execution id of a node; empty where it is called from elsewhere than a graph."""
    return str(hidden.unique_id or "") if hidden else ""


def chain_of(model: Any) -> Chain | None:
    """The chain on a MODEL; None where no RAPID node patched it."""
    return model.model_options.get("transformer_options", {}).get(KEY)


def log_of(model: Any) -> RunLog | None:
    """The log of what was sampled with a MODEL: its chain's or, where RAPID's sampler ran without a
    chain, the one that `keep_log` put there; None where there is none."""
    chain = chain_of(model)
    return chain.log if chain else model.get_attachment(KEY)


def keep_log(model: Any) -> RunLog:
    """The log of a MODEL; a new one among its attachments where there is none. A sampler has no
    clone to put it on."""
    log = log_of(model)
    if log is None:
        log = RunLog()
        model.set_attachments(KEY, log)
    return log


def attach(model: Any, policy: Policy, hidden: Any = None) -> Any:
    """A clone of `model` with `policy` added; a policy of the same technique is replaced and the
    report says so. Those that settle which evaluations are computed are one technique. hidden: of
    the node, as ComfyUI gives it."""
    clone = model.clone()
    before = chain_of(clone)
    policies = before.policies if before else ()
    kept = tuple(p for p in policies if not _same(p, policy))
    notes = before.notes if before else ()
    if len(kept) < len(policies):
        gone = next(p.technique for p in policies if _same(p, policy))
        twice = (
            f"{gone} was set twice"
            if gone == policy.technique
            else f"{gone} and {policy.technique} were set"
        )
        notes += (f"{twice} on this model: the later node wins",)
    options = clone.model_options.setdefault("transformer_options", {})
    options[KEY] = Chain((*kept, policy), notes=notes, node=node_of(hidden))
    architecture = describe(clone.model.diffusion_model)
    if architecture is not None and (
        policy.regional or policy.sparsity or Mode.REUSE in policy.levels
    ):
        hook_layers(clone)
        if architecture.hookless and not clone.get_callbacks(CallbacksMP.ON_CLONE, KEY):
            clone.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, rebind)
    if not clone.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    return clone


def _same(one: Policy, other: Policy) -> bool:
    """Whether two policies are the same technique, or both settle which evaluations are computed:
    thresholds out of a file stand in RAPID Accelerate, too."""
    settle = [p.technique in PLANS or bool(getattr(p, "source", "")) for p in (one, other)]
    return all(settle) or one.technique == other.technique


def rebind(patcher: Any, clone: Any) -> None:
    """A clone on another copy of the model (conditions with LoRA hooks, several GPUs) needs hooks
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
    *args: Any,
    **kwargs: Any,
):
    """Around one whole sampling run: state is created here, lives in cloned options and dies in
    `finally`."""
    guider = executor.class_obj
    original = guider.model_options
    chain = original.get("transformer_options", {}).get(KEY)
    if chain is None or not chain.policies:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    check_channels(guider.model_patcher.model, noise)
    run = HostRun(
        chain, guider, noise, sampler, sigmas, args[0] if args else kwargs.get("denoise_mask")
    )
    result, status = None, "failed"
    try:
        guider.model_options = run.install(original)
        result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        status = "finished"
        return result
    except BaseException as error:
        status = ended_by(error)
        raise
    finally:
        guider.model_options = original
        chain.log.add(run.finish(status, result))


def ended_by(error: BaseException) -> str:
    """Status of a run that an exception ended."""
    return "interrupted" if type(error).__name__ == "InterruptProcessingException" else "failed"


def check_channels(model: Any, noise: Tensor) -> None:
    """Raise ValueError for a latent of another model family; the host would fail inside a matrix
    product."""
    wanted = getattr(getattr(model, "latent_format", None), "latent_channels", None)
    if (
        describe(model.diffusion_model) is not None
        and wanted
        and noise.ndim == 4
        and noise.shape[1] != wanted
    ):
        raise ValueError(
            f"RAPID: a latent of {noise.shape[1]} channels was given; {type(model).__name__} takes {wanted}. "
            "Use an empty latent node or a VAE of this model's family."
        )
