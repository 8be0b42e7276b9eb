"""One sampling run in ComfyUI: decides in PREDICT_NOISE, holds in CALC_COND_BATCH, splits and
reuses in APPLY_MODEL."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import (
    WrappersMP,
    add_wrapper_with_key,
    copy_nested_dicts,
    get_wrappers_with_key,
)
from torch import Tensor

from ..architectures import describe
from ..cost import CostModel
from ..engine.evaluation import Evaluation
from ..engine.merge import CompositeActor
from ..engine.recorder import RunRecorder
from ..engine.run import RunState
from ..engine.token_stats import TokenStats
from ..record import RunRecord
from ..techniques.region.explain_no_savings import explain_no_savings
from ..token_grid import TokenGrid
from ..types import Mode, Window
from . import attention, blocks, features, progress
from .block_table import block_table
from .conditions import Conditions
from .fallbacks import check_host
from .memory import MemoryEstimate, key_store, with_left_out
from .model_call import ModelCalls, call_model

WRAPPER_KEY = "rapid"


def run_of(options: dict) -> HostRun | None:
    """The run whose wrappers are in these model_options."""
    found = get_wrappers_with_key(
        WrappersMP.PREDICT_NOISE, WRAPPER_KEY, options, is_model_options=True
    )
    return found[-1].__self__ if found else None


class HostRun:
    """State and wrappers of one run. `guider` is ComfyUI's; nothing of it is kept after the run."""

    def __init__(
        self,
        chain: Any,
        guider: Any,
        noise: Tensor,
        sampler: Any,
        sigmas: Tensor,
        mask: Tensor | None = None,
    ):
        patcher = guider.model_patcher
        self.chain = chain
        self.base, self.model = patcher.model, patcher.model.diffusion_model
        self.architecture = describe(self.model)
        self.recorder = RunRecorder(chain.notes)
        self.current: Evaluation | None = None
        self.dense_call = False
        self.reuse_blocked: str | None = None  # why blocks cannot be hooked
        self.blocked: str | None = None  # why tokens cannot be chosen
        function = getattr(sampler, "sampler_function", sampler)
        self.sampler = getattr(function, "__name__", type(function).__name__).removeprefix(
            "sample_"
        )
        self.shape, self.resized = tuple(noise.shape), False
        self.sigmas = tuple(sigmas.tolist())
        room, cost = MemoryEstimate(guider, self.shape[0], self.sampler), None
        self.policies, left_out, self.kept_of_attention = (
            chain.policies,
            None,
            None,
        )  # the last in words
        if self.architecture is not None:
            cost = CostModel(self.model, self.architecture)
            number = self.architecture.image_tokens(self.model, self.shape)
            self.policies, left_out, self.kept_of_attention = with_left_out(
                self.policies, cost, number, room
            )
        sampling = patcher.get_model_object("model_sampling")  # patches of it are not applied yet
        self.state = self._state(self.policies, sampling, noise, mask)
        seen = self.policies, self.architecture, self.model, self.shape, guider
        self.state.features, said = features.watch(*seen, room)
        self.recorder.notes += [said] if said else []
        self.calls = ModelCalls(self.state, self.model, self.architecture, cost, left_out)
        self.calls.positive = frozenset(c.get("uuid") for c in guider.conds.get("positive", ()))
        interpolate = False
        if self.state.regions and cost and self.architecture:
            policy = next(p for p in reversed(self.policies) if p.regional)
            interpolate = policy.inactive == "interpolate"
            store, said = key_store(policy, cost, self.state.regions, room)
            self.calls.store, self.blocked = store, None if store else said
            self.recorder.note(said)
            if policy.metric == "attention":
                self.calls.mass_at = len(block_table(self.architecture, self.model)) // 2
        self.conditions = Conditions(
            self.state, self.architecture, self.model, self.calls.store, interpolate, left_out
        )

    def _state(
        self, policies: tuple, sampling: Any, noise: Tensor, mask: Tensor | None
    ) -> RunState:
        """State of the run, and the actors of all techniques that can work on this model."""
        regional = [p for p in policies if p.regional]
        regions = None
        if regional and self.architecture is None:
            name = type(self.model).__name__
            self.recorder.note(
                f"{name} is not known to region-adaptive sampling; all tokens are computed"
            )
            policies = tuple(p for p in policies if not p.regional)
        elif regional:
            assert self.architecture is not None
            grid = TokenGrid(self.shape[1:], self.architecture.patch(self.model))
            painted = getattr(regional[-1], "focus", None)
            if painted is not None and painted.shape[-2:] != noise.shape[-2:]:
                sizes = (" x ".join(map(str, t.shape[-2:])) for t in (painted, noise))
                self.recorder.note("mask of {} scaled to the latent's {}".format(*sizes))
            threshold, oldest = getattr(regional[-1], "due", (0.0, 0))
            regions = TokenStats.of_run(grid, noise, mask, painted, threshold, oldest)
        actors = []
        for policy in policies:
            bounds = (
                float(sampling.percent_to_sigma(p))
                for p in (policy.start_percent, policy.end_percent)
            )
            actors.append(policy.start(Window(*bounds)))
        order = max((p.forecast_order for p in policies), default=0)
        reach = regional[-1].reach if regions else None
        history = max((p.history for p in policies), default=0)
        part = mask if mask is not None and mask.shape[1:] == noise.shape[1:] else None
        self.together, euler = CompositeActor(tuple(actors)), self.sampler == "euler"
        return RunState(
            noise.shape[0], order, self.together, self.sigmas, regions, reach, history, euler, part
        )

    def install(self, options: dict) -> dict:
        """A copy of the guider's model_options with this run's wrappers and hooks in it."""
        options = copy_nested_dicts(options)
        for kind, wrapper in (
            (WrappersMP.PREDICT_NOISE, self.predict_noise),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.APPLY_MODEL, self.apply_model),
        ):
            add_wrapper_with_key(kind, WRAPPER_KEY, wrapper, options, is_model_options=True)
        reuse = any(Mode.REUSE in policy.levels for policy in self.policies)
        sparsity = next((p.sparsity for p in reversed(self.policies) if p.sparsity), None)
        self.calls.looks = self.together.needs_logits
        if reuse or self.state.regions or sparsity or self.calls.looks:
            self.reuse_blocked = self._install_hooks(options["transformer_options"])
            self.calls.reuses = reuse and self.reuse_blocked is None
        if self.reuse_blocked and self.state.features is not None:
            self.recorder.note(features.blind(self.state.features.kind, self.reuse_blocked))
            self.state.features = None
        if self.reuse_blocked:
            self.blocked, self.calls.store, self.conditions.store = self.reuse_blocked, None, None
        elif sparsity and self.architecture:
            number = len(block_table(self.architecture, self.model))
            dense_blocks = {
                *range(sparsity.dense_first),
                *range(number - sparsity.dense_last, number),
            }
            self.calls.sparsity, self.calls.dense_blocks = sparsity, frozenset(dense_blocks)
        if self.calls.store is not None or self.calls.sparsity is not None:
            attention.install(options["transformer_options"])
        return options

    def _install_hooks(self, transformer_options: dict) -> str | None:
        if self.architecture is None:
            name = type(self.model).__name__
            return f"the blocks of {name} are not known; leaving out whole evaluations works on any model"
        replace = transformer_options.setdefault("patches_replace", {}).setdefault("dit", {})
        return blocks.install(replace, self.architecture, self.model)

    def look(self, transformer_options: dict) -> None:
        """Have the first evaluation's modulation vector kept, for a sampler that decides by it.
        Blocks that are replaced already are so by this run, or do not show theirs."""
        self.calls.looks = True
        self._install_hooks(transformer_options)

    # PREDICT_NOISE: once per evaluation, around everything else.
    def predict_noise(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict, seed: Any = None
    ):
        """Decide, let the host evaluate, remember."""
        self.recorder.begin()
        if x.shape[0] != self.state.batch:
            latents = f"{x.shape[0]} latents at once, not {self.state.batch}"
            self.recorder.note(f"dense throughout: the sampler evaluates {latents}")
            return executor(x, timestep, model_options, seed)
        if self.resized or tuple(x.shape) != self.shape:  # what is known is of other latents
            self.resized = True
            self.recorder.note("dense from there on: the sampler changed the latent's size")
            return executor(x, timestep, model_options, seed)
        evaluation = self.current = self.state.begin(x, timestep.flatten()[0])
        check_host(self, evaluation, model_options)
        try:
            denoised = executor(x, timestep, model_options, seed)
        finally:
            self.current = None
        self.state.end(evaluation, x, denoised)
        self.conditions.let_go()
        self._mix(evaluation, getattr(executor.class_obj, "cfg", 1.0))
        self.recorder.add(evaluation, self.state, self.calls.bytes, self.calls.sparsity is not None)
        progress.tell(self.chain.node, self.recorder.evaluations, self.sigmas)
        return denoised

    def _mix(self, evaluation: Evaluation, scale: float) -> None:
        """Put together what the conditions showed of the model's tokens, for the policy that looks
        at them."""
        shown = self.state.features
        reason = (
            shown.end(evaluation.index, evaluation.images(Mode.RUN), float(scale))
            if shown
            else None
        )
        if shown and reason:
            self.recorder.note(features.blind(shown.kind, reason))

    def calc_cond_batch(self, executor: Any, *arguments: Any) -> list:
        """Host arguments: model, conds, x, timestep, model_options."""
        evaluation, conds, x = self.current, arguments[1], arguments[2]
        if evaluation is None or x.shape[0] != self.state.batch:
            return self._dense(executor, *arguments)
        slots = [tuple(c.get("uuid") for c in slot) for slot in conds if slot]
        first, again = not evaluation.conditions, any(evaluation.conditions[slot] for slot in slots)
        evaluation.conditions.update(slots)
        if again:  # skip-layer guidance and its like look at the same condition with other options
            return self._dense(executor, *arguments)
        if evaluation.index == 0 and self.calls.store is not None:
            self.blocked = self.conditions.always_whole(conds, x)
            if self.blocked:  # nothing would ever read what the store keeps
                self.calls.store = self.conditions.store = None
        found = self.conditions(executor, evaluation, arguments, first)
        return self._dense(executor, *arguments) if found is None else found

    def _dense(self, executor: Any, *arguments: Any) -> list:
        before, self.dense_call = self.dense_call, True
        try:
            return executor(*arguments)
        finally:
            self.dense_call = before

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
        """The host's arguments, put into a dict so that they can be sliced together."""
        arguments = {
            "c_concat": c_concat,
            "c_crossattn": c_crossattn,
            "control": control,
            "extra": extra,
        }
        chunks, evaluation = len(transformer_options.get("uuids") or ()), self.current
        other = (
            executor.class_obj is not self.base
        )  # the negative's model of DualModelGuider, another GPU's copy
        if (
            evaluation is not None
            and not (self.dense_call or other)
            and x.shape[0] == chunks * self.state.batch
        ):
            return self.calls(executor, evaluation, x, t, arguments, transformer_options)
        if evaluation is not None:
            images = range(self.state.batch)
            self.calls.spend(
                evaluation, images, x, c_crossattn, max(chunks, 1), Mode.RUN, extra=extra
            )
        return call_model(executor, x, t, arguments, transformer_options)

    def finish(self, status: str, result: Any) -> RunRecord:
        """The record of the run; all tensors are dropped, for an exception's traceback would keep
        them with the run."""
        family = (
            self.architecture.marked
            if self.architecture
            else f"{type(self.model).__name__} (unverified)"
        )
        policies = tuple(p.settings() for p in self.chain.policies)
        thin = any(e.thin for e in self.recorder.evaluations)  # elsewhere nothing is kept
        for text in (
            *self.together.notes,
            *([self.kept_of_attention] if self.kept_of_attention and thin else []),
        ):
            self.recorder.note(text)
        regional = [p for p in self.policies if p.regional]
        said = (
            explain_no_savings(regional[-1], self.recorder.evaluations)
            if status == "finished" and self.calls.store
            else None
        )
        self.recorder.notes += [said] if said else []
        try:
            return self.recorder.finish(
                self.state, self.sampler, family, self.shape, policies, status, result
            )
        finally:
            for held in (self.state, self.calls.store, self.calls.left_out):
                if held is not None:
                    held.drop()
            self.calls.tiles.clear()
            self.recorder.maps.clear()
