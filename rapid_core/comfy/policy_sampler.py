"""A SAMPLER whose sigmas are chosen by a policy's step head while the run goes on; see
`techniques.heads.jumps`.

A sampler has no MODEL to patch. What the other heads decide is carried out by a `BoundRun` that
lives inside the sampler function; its record is found by the latent that comes out. Where the model
carries a chain of other policies, they do the rest of the run and their record tells of the
sampler. Images of a batch are sampled together, each at sigmas of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from comfy.k_diffusion.sampling import trange
from comfy.patcher_extension import copy_nested_dicts
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..architectures import describe
from ..engine.plan import plan_run
from ..policy_file.format import PolicyFile
from ..policy_file.heads import jumps_policy
from ..policy_file.policies import check_base
from ..quadrature.spacing import max_evaluations
from ..reasons import ReasonCode
from ..record import RunRecord, fingerprint
from ..techniques.heads.jumps import NAME, Choose, Jump, StepHead, descend
from ..techniques.heads.rapid3 import Rapid3Policy
from ..types import Reason
from .bind import BoundRun, run_of
from .chain import KEY, SAMPLER_LOG, Chain, check_channels, ended_by, log_run, node_of
from .facts import host_facts
from .features import make_tap


def policy_sampler(file: PolicyFile, speedup: float, hidden: Any = None) -> KSAMPLER:
    """A SAMPLER that jumps by a file's step head, in at most 1 / speedup of the schedule's
    evaluations. Raises PolicyError for a file without step head. hidden: of the node, as ComfyUI
    gives it."""
    options = {"file": file, "policy": jumps_policy(file, speedup), "node": node_of(hidden)}
    return KSAMPLER(sample_rapid_policy, options)


@torch.no_grad()
def sample_rapid_policy(  # noqa: PLR0913 (of them six are k-diffusion's)
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Any = None,
    disable: Any = None,
    *,
    file: PolicyFile,
    policy: Rapid3Policy,
    choose: Choose | None = None,
    node: str = "",
) -> Tensor:
    """k-diffusion's signature. From sigmas[0] to sigmas[-1]; of the sigmas between only the number
    counts. choose: what picks the next sigmas, the step head where it is None. Raises ValueError for
    what cannot be sampled so, PolicyError for another model than the file's."""
    if len(sigmas) < 2:
        return x
    run = JumpRun(model, x, sigmas, dict(extra_args or {}), file, policy, choose, node)
    progress = Progress(callback, disable, sigmas.tolist())
    try:
        return run.sample(x, progress)
    finally:
        progress.bar.close()


class JumpRun:
    """One run of the sampler."""

    def __init__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        arguments: dict,
        file: PolicyFile,
        policy: Rapid3Policy,
        choose: Choose | None,
        node: str,
    ):
        self.model = model
        self.guider = guider_of(model)
        self.sigmas = sigmas
        self.ends = (float(sigmas[0]), float(sigmas[-1]))
        self.steps = len(sigmas) - 1
        self.file = file
        self.policy = policy
        self.choose = choose
        self.arguments = {"model_options": self.guider.model_options, **arguments}
        options = self.arguments["model_options"].get("transformer_options", {})
        self.chain: Chain | None = options.get(KEY)
        check_run(file, self.guider, x, self.ends, self.chain, "easycache" in options)
        self.notes: list[Reason] = []
        self.made = [0] * len(x)  # evaluations of each image
        outer = run_of(self.arguments["model_options"]) if self.chain else None
        self.own = outer is None and self.chain is None
        self.bound = outer
        if self.own:
            facts = host_facts(self.guider, x, sample_rapid_policy, sigmas)
            plan = plan_run((self._idle_checked(policy),), facts)
            self.bound = BoundRun(plan, self.guider, arguments.get("denoise_mask"), node)
        else:
            self._idle_checked(policy)

    def _idle_checked(self, policy: Rapid3Policy) -> Rapid3Policy:
        """The heads that decide what is computed of an evaluation; why those that are there do
        nothing is noted."""
        architecture = describe(self.guider.model_patcher.model.diffusion_model)
        heads = tuple(name for name in policy.names if name != "step")
        why = None
        if self.chain is not None:
            techniques = ", ".join(p.technique for p in self.chain.policies)
            why = Reason(ReasonCode.MODEL_HAS_TECHNIQUES, techniques=techniques)
        elif architecture is None or architecture.hookless:
            why = Reason(ReasonCode.SAMPLER_WITHOUT_BLOCKS)
        if why is None or not heads:
            return replace(policy, use=heads)
        self.notes.append(
            Reason(
                ReasonCode.SAMPLER_HEADS_IDLE, file=self.file.name, heads=", ".join(heads), why=why
            )
        )
        return replace(policy, use=(), sparsity=None)

    def sample(self, x: Tensor, progress: Progress) -> Tensor:
        """Sample all images. x (B, C, ...)."""
        original = self.guider.model_options
        result = None
        status = "failed"
        try:
            options = self._options()
            if self.own:
                # The host takes PREDICT_NOISE's wrappers from the guider, others from the arguments.
                self.guider.model_options = options
            result = self._descend(x, options, progress)
            status = "finished"
            return result
        except BaseException as error:
            status = ended_by(error)
            raise
        finally:
            self.guider.model_options = original
            self._finish(status, result)

    def _options(self) -> dict:
        """model_options for the evaluations: of a run of ours, or of the chain's, which is asked to
        show the modulation vectors of the first evaluation."""
        options = self.arguments["model_options"]
        if self.bound is None:
            return options
        if self.own:
            return self.bound.install(options)
        options = copy_nested_dicts(options)
        run = self.bound.run
        run.tap = run.tap or make_tap(None, run.plan.shape, self.guider.conds)
        self.bound.hook_blocks(options["transformer_options"])
        return options

    def _descend(self, x: Tensor, options: dict, progress: Progress) -> Tensor:
        scale = max(1.0, self.ends[0])
        head = StepHead(self.policy, self.steps, self.ends[1], scale, self._pooled)
        arguments = {**self.arguments, "model_options": options}

        def denoise(latents: Tensor, sigmas: Tensor, done: tuple[bool, ...]) -> Tensor:
            if self.bound is not None:
                self.bound.run.ended = frozenset(i for i, over in enumerate(done) if over)
            return self.model(latents, sigmas, **arguments)

        def tell(jump: Jump) -> None:
            for i, over in enumerate(jump.done):
                self.made[i] += not over
            progress(jump)

        most = max_evaluations(self.policy.speedup, self.steps)
        choose = self.choose or head
        result = descend(denoise, x, self.sigmas[0], self.ends, most, choose, tell)
        self.notes += [note for note in head.notes if note not in self.notes]
        return result

    def _pooled(self, image: int) -> Tensor | None:
        """The model's pooled vector of an image."""
        tap = self.bound.run.tap if self.bound is not None else None
        return None if tap is None else tap.pooled.get(image)

    def _finish(self, status: str, result: Tensor | None) -> None:
        """Put what happened where a report finds it."""
        counts = ", ".join(map(str, self.made))
        chose = Reason(
            ReasonCode.SAMPLER_CHOSE, file=self.file.name, evaluations=counts, steps=self.steps
        )
        if self.bound is None:
            return
        recorder = self.bound.recorder
        recorder.add_notes([chose, *self.notes])
        if status == "finished":
            # Those of a chain are counted without the images that had arrived.
            recorded = len(recorder.evaluations)
            evaluated = sum(min(number, recorded) for number in self.made)
            full = self.steps * len(self.made)
            recorder.full_evaluations = full if self.own else evaluated
        if not self.own:
            return
        log_run(SAMPLER_LOG, self.bound, status, lambda: self._record(status, result))

    def _record(self, status: str, result: Tensor | None) -> RunRecord:
        """The record of a run of its own."""
        assert self.bound is not None
        record = self.bound.finish(status, None)
        if result is None:
            return record
        record = replace(record, fingerprint=fingerprint(self._latent(result)))
        return in_steps(record, self.made, self.steps)

    def _latent(self, result: Tensor) -> Tensor:
        """What the host will make of the sampler's result."""
        base = self.guider.inner_model
        latent = base.model_sampling.inverse_noise_scaling(self.sigmas[-1], result)
        return base.process_latent_out(latent.float())


def in_steps(record: RunRecord, made: list[int], steps: int) -> RunRecord:
    """A record whose full cost is that of `steps` evaluations an image, of which `made` were
    made."""
    scale = [steps / max(1, number) for number in made]
    evaluations = tuple(
        replace(e, full_cost=tuple(c * by for c, by in zip(e.full_cost, scale, strict=True)))
        for e in record.evaluations
    )
    return replace(record, evaluations=evaluations)


class Progress:
    """What the host shows: one batch, and as many steps as the schedule has."""

    def __init__(self, callback: Callable[[dict], Any] | None, disable: Any, sigmas: list[float]):
        self.callback = callback
        self.sigmas = sigmas
        self.done = 0
        self.bar = trange(len(sigmas) - 1, disable=disable)

    def __call__(self, jump: Jump) -> None:
        """The batch was evaluated, and its images go on; the slowest counts."""
        landing = max(jump.landings)
        done = max(1, sum(sigma >= landing for sigma in self.sigmas[1:]))
        self.bar.update(done - self.done)
        self.done = done
        if self.callback is not None:
            sigma = jump.sigmas.amax()
            shown = {"x": jump.x, "denoised": jump.denoised, "sigma": sigma, "sigma_hat": sigma}
            self.callback({**shown, "i": done - 1})


def guider_of(model: Any) -> Any:
    """ComfyUI's guider inside the model that a sampler function is given. Raises ValueError where
    there is none."""
    guider = getattr(model, "inner_model", None)
    if not all(hasattr(guider, name) for name in ("conds", "model_patcher", "inner_model")):
        raise ValueError(
            f"{NAME}: it was given {type(model).__name__} to evaluate; accepted is a model with "
            "ComfyUI's guider in it. Connect it to SamplerCustom or SamplerCustomAdvanced itself."
        )
    return guider


def check_run(
    file: PolicyFile,
    guider: Any,
    x: Tensor,
    ends: tuple[float, float],
    chain: Chain | None,
    easycache: bool,
) -> None:
    """Raise ValueError for a run that the sampler cannot do."""
    base = guider.model_patcher.model
    check_base(file, base)
    check_channels(base, x)
    if x.ndim not in (4, 5):
        raise ValueError(
            f"{NAME}: a latent of shape {tuple(x.shape)} was given; accepted are pictures and "
            "videos."
        )
    if not all(map(math.isfinite, ends)):  # an image at NaN would never arrive
        raise ValueError(
            f"{NAME}: sigmas go from {ends[0]:g} to {ends[1]:g}; accepted are finite numbers. Look at "
            "the node that they come from."
        )
    if ends[0] < ends[1]:
        raise ValueError(
            f"{NAME}: sigmas rise from {ends[0]:g} to {ends[1]:g}; accepted are falling ones."
        )
    schedules = [p for p in chain.policies if p.requirements.decides_schedule] if chain else []
    if schedules or easycache:
        other = "RAPID Accelerate" if schedules else "EasyCache or LazyCache"
        raise ValueError(
            f"{NAME}: {other} is on this model, and {file.name} would be a second schedule of what "
            "is computed. Take one of them away."
        )
    if len(x) > 1:
        check_batch(guider)


def check_batch(guider: Any) -> None:
    """Raise ValueError for conditionings that begin or end at a sigma: the host asks the first image
    of a batch for its own, and images of this sampler have different ones."""
    for cond in (c for some in guider.conds.values() for c in some):
        ranged = cond.get("timestep_start") is not None or cond.get("timestep_end") is not None
        hooks = getattr(cond.get("hooks"), "hooks", ())
        keyframes = any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks)
        control = cond.get("control")
        while control is not None:
            start, end = getattr(control, "timestep_percent_range", (0.0, 1.0))
            ranged = ranged or start > 0.0 or end < 1.0
            control = getattr(control, "previous_controlnet", None)
        if ranged or keyframes:
            what = "a hook has keyframes" if keyframes else "a conditioning has a start or an end"
            raise ValueError(
                f"{NAME}: {what}, and the images of a batch are at different sigmas. Set the batch "
                "size to 1."
            )
