"""One sampling run in ComfyUI: decides in PREDICT_NOISE, holds in CALC_COND_BATCH, splits and reuses in APPLY_MODEL."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor

from ..actions import Level, Window
from ..architectures import describe
from ..engine.forecast import Track
from ..engine.state import Evaluation, RunState
from ..record import EvaluationRecord, RunRecord
from . import blocks
from .conditions import active_uuids, slot_key
from .slicing import NotSliceable, index, rows_of, take_rows

WRAPPER_KEY = "rapid"


class HostRun:
    """State and wrappers of one run. `guider` is ComfyUI's; nothing of it is kept after the run."""

    def __init__(self, chain: Any, guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor):
        patcher = guider.model_patcher
        self.chain, self.policy = chain, chain.policies[-1]
        self.model = patcher.model.diffusion_model
        self.architecture = describe(self.model)
        sampling = patcher.model.model_sampling
        window = Window(*(float(sampling.percent_to_sigma(p)) for p in self._percents()))
        self.state = RunState(noise.shape[0], self.policy.forecast_order, self.policy.start(window))
        self.current: Evaluation | None = None
        self.dense_call = False
        self.records: list[EvaluationRecord] = []
        self.notes: list[str] = list(chain.notes)
        self.reuse_blocked: str | None = None
        self.dense_flops: dict[Any, float] = {}
        self.peak = 0
        self.started: float | None = None
        self.stopped = 0.0
        function = getattr(sampler, "sampler_function", sampler)
        self.sampler = getattr(function, "__name__", type(function).__name__).removeprefix("sample_")
        self.shape = tuple(noise.shape)
        self.sigmas = tuple(float(s) for s in sigmas)

    def _percents(self) -> tuple[float, float]:
        return self.policy.start_percent, self.policy.end_percent

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

    # CALC_COND_BATCH: per condition, after areas and masks have been merged.
    def calc_cond_batch(self, executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict):
        """Forecast the derivative of held images per condition; compute the rest."""
        evaluation = self.current
        if evaluation is None or x.shape[0] != self.state.batch:
            return self._dense(executor, model, conds, x, timestep, model_options)
        keys = [slot_key(i, cond, evaluation.sigma, x) for i, cond in enumerate(conds)]
        evaluation.conditions[tuple(keys)] += 1
        if evaluation.conditions[tuple(keys)] > 1:  # skip-layer guidance and its like: same conditions, other options
            return self._dense(executor, model, conds, x, timestep, model_options)
        self._check_history(evaluation, keys, conds)
        held = evaluation.images(Level.HOLD)
        self._count_held(evaluation, keys, held)
        if len(held) == self.state.batch:
            return [self._held(key, held, x, evaluation) if key else torch.zeros_like(x) for key in keys]
        out = executor(model, conds, x, timestep, model_options)
        ran = evaluation.images(Level.RUN)
        for slot, key in enumerate(keys):
            if key is None:
                continue
            if held:
                out[slot][held] = self._held(key, held, x, evaluation)
            if evaluation.sigma > 0:
                for i in ran:
                    self.state.slot(key).add(i, evaluation.sigma, (x[i] - out[slot][i]) / evaluation.sigma)
                    self.dense_flops[key, i] = self._slot_flops(evaluation, i, len(keys) - keys.count(None))
        return out

    def _dense(self, executor: Any, *args: Any) -> list:
        self.dense_call, before = True, self.dense_call
        try:
            return executor(*args)
        finally:
            self.dense_call = before

    def _held(self, key: Any, held: list[int], x: Tensor, evaluation: Evaluation) -> Tensor:
        """denoised = x - sigma * forecast derivative, (len(held), ...)."""
        derivative = self.state.slot(key).forecast(held, evaluation.sigma, self.state.order)
        return x[held] - evaluation.sigma * derivative.to(x)

    def _check_history(self, evaluation: Evaluation, keys: list, conds: list) -> None:
        """Images whose conditions have no history yet (a prompt's range just began) are computed."""
        for key in filter(None, keys):
            points = self.state.slot(key).points
            missing = [i for i in evaluation.images(Level.HOLD) if not points(i)]
            evaluation.fall_back("a condition became active; it has no history yet", missing)
        for uuid in active_uuids(conds, evaluation.sigma):
            track = self._residual_track(uuid)
            missing = [i for i in evaluation.images(Level.REUSE) if track is None or not track.points(i)]
            evaluation.fall_back("a condition has no residual yet", missing)

    def _residual_track(self, uuid: Any) -> Track | None:
        found = [track for key, track in self.state.residuals.items() if key[0] == uuid]
        return found[-1] if found else None

    # APPLY_MODEL: the one place that every architecture passes; rows are chunk * B + image.
    def apply_model(self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None,
                    control: Any = None, transformer_options: dict = {}, **extra: Any) -> Tensor:  # noqa: B006
        """One executor call per group of images with the same level; rows of held images get placeholders."""
        arguments = {"c_concat": c_concat, "c_crossattn": c_crossattn, "control": control, "extra": extra}
        uuids = list(transformer_options.get("uuids") or ())
        evaluation = self.current
        if evaluation is None or self.dense_call or x.shape[0] != len(uuids) * self.state.batch:
            if evaluation is not None:
                self._spend(evaluation, range(self.state.batch), x, c_crossattn, max(len(uuids), 1), Level.RUN)
            return self._call(executor, x, t, arguments, transformer_options)
        repeated = any(evaluation.streams[u] for u in uuids)
        evaluation.streams.update(uuids)
        groups = {level: evaluation.images(level) for level in (Level.RUN, Level.REUSE)}
        groups = {level: images for level, images in groups.items() if images}
        if list(groups) == [Level.RUN] and len(groups[Level.RUN]) == self.state.batch:
            return self._group(executor, x, t, arguments, transformer_options, Level.RUN, None, repeated)
        try:
            parts = {
                level: self._sliced(x, t, arguments, rows_of(images, self.state.batch, len(uuids)))
                for level, images in groups.items()
            }
        except NotSliceable as error:
            evaluation.fall_back(f"the batch cannot be split: {error}")
            return self._group(executor, x, t, arguments, transformer_options, Level.RUN, None, repeated)
        out = torch.zeros_like(x)
        for level, (rows, px, pt, parguments) in parts.items():
            result = self._group(executor, px, pt, parguments, transformer_options, level, groups[level], repeated)
            out = out.to(result.dtype).index_copy(0, rows, result)
        return out

    def _sliced(self, x: Tensor, t: Tensor, arguments: dict, rows: list[int]) -> tuple[Tensor, Tensor, Tensor, dict]:
        total, where = x.shape[0], index(rows, x.device)
        if len(rows) == total:
            return where, x, t, arguments
        return where, x[where], take_rows(t, where, total), take_rows(arguments, where, total)

    def _group(self, executor: Any, x: Tensor, t: Tensor, arguments: dict, options: dict, level: Level,
               images: list[int] | None, repeated: bool) -> Tensor:
        evaluation = self.current
        images = list(range(self.state.batch)) if images is None else images
        uuids = options["uuids"]
        self._spend(evaluation, images, x, arguments["c_crossattn"], len(uuids), level)
        if Level.REUSE in self.policy.levels and self.reuse_blocked is None and not repeated:
            shape = (tuple(x.shape[1:]), str(x.device))
            tracks = [self.state.residual((uuid, *shape)) for uuid in uuids]
            call = blocks.Call(images, tracks, evaluation.sigma, self.state.order, level is Level.REUSE)
            options = blocks.options_with(call, options)
        if level is Level.REUSE:
            arguments = {**arguments, "control": None}  # its residuals are part of the block stack's
        return self._call(executor, x, t, arguments, options)

    def _call(self, executor: Any, x: Tensor, t: Tensor, arguments: dict, options: dict) -> Tensor:
        return executor(x, t, arguments["c_concat"], arguments["c_crossattn"], arguments["control"], options,
                        **arguments["extra"])

    # Cost.
    def _spend(self, evaluation: Evaluation, images: Any, x: Tensor, context: Any, chunks: int, level: Level) -> None:
        dense, reuse = self._stream_flops(x, context)
        for i in images:
            evaluation.dense[i] += chunks * dense
            evaluation.spent[i] += chunks * (reuse if level is Level.REUSE else dense)

    def _stream_flops(self, x: Tensor, context: Any) -> tuple[float, float]:
        if self.architecture is None:
            return 1.0, 1.0
        text = context.shape[1] if isinstance(context, Tensor) else 0
        flops = self.architecture.flops(self.model, self.architecture.image_tokens(tuple(x.shape)), text)
        return float(flops.dense), float(flops.reuse)

    def _slot_flops(self, evaluation: Evaluation, image: int, slots: int) -> float:
        return evaluation.dense[image] / max(slots, 1)

    def _count_held(self, evaluation: Evaluation, keys: list, held: list[int]) -> None:
        for i in held:
            evaluation.dense[i] += sum(self.dense_flops.get((key, i), 0.0) for key in keys if key)

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


def fingerprint(latent: Any) -> str:
    """Short hash of a latent, so that a report can tell which run made it; empty for anything but a tensor."""
    if not isinstance(latent, Tensor):
        return ""
    return hashlib.blake2b(latent.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=12).hexdigest()
