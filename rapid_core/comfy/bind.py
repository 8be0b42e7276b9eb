"""One sampling run in ComfyUI: decides in PREDICT_NOISE, predicts in CALC_COND_BATCH, splits and
reuses in APPLY_MODEL. What a run will do is settled in its plan; here it is only bound to the
host."""

from __future__ import annotations

import logging
from typing import Any

from comfy.patcher_extension import (
    WrappersMP,
    add_wrapper_with_key,
    copy_nested_dicts,
    get_wrappers_with_key,
)
from torch import Tensor

from ..engine.evaluation import Evaluation
from ..engine.kv import KVStore
from ..engine.plan import RunPlan
from ..engine.recorder import RunRecorder
from ..engine.run import Run
from ..engine.sparse import SLOPE, SparseResidual
from ..engine.tap import Tap
from ..reasons import ReasonCode
from ..record import RunRecord
from ..types import Mode, Reason
from . import attention, blocks, progress
from .conditions import Conditions, not_one_tensor
from .fallbacks import check_host
from .features import make_tap
from .memory import Announcement
from .model_call import Arguments, BatchedModel

WRAPPER_KEY = "rapid"


def run_of(options: dict) -> BoundRun | None:
    """The run whose wrappers are in these model_options: for RAPID Policy Sampler, which is called
    inside of it."""
    wrappers = get_wrappers_with_key(
        WrappersMP.PREDICT_NOISE, WRAPPER_KEY, options, is_model_options=True
    )
    return wrappers[-1].bound if wrappers else None


class PredictNoise:
    """The PREDICT_NOISE wrapper of a run, by which it is found."""

    def __init__(self, bound: BoundRun):
        self.bound = bound

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.bound.predict_noise(*arguments, **named)


class BoundRun:
    """A run and its wrappers. `guider` is ComfyUI's; nothing of it is kept after the run.

    node: the execution id of the node where the run tells how it goes on; empty for none."""

    def __init__(self, plan: RunPlan, guider: Any, mask: Tensor | None = None, node: str = ""):
        self.node = node
        self.base = guider.model_patcher.model
        model = self.base.diffusion_model
        architecture = plan.architecture
        self.architecture = architecture
        self.model = model
        tap = _tap(plan, guider)
        self.run = Run(plan, tap, mask)
        self.recorder = RunRecorder(self.run, tuple(p.to_record() for p in plan.policies))
        store = _key_store(plan)
        residual = _residual(plan)
        self.batched = BatchedModel(self.run, model, architecture, plan.cost, store, residual)
        self.conditions = Conditions(self.run, architecture, model, store, residual)
        self.current: Evaluation | None = None
        self.in_full = False  # within a call that is computed in full, whatever was decided

    def install(self, options: dict) -> dict:
        """A copy of the guider's model_options with this run's wrappers and hooks in it."""
        options = copy_nested_dicts(options)
        for kind, wrapper in (
            (
                WrappersMP.PREPARE_SAMPLING,
                Announcement(self.run.plan.memory + self.run.plan.histories),
            ),
            (WrappersMP.PREDICT_NOISE, PredictNoise(self)),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.APPLY_MODEL, self.apply_model),
        ):
            add_wrapper_with_key(kind, WRAPPER_KEY, wrapper, options, is_model_options=True)
        plan = self.run.plan
        if plan.hooks:
            self.hook_blocks(options["transformer_options"])
        if self.batched.store is not None or plan.attention is not None:
            attention.install(options["transformer_options"])
        return options

    def hook_blocks(self, transformer_options: dict) -> None:
        """Hook all blocks; none where one is replaced already, by another node or by this run."""
        if self.architecture is None:
            return
        replace = transformer_options.setdefault("patches_replace", {}).setdefault("dit", {})
        if blocks.foreign_block(replace, self.architecture, self.model) is None:
            blocks.install(replace, self.architecture, self.model)

    def give_up_tokens(self, reason: Reason) -> None:
        """Tokens cannot be chosen from here on: let go of keys and values that nobody would ever
        read."""
        if self.batched.store is None:
            return
        self.run.refusals.no_tokens = self.run.refusals.no_tokens or reason
        self.batched.store.drop()
        self.batched.store = None
        self.conditions.store = None

    def predict_noise(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict, seed: Any = None
    ) -> Any:
        """PREDICT_NOISE, once an evaluation and around everything else: decide, let the host
        evaluate, remember."""
        self.recorder.begin()
        run = self.run
        run.refusals.full = run.refusals.full or self._unlike_plan(x)
        if run.refusals.full is not None:
            return executor(x, timestep, model_options, seed)
        evaluation = run.begin(x, timestep.flatten())
        check_host(self, evaluation, model_options)
        self.current = evaluation
        try:
            denoised = executor(x, timestep, model_options, seed)
        finally:
            self.current = None
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            run.refusals.full = not_one_tensor(denoised)
        if run.refusals.full is not None:
            self.recorder.add_notes([run.refusals.full])
            return denoised
        given = run.end(evaluation, x, denoised)
        self.conditions.let_go()
        self._show_heads(evaluation, getattr(executor.class_obj, "cfg", 1.0))
        self._record(evaluation)
        return given

    def _unlike_plan(self, x: Tensor) -> Reason | None:
        """Why latents of this shape cannot be followed: what is known is of others."""
        plan = self.run.plan
        if tuple(x.shape) == plan.shape:
            return None
        reason = Reason(ReasonCode.LATENT_RESIZED)
        if x.shape[0] != plan.batch:
            reason = Reason(ReasonCode.OTHER_BATCH, given=x.shape[0], expected=plan.batch)
        self.recorder.add_notes([reason])
        return reason

    def _show_heads(self, evaluation: Evaluation, scale: float) -> None:
        """Put together what the conditionings showed to learned heads, at a guidance scale."""
        if self.run.tap is None:
            return
        reason = self.run.tap.end(evaluation.index, evaluation.images(Mode.RUN), float(scale))
        self.recorder.add_notes([reason] if reason is not None else [])

    def _record(self, evaluation: Evaluation) -> None:
        """Write down an evaluation. What only reports may not cost the picture."""
        try:
            self.recorder.add(evaluation, self.batched.bytes)
            progress.tell(self.node, self.recorder.evaluations, self.run.plan.sigmas)
        except Exception as error:
            logging.exception("RAPID: an evaluation could not be recorded")
            failed = f"{type(error).__name__}: {error}"
            self.recorder.add_notes([Reason(ReasonCode.RECORD_FAILED, error=failed)])

    def calc_cond_batch(self, executor: Any, *arguments: Any) -> Any:
        """CALC_COND_BATCH. Host arguments: model, conds, x, timestep, model_options."""
        evaluation = self.current
        conds, x = arguments[1], arguments[2]
        if evaluation is None or tuple(x.shape) != self.run.plan.shape:
            return self._full(executor, *arguments)
        lists = [tuple(c.get("uuid") for c in some) for some in conds if some]
        first = not evaluation.cond_lists
        seen_before = any(evaluation.cond_lists[uuids] for uuids in lists)
        evaluation.cond_lists.update(lists)
        if seen_before:  # skip-layer guidance and its like look once more, with other options
            return self._full(executor, *arguments)
        if evaluation.index == 0 and self.batched.store is not None:
            reason = self.conditions.always_all_tokens(conds, x)
            if reason is not None:
                self.give_up_tokens(reason)
        out = self.conditions(executor, evaluation, arguments, first)
        return self._full(executor, *arguments) if out is None else out

    def _full(self, executor: Any, *arguments: Any) -> Any:
        before = self.in_full
        self.in_full = True
        try:
            return executor(*arguments)
        finally:
            self.in_full = before

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict = {},  # noqa: B006
        **extra: Any,
    ) -> Tensor:
        """APPLY_MODEL. The host's arguments, put together so that they can be sliced together."""
        arguments = Arguments(x, t, c_concat, c_crossattn, control, extra)
        evaluation = self.current
        if evaluation is None:
            return arguments.call(executor, transformer_options)
        chunks = len(transformer_options.get("uuids") or ())
        batch = self.run.plan.batch
        # Whether this call is for another model: the negative's of DualModelGuider, another GPU's.
        other = executor.class_obj is not self.base
        if not (self.in_full or other) and x.shape[0] == chunks * batch:
            return self.batched(executor, evaluation, arguments, transformer_options)
        self.batched.count(evaluation, range(batch), arguments, max(chunks, 1))
        return arguments.call(executor, transformer_options)

    def finish(self, status: str, result: Any) -> RunRecord:
        """The record of the run."""
        return self.recorder.finish(status, result)

    def drop(self) -> None:
        """Let go of all tensors: an exception's traceback would keep them with the run."""
        self.run.drop()
        for store in (self.batched.store, self.batched.residual):
            if store is not None:
                store.drop()
        self.batched.tiles.clear()
        self.recorder.tokens.clear()


def _tap(plan: RunPlan, guider: Any) -> Tap | None:
    """What learned heads see of a run; None where no policy has any."""
    if not any(policy.requirements.logits for policy in plan.policies):
        return None
    return make_tap(plan.features, plan.shape, guider.conds)


def _key_store(plan: RunPlan) -> KVStore | None:
    """Keys and values of a run; None where no tokens are chosen."""
    if plan.kv is None or plan.grid is None or plan.tokens is None:
        return None
    return KVStore(plan.batch, plan.kv, plan.grid.number, plan.tokens.reach, plan.kv_conds)


def _residual(plan: RunPlan) -> SparseResidual | None:
    """Differences to dense attention of a run; None where none are kept."""
    if plan.attention is None or not plan.keeps_residual:
        return None
    return SparseResidual(SLOPE if plan.attention.compensation == "predict" else 0.0)
