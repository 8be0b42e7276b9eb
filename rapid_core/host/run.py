"""One sampling run in ComfyUI: decides in PREDICT_NOISE, holds in CALC_COND_BATCH, splits and reuses in APPLY_MODEL."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from typing import Any

from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor

from ..actions import Level, Window
from ..architectures import describe
from ..engine.state import Evaluation, RunState
from ..record import EvaluationRecord, RunRecord
from . import blocks
from .conditions import Conditions
from .model_call import ModelCalls, call_model

WRAPPER_KEY = "rapid"


class HostRun:
    """State and wrappers of one run. `guider` is ComfyUI's; nothing of it is kept after the run."""

    def __init__(self, chain: Any, guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor):
        patcher = guider.model_patcher
        check_channels(patcher.model, noise)
        self.chain, self.policy = chain, chain.policies[-1]
        self.model = patcher.model.diffusion_model
        self.architecture = describe(self.model)
        sampling = patcher.model.model_sampling
        percents = (self.policy.start_percent, self.policy.end_percent)
        window = Window(*(float(sampling.percent_to_sigma(p)) for p in percents))
        self.state = RunState(noise.shape[0], self.policy.forecast_order, self.policy.start(window))
        self.current: Evaluation | None = None
        self.dense_call = False
        self.records: list[EvaluationRecord] = []
        self.notes: list[str] = list(chain.notes)
        self.reuse_blocked: str | None = None
        self.conditions = Conditions(self.state)
        self.calls = ModelCalls(self.state, self.model, self.architecture)
        self.peak = 0
        self.started: float | None = None
        self.stopped = 0.0
        function = getattr(sampler, "sampler_function", sampler)
        self.sampler = getattr(function, "__name__", type(function).__name__).removeprefix("sample_")
        self.shape = tuple(noise.shape)
        self.sigmas = tuple(sigmas.tolist())

    def install(self, options: dict) -> dict:
        """A copy of the guider's model_options with this run's wrappers and hooks in it."""
        options = copy_nested_dicts(options)
        for kind, wrapper in (
            (WrappersMP.PREDICT_NOISE, self.predict_noise),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.APPLY_MODEL, self.apply_model),
        ):
            add_wrapper_with_key(kind, WRAPPER_KEY, wrapper, options, is_model_options=True)
        if Level.REUSE in self.policy.levels:
            self.reuse_blocked = self._install_hooks(options["transformer_options"])
            self.calls.reuses = self.reuse_blocked is None
        return options

    def _install_hooks(self, transformer_options: dict) -> str | None:
        if self.architecture is None:
            name = type(self.model).__name__
            return f"reuse does not know {name}; it works on FLUX and SD3 (hold works on any model)"
        replace = transformer_options.setdefault("patches_replace", {}).setdefault("dit", {})
        return blocks.install(replace, self.architecture.blocks(self.model))

    # PREDICT_NOISE: once per evaluation, around everything else.
    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict, seed: Any = None):
        """Decide, let the host evaluate, remember."""
        self.started = self.started or time.perf_counter()
        if x.shape[0] != self.state.batch:
            self._note(f"dense throughout: the sampler evaluates {x.shape[0]} latents at once, not {self.state.batch}")
            return executor(x, timestep, model_options, seed)
        evaluation = self.current = self.state.begin(x, timestep.flatten()[0])
        self._check_host(evaluation, model_options)
        try:
            denoised = executor(x, timestep, model_options, seed)
        finally:
            self.current = None
        self.state.end(evaluation, x, denoised)
        self._record(evaluation)
        return denoised

    def _check_host(self, evaluation: Evaluation, model_options: dict) -> None:
        """Fall back where the host is set up in a way that decisions cannot follow."""
        if "sampler_calc_cond_batch_function" in model_options:
            evaluation.fall_back("another node computes the conditions (sampler_calc_cond_batch_function)")
        if model_options.get("context_handler") is not None:
            evaluation.fall_back("context windows are computed densely")
        if "multigpu_clones" in model_options:
            evaluation.fall_back("several GPUs share this run")
        if self.reuse_blocked and evaluation.images(Level.REUSE):
            evaluation.fall_back(self.reuse_blocked, evaluation.images(Level.REUSE))

    def calc_cond_batch(self, executor: Any, *arguments: Any) -> list:
        """Host arguments: model, conds, x, timestep, model_options."""
        evaluation, conds, x = self.current, arguments[1], arguments[2]
        if evaluation is None or x.shape[0] != self.state.batch:
            return self._dense(executor, *arguments)
        slots = [tuple(c.get("uuid") for c in slot) for slot in conds if slot]
        again = any(evaluation.conditions[slot] for slot in slots)
        evaluation.conditions.update(slots)
        if again:  # skip-layer guidance and its like look at the same condition with other options
            return self._dense(executor, *arguments)
        return self.conditions(executor, evaluation, arguments)

    def _dense(self, executor: Any, *arguments: Any) -> list:
        before, self.dense_call = self.dense_call, True
        try:
            return executor(*arguments)
        finally:
            self.dense_call = before

    def apply_model(self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None,
                    control: Any = None, transformer_options: dict = {}, **extra: Any) -> Tensor:  # noqa: B006
        """The host's arguments, put into a dict so that they can be sliced together."""
        arguments = {"c_concat": c_concat, "c_crossattn": c_crossattn, "control": control, "extra": extra}
        chunks, evaluation = len(transformer_options.get("uuids") or ()), self.current
        if evaluation is not None and not self.dense_call and x.shape[0] == chunks * self.state.batch:
            return self.calls(executor, evaluation, x, t, arguments, transformer_options)
        if evaluation is not None:
            self.calls.spend(evaluation, range(self.state.batch), x, c_crossattn, max(chunks, 1), Level.RUN)
        return call_model(executor, x, t, arguments, transformer_options)

    # Record.
    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _record(self, evaluation: Evaluation) -> None:
        self.peak = max(self.peak, self.state.bytes)
        self.stopped = time.perf_counter()
        self.records.append(
            EvaluationRecord(
                evaluation.index, evaluation.sigma, evaluation.occurrence,
                tuple(level.value for level in evaluation.levels),
                tuple(evaluation.spent), tuple(evaluation.dense),
                tuple(e if math.isfinite(e) else None for e in evaluation.errors),
                (None,) * self.state.batch, tuple(evaluation.reasons),
            )
        )

    def finish(self, status: str, result: Any) -> RunRecord:
        """The record of the run; all tensors are dropped."""
        if status == "finished":
            self.state.finish()
        measured = self.state.measured_log
        evaluations = tuple(
            replace(e, measured=tuple(measured.get((e.index, i)) for i in range(self.state.batch)))
            for e in self.records
        )
        family = self.architecture.family if self.architecture else f"{type(self.model).__name__} (unverified)"
        seconds = self.stopped - self.started if self.started else 0.0
        return RunRecord(
            self.sampler, family, self.shape, self.sigmas, tuple(p.settings() for p in self.chain.policies),
            evaluations, seconds, self.peak, status, tuple(self.notes), fingerprint(result),
        )


def check_channels(model: Any, noise: Tensor) -> None:
    """Raise ValueError for a latent of another model family; the host would fail inside a matrix product."""
    wanted = getattr(getattr(model, "latent_format", None), "latent_channels", None)
    if describe(model.diffusion_model) is not None and wanted and noise.ndim == 4 and noise.shape[1] != wanted:
        raise ValueError(
            f"RAPID: a latent of {noise.shape[1]} channels was given; {type(model).__name__} takes {wanted}. "
            "Use an empty latent node or a VAE of this model's family."
        )


def fingerprint(latent: Any) -> str:
    """Short hash of a latent, so that a report can tell which run made it; empty for anything but a tensor."""
    if not isinstance(latent, Tensor):
        return ""
    return hashlib.blake2b(latent.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=12).hexdigest()
