"""A SAMPLER whose noise levels are chosen by a policy's step head while the run goes on; see
`policies.jumps`.

A sampler has no MODEL to patch. What the other heads decide is carried out by a `HostRun` that
lives inside the sampler function, one for each image; its record goes to the log of the model that
was sampled with. Where the model carries a chain of other techniques, they do the rest of the run
and their record tells of the sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy.k_diffusion.sampling import trange
from comfy.patcher_extension import copy_nested_dicts
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..architectures import describe
from ..engine.run import RunState
from ..policy_file.format import PolicyFile
from ..policy_file.policies import check_base, jumps_policy
from ..record import RunRecord, fingerprint, side_by_side
from ..techniques.heads.jumps import Choose, StepHead, descend
from ..techniques.heads.network import on_device
from ..techniques.heads.rapid3 import HeadsPolicy
from ..techniques.step_skip.schedule import max_evaluations
from .chain import KEY, PLANS, Chain, check_channels, ended_by, keep_log, node_of
from .run import HostRun, run_of
from .slice_batch import cannot, slice_batch

NAME = "RAPID Policy Sampler"


def policy_sampler(file: PolicyFile, speedup: float, hidden: Any = None) -> KSAMPLER:
    """A SAMPLER that jumps by a file's step head, in at most 1 / speedup of the schedule's
    evaluations. Raises PolicyError for a file without step head. hidden: of the node, as ComfyUI
    gives it."""
    return KSAMPLER(
        sample_rapid_policy,
        {"file": file, "policy": jumps_policy(file, speedup), "node": node_of(hidden)},
    )


@torch.no_grad()
def sample_rapid_policy(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Any = None,
    disable: Any = None,
    *,
    file: PolicyFile,
    policy: HeadsPolicy,
    choose: Choose | None = None,
    node: str = "",
) -> Tensor:
    """k-diffusion's signature. From sigmas[0] to sigmas[-1]; of the levels between only the number
    counts. choose: what picks the next level, the step head where it is None. Raises ValueError for
    what cannot be sampled so, PolicyError for another model than the file's."""
    levels = sigmas.tolist()
    if len(levels) < 2:
        return x
    run = JumpRun(model, x, sigmas, dict(extra_args or {}), file, policy, choose, node)
    progress, result = Progress(callback, disable, x, levels), None
    try:
        rows = [run.image(i, x[i : i + 1], partial(progress, i)) for i in range(len(x))]
        result = rows[0] if len(rows) == 1 else torch.cat(rows)
        return result
    finally:
        progress.bar.close()
        run.finish(result)


class JumpRun:
    """One run of the sampler."""

    def __init__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        arguments: dict,
        file: PolicyFile,
        policy: HeadsPolicy,
        choose: Choose | None,
        node: str,
    ):
        self.model, self.guider, self.sigmas, self.levels = (
            model,
            guider_of(model),
            sigmas,
            sigmas.tolist(),
        )
        self.file, self.choose, self.batch, self.node = file, choose, len(x), node
        self.arguments = {"model_options": self.guider.model_options, **arguments}
        options = self.arguments["model_options"].get("transformer_options", {})
        self.chain: Chain | None = options.get(KEY)
        check_run(file, self.guider, x, self.levels, self.chain, "easycache" in options)
        if not hasattr(model, "noise") and self.batch > 1:
            raise cannot(
                f"{type(model).__name__} stands between the sampler and ComfyUI's inpainting"
            )
        self.outer = run_of(self.arguments["model_options"]) if self.chain else None
        self.policy = replace(
            policy, heads=on_device(policy.heads, x.device)
        )  # one copy for all images
        self.notes: list[str] = []
        self.inner = self._inner()
        self.steps, self.scale = len(self.levels) - 1, max(1.0, self.levels[0])
        self.made: list[int] = []  # evaluations of each image
        self.records: list[RunRecord] = []

    def _inner(self) -> HeadsPolicy:
        """The heads that decide what is computed of an evaluation; why those that are there do
        nothing is noted."""
        architecture, why = describe(self.guider.model_patcher.model.diffusion_model), None
        if self.chain is not None:
            techniques = ", ".join(policy.technique for policy in self.chain.policies)
            why = f"the model has {techniques} on it"
        elif architecture is None or architecture.hookless:
            why = "a sampler does not reach this model's blocks; RAPID Accelerate does"
        idle = [name for name in self.policy.names if name != "step"]
        if why is None or not idle:
            return replace(self.policy, use=tuple(idle))
        self.notes.append(
            f"{self.file.name}: nothing is done by its heads {', '.join(idle)}: {why}"
        )
        return replace(self.policy, use=(), sparsity=None)

    def image(self, number: int, x: Tensor, tell: Any) -> Tensor:
        """Sample one image. x (1, C, ...); tell: see `Progress`."""
        self.made.append(0)
        with slice_batch(self.model, number, self.batch, self.arguments) as arguments:
            with self._around(x, arguments) as (options, state):
                return self._descend(x, {**arguments, "model_options": options}, state, tell)

    def _descend(self, x: Tensor, arguments: dict, state: RunState | None, tell: Any) -> Tensor:
        ends, ones = (self.levels[0], self.levels[-1]), x.new_ones(1)

        def pooled():
            return state.pooled.get(0) if state else None

        head = StepHead(self.policy, self.steps, ends[1], self.scale, pooled)

        def told(*seen: Any) -> None:
            self.made[-1] += 1
            tell(*seen)

        out = descend(
            lambda x, sigma: self.model(x, sigma * ones, **arguments),
            x,
            self.sigmas[0],
            ends,
            max_evaluations(self.policy.speedup, self.steps),
            self.choose or head,
            told,
        )
        self.notes += [note for note in head.notes if note not in self.notes]
        return out

    @contextmanager
    def _around(self, x: Tensor, arguments: dict) -> Iterator[tuple[dict, RunState | None]]:
        """model_options for an image's evaluations, and the state of the run that sees them; None
        where none does."""
        options = arguments["model_options"]
        if self.chain is not None:
            if (
                self.outer is None or self.batch > 1
            ):  # a run of the whole batch does not follow single images
                yield options, None
                return
            options = copy_nested_dicts(options)
            self.outer.look(options["transformer_options"])
            yield options, self.outer.state
            return
        run, status, original = (
            self._own(x, arguments.get("denoise_mask")),
            "failed",
            self.guider.model_options,
        )
        try:
            # The host takes PREDICT_NOISE's wrappers from the guider, all others from the
            # arguments.
            self.guider.model_options = options = run.install(options)
            yield options, run.state
            status = "finished"
        except BaseException as error:
            status = ended_by(error)
            raise
        finally:
            self.guider.model_options = original
            self.records.append(run.finish(status, None))

    def _own(self, x: Tensor, mask: Tensor | None) -> HostRun:
        return HostRun(
            Chain((self.inner,), node=self.node),
            self.guider,
            x,
            sample_rapid_policy,
            self.sigmas,
            mask,
        )

    def finish(self, result: Tensor | None) -> None:
        """Put what happened where a report finds it."""
        counts = ", ".join(map(str, self.made))
        said = [
            f"{self.file.name} chose the noise levels: {counts} evaluations instead of {self.steps}",
            *self.notes,
        ]
        if self.outer is not None:
            for text in said:
                self.outer.recorder.note(text)
        elif self.records:
            record = side_by_side(self.records, self.steps)
            made = "" if result is None else fingerprint(self._latent(result))
            notes = tuple(dict.fromkeys((*said, *record.notes)))
            keep_log(self.guider.model_patcher).add(replace(record, notes=notes, fingerprint=made))

    def _latent(self, result: Tensor) -> Tensor:
        """What the host will make of the sampler's result."""
        base = self.guider.inner_model
        return base.process_latent_out(
            base.model_sampling.inverse_noise_scaling(self.sigmas[-1], result).float()
        )


class Progress:
    """What the host shows: one batch, and as many steps as the schedule has."""

    def __init__(self, callback: Any, disable: Any, x: Tensor, levels: list[float]):
        self.callback, self.levels, self.done = callback, levels, 0
        self.x, self.denoised = list(x.split(1)), list(x.split(1))
        self.bar = trange(len(levels) - 1, disable=disable)

    def __call__(
        self, image: int, x: Tensor, denoised: Tensor, sigma: Tensor, after: float
    ) -> None:
        """An image was evaluated at `sigma` and goes on to `after`."""
        steps, batch = len(self.levels) - 1, len(self.x)
        passed = sum(level >= after for level in self.levels[1:])
        done = max(1, (image * steps + passed) // batch)
        self.bar.update(done - self.done)
        self.done, self.x[image], self.denoised[image] = done, x, denoised
        if self.callback is not None:
            shown = (
                {"x": torch.cat(self.x), "denoised": torch.cat(self.denoised)}
                if batch > 1
                else {"x": x, "denoised": denoised}
            )
            self.callback({**shown, "i": done - 1, "sigma": sigma, "sigma_hat": sigma})


def guider_of(model: Any) -> Any:
    """ComfyUI's guider inside the model that a sampler function is given. Raises ValueError where
    there is none."""
    guider = getattr(model, "inner_model", None)
    if not all(hasattr(guider, name) for name in ("conds", "model_patcher", "inner_model")):
        raise ValueError(
            f"{NAME}: it was given {type(model).__name__} to evaluate; accepted is a model with ComfyUI's "
            "guider in it. Connect it to SamplerCustom or SamplerCustomAdvanced itself."
        )
    return guider


def check_run(
    file: PolicyFile,
    guider: Any,
    x: Tensor,
    levels: list[float],
    chain: Chain | None,
    foreign: bool,
) -> None:
    """Raise ValueError for a run that the sampler cannot do."""
    base = guider.model_patcher.model
    check_base(file, base)
    check_channels(base, x)
    if x.ndim not in (4, 5):
        raise ValueError(
            f"{NAME}: a latent of shape {tuple(x.shape)} was given; accepted are pictures and videos."
        )
    if levels[0] < levels[-1]:
        raise ValueError(
            f"{NAME}: sigmas rise from {levels[0]:g} to {levels[-1]:g}; accepted are falling ones."
        )
    plans = [p.technique for p in chain.policies if p.technique in PLANS] if chain else []
    if plans or foreign:
        other = "RAPID Accelerate" if plans else "EasyCache or LazyCache"
        raise ValueError(
            f"{NAME}: {other} is on this model, and {file.name} would be a second plan of what is "
            "computed. Take one of them away."
        )
