"""CALC_COND_BATCH: which conditionings are active, and for each of them the prediction of what was
not computed."""

from __future__ import annotations

import numbers
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..architectures import Architecture
from ..engine.evaluation import Evaluation
from ..engine.image_run import CondKey, ImageRun
from ..engine.kv import KVStore
from ..engine.normalized_convolution import normalized_convolution
from ..engine.run import Run
from ..engine.sparse import SparseResidual
from ..reasons import ReasonCode
from ..types import Mode, Reason


def single(sigma: Any) -> float:
    """A bound of a range as the host compares it with a sigma: in single precision. Where a sigma
    of the schedule is the bound, a double may lie on its other side."""
    return struct.unpack("f", struct.pack("f", float(sigma)))[0]


def is_active(cond: dict, sigma: float) -> bool:
    """Whether the host evaluates this conditioning at `sigma` (its start and end percent are sigmas
    already)."""
    start = cond.get("timestep_start")
    end = cond.get("timestep_end")
    not_yet = start is not None and sigma > single(start)
    over = end is not None and sigma < single(end)
    return not (not_yet or over)


def control_state(cond: dict, sigma: float) -> tuple[bool, ...]:
    """Which of the conditioning's chained ControlNets act at `sigma`: a prediction must not cross
    their start or end."""
    states = []
    control = cond.get("control")
    while control is not None:
        bounds = getattr(control, "timestep_range", None)
        acts = bounds is None or not (sigma > single(bounds[0]) or sigma < single(bounds[1]))
        states.append(acts)
        control = getattr(control, "previous_controlnet", None)
    return tuple(states)


def hook_state(cond: dict, sigma: float) -> tuple[int, ...]:
    """Keyframes that the conditioning's hooks (LoRA schedules) are at: a prediction must not cross
    from one to the next."""
    hooks = getattr(cond.get("hooks"), "hooks", ())
    groups = (getattr(hook, "hook_keyframe", None) for hook in hooks)
    frames = (getattr(group, "keyframes", ()) for group in groups)
    return tuple(sum(single(frame.start_t) >= sigma for frame in some[1:]) for some in frames)


def turns_of(
    conds: Iterable[dict], sigmas: Sequence[float], sigma_at: Callable[[float], float]
) -> tuple[int, ...]:
    """Steps of a run on `sigmas` (N + 1,) at which something of its conditionings begins or ends, so that
    there is no history yet of what is evaluated there. conds: as they are before the host has made
    sigmas of their percents."""
    turns = set()
    for cond in (_with_sigmas(cond, sigma_at) for cond in conds):
        states = [_state(cond, sigma) for sigma in sigmas[:-1]]
        turns |= {i for i in range(1, len(states)) if states[i] != states[i - 1]}
    return tuple(sorted(turns))


def _state(cond: dict, sigma: float) -> tuple | None:
    """What of a conditioning acts; None for nothing. As in `cond_key`."""
    if not is_active(cond, sigma):
        return None
    return control_state(cond, sigma), hook_state(cond, sigma)


def _with_sigmas(cond: dict, sigma_at: Callable[[float], float]) -> dict:
    """What the functions above look at of a conditioning, with the sigmas that the host will give it."""

    def sigma_of(percent: Any) -> float | None:
        return sigma_at(float(percent)) if isinstance(percent, numbers.Real) else None

    start, end = cond.get("start_percent"), cond.get("end_percent")
    if "clip_start_percent" in cond:  # as the host puts a schedule of hooks and a range together
        start = max(cond["clip_start_percent"], start or 0.0)
        end = min(cond["clip_end_percent"], 1.0 if end is None else end)
    chain, control = [], cond.get("control")
    while control is not None:
        bounds = getattr(control, "timestep_percent_range", None)
        chain.append(None if bounds is None else tuple(map(sigma_of, bounds)))
        control = getattr(control, "previous_controlnet", None)
    previous = None
    for bounds in reversed(chain):
        previous = SimpleNamespace(timestep_range=bounds, previous_controlnet=previous)
    hooks = []
    for hook in getattr(cond.get("hooks"), "hooks", ()):
        frames = getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())
        timed = [SimpleNamespace(start_t=sigma_of(frame.start_percent)) for frame in frames]
        hooks.append(SimpleNamespace(hook_keyframe=SimpleNamespace(keyframes=timed)))
    return {
        "timestep_start": sigma_of(start),
        "timestep_end": sigma_of(end),
        "control": previous,
        "hooks": SimpleNamespace(hooks=hooks),
    }


def cond_key(place: int, conds: list | None, sigma: float, x: Tensor) -> CondKey | None:
    """Key of the histories of one list (positive, negative ...): what is active in it, shape and
    device; None for an unused list. Where a ControlNet or a range begins or ends, the key changes,
    and with it the history."""
    if conds is None:
        return None
    active = tuple(
        (c.get("uuid"), (control_state(c, sigma), hook_state(c, sigma)))
        for c in conds
        if is_active(c, sigma)
    )
    return place, active, tuple(x.shape[1:]), str(x.device)


def active_conds(conds: Sequence[list | None], sigma: float) -> list[tuple]:
    """(place of the list, uuid) of all conditionings that the host will evaluate at `sigma`; see
    `model_call.conds_of`."""
    return [
        (place, c.get("uuid"))
        for place, some in enumerate(conds)
        for c in some or ()
        if is_active(c, sigma)
    ]


def is_part(area: Sequence | None, shape: tuple[int, ...]) -> bool:
    """Whether a conditioning's area (sizes, then places, as the host resolved it) is less than a
    latent of `shape`."""
    if area is None:
        return False
    half = len(area) // 2
    sizes = area[:half][: len(shape)]
    places = area[half:][: len(shape)]
    smaller = any(size < full for size, full in zip(sizes, shape[-len(sizes) :], strict=True))
    return any(places) or smaller


class Conditions:
    """Fills in what was not computed, per conditioning, after the host has merged areas and masks;
    guidance then runs as stock. store: keys and values, where a policy chooses tokens; residual:
    differences to dense attention, where they are kept."""

    def __init__(
        self,
        run: Run,
        architecture: Architecture | None,
        model: Any,
        store: KVStore | None = None,
        residual: SparseResidual | None = None,
    ):
        self.run = run
        self.architecture = architecture
        self.model = model
        self.store = store
        self.residual = residual
        self.full_cost: dict[tuple, float] = {}  # of a list and image, as last computed

    def __call__(
        self, executor: Callable, evaluation: Evaluation, arguments: tuple, first: bool = True
    ) -> list[Tensor] | None:
        """The denoised latents (B, C, ...) of each list; `arguments` are the host's: model, conds, x,
        timestep, model_options. first: whether this is the first call of the evaluation. What it
        decided stays for the others; None where they cannot follow it, and have to be computed in
        full."""
        conds, x = arguments[1], arguments[2]
        keys = [cond_key(i, cond, evaluation.told_sigma, x) for i, cond in enumerate(conds)]
        evaluation.cond_keys.update(filter(None, keys))
        decided = list(evaluation.actions)
        self._check_history(evaluation, keys, conds, x)
        if not first and any(a is not b for a, b in zip(decided, evaluation.actions, strict=True)):
            evaluation.actions[:] = decided
            return None
        skipped = evaluation.images(Mode.SKIP)
        if len(skipped) == self.run.plan.batch:
            self._count_skipped(evaluation, keys, skipped)
            return [self._predicted_batch(key, evaluation, x) for key in keys]
        cost_before = list(evaluation.cost)
        full_before = list(evaluation.full_cost)
        out = executor(*arguments)
        if not is_like(out, x, len(keys)):
            self.run.refusals.full = not_one_tensor(out)
            return out
        self._check_obeyed(evaluation, cost_before)
        if skipped or evaluation.partial():
            out = [each.clone() for each in out]  # what the host or another node may keep
        # Where the batch could not be split, skipped images were computed with the others, and
        # counted.
        uncounted = [i for i in skipped if evaluation.cost[i] == cost_before[i]]
        self._count_skipped(evaluation, keys, uncounted)
        used = len(keys) - keys.count(None)
        for place, key in enumerate(keys):
            if key is None:
                continue
            for i in skipped:
                out[place][i] = self._predicted(key, evaluation, self.run.images[i], x[i])
            for i in evaluation.partial():
                image = self.run.images[i]
                out[place][i] = self._completed(evaluation, key, image, x[i], out[place][i])
            self._remember(evaluation, key, x, out[place])
            for i in evaluation.images(Mode.RUN):
                spent = evaluation.full_cost[i] - full_before[i]  # in this call, for all its lists
                self.full_cost[key, i] = spent / used
        return out

    def _check_obeyed(self, evaluation: Evaluation, cost_before: Sequence[float]) -> None:
        """Images of which every model call was computed in full after all: another node calls the
        model in its own way, or the batch could not be split. cost_before: of this call of the
        host's."""
        called = [i for i in evaluation.in_part() if evaluation.cost[i] > cost_before[i]]
        not_obeyed = [i for i in called if i not in evaluation.obeyed]
        if not not_obeyed:
            return
        refusals = self.run.refusals
        if refusals.no_split is None:
            refusals.no_hooks = refusals.no_hooks or Reason(ReasonCode.CALLED_AGAIN)
        reason = refusals.no_split or refusals.no_hooks
        assert reason is not None
        evaluation.force_full(reason, not_obeyed)

    def _count_skipped(self, evaluation: Evaluation, keys: list, images: Sequence[int]) -> None:
        """What these images would have cost in full; nothing where they have arrived."""
        for i in images:
            if i in self.run.ended:
                continue
            evaluation.full_cost[i] += sum(self.full_cost.get((key, i), 0.0) for key in keys if key)

    def _predicted_batch(self, key: CondKey | None, evaluation: Evaluation, x: Tensor) -> Tensor:
        """Denoised (B, C, ...) of a list, where nothing was computed."""
        if key is None:
            return torch.zeros_like(x)
        images = self.run.images
        return torch.stack([self._predicted(key, evaluation, im, x[im.number]) for im in images])

    def _predicted(
        self, key: CondKey, evaluation: Evaluation, image: ImageRun, latent: Tensor
    ) -> Tensor:
        """denoised = x - sigma * predicted derivative, (C, ...)."""
        derivative = image.predict_cond(key, evaluation)
        return latent - evaluation.sigmas[image.number] * derivative.to(latent)

    def _completed(
        self, evaluation: Evaluation, key: CondKey, image: ImageRun, latent: Tensor, out: Tensor
    ) -> Tensor:
        """An image's denoised (C, ...): computed at its tokens, predicted elsewhere."""
        tokens = evaluation.actions[image.number].tokens
        grid, needs = self.run.plan.grid, self.run.plan.tokens
        assert tokens is not None and grid is not None and needs is not None
        predicted = self._predicted(key, evaluation, image, latent)
        mask = grid.latent_mask(tokens)
        if needs.interpolate:
            wrong = grid.video(out - predicted)
            spread = normalized_convolution(wrong, grid.mask(tokens), grid.patch)
            predicted = grid.with_video(predicted, grid.video(predicted) + spread)
        return torch.where(mask, out, predicted.to(out))

    def _remember(self, evaluation: Evaluation, key: CondKey, x: Tensor, out: Tensor) -> None:
        """The derivatives of a list."""
        grid = self.run.plan.grid
        for i in evaluation.images(Mode.RUN):
            sigma = evaluation.sigmas[i]
            if sigma <= 0 or not self.run.plan.predicts:
                continue
            tokens = evaluation.actions[i].tokens
            where = None if tokens is None or grid is None else grid.latent_mask(tokens)
            self.run.images[i].cond(key).add(sigma, (x[i] - out[i]) / sigma, where)

    def _check_history(
        self, evaluation: Evaluation, keys: list[CondKey | None], conds: list, x: Tensor
    ) -> None:
        """Images whose conditionings have no history yet (a prompt's or a ControlNet's range just
        began or ended) are computed in full, and what is known of their blocks is forgotten."""
        images = self.run.images
        for key in filter(None, keys):
            missing = [image.number for image in images if not image.cond(key).points]
            evaluation.force_full(Reason(ReasonCode.COND_WITHOUT_HISTORY), missing)
            for uuid in {uuid for uuid, _ in key[1]}:
                self._forget((key[0], uuid), missing)
        active = active_conds(conds, evaluation.told_sigma)
        if evaluation.partial():
            self._check_tokens(evaluation, conds, active, x)
        reused = evaluation.images(Mode.REUSE)
        for cond in active if reused else ():
            missing = [i for i in reused if not _has_points(images[i].residuals_of(cond))]
            evaluation.force_full(Reason(ReasonCode.COND_WITHOUT_RESIDUAL), missing)

    def _check_tokens(
        self, evaluation: Evaluation, conds: list, active: list[tuple], x: Tensor
    ) -> None:
        """Images of which only some tokens would run although a conditioning needs them all."""
        reason = next(self._needs_all_tokens(conds, evaluation.told_sigma), None)
        if reason is not None:
            evaluation.force_full(reason, evaluation.partial())
        if self.store is not None and not all(map(self.store.has_room, active)):
            evaluation.force_full(Reason(ReasonCode.COND_NOT_COUNTED), evaluation.partial())
        shape = (tuple(x.shape[1:]), str(x.device))
        missing = [
            i
            for i in evaluation.partial()
            if not all(self._has_kv(cond, i, shape) for cond in active)
        ]
        evaluation.force_full(Reason(ReasonCode.COND_WITHOUT_KV), missing)

    def _has_kv(self, cond: tuple, image: int, shape: tuple) -> bool:
        return self.store is not None and self.store.has(cond, image, shape)

    def _forget(self, cond: tuple, images: Sequence[int]) -> None:
        """What is known of a conditioning's blocks in these images no longer belongs to it."""
        for i in images:
            image = self.run.images[i]
            image.forget(cond)
            if self.store is not None:
                self.store.forget(cond, i)
            if self.residual is not None:
                self.residual.forget(cond, i)
                image.since_measured = -1

    def let_go(self) -> None:
        """Free what is kept of conditionings whose history ended with an evaluation."""
        alive = {
            (key[0], uuid) for image in self.run.images for key in image.conds for uuid, _ in key[1]
        }
        for image in self.run.images:
            for key in [key for key in image.residuals if key[0] not in alive]:
                del image.residuals[key]
        for store in (self.store, self.residual):
            if store is not None:
                store.keep_only(alive)

    def always_all_tokens(self, conds: list, x: Tensor) -> Reason | None:
        """Why all tokens must be computed in every evaluation of the run on latents x; None where
        some need not."""
        throughout = [[c for c in some or () if not _has_range(c)] for some in conds]
        parts = (is_part(c.get("area"), tuple(x.shape[2:])) for some in throughout for c in some)
        if any(parts):
            return Reason(ReasonCode.COND_AREA)
        return next(self._needs_all_tokens(throughout, None), None)

    def _needs_all_tokens(self, conds: list, sigma: float | None) -> Iterator[Reason]:
        """Reasons of conditionings that address tokens by their place; of all, or those active at
        `sigma`."""
        for cond in (c for some in conds for c in some or ()):
            if sigma is not None and not is_active(cond, sigma):
                continue
            given = cond.get("model_conds", {})
            for name in self.architecture.whole if self.architecture else ():
                if name in given:
                    yield Reason(ReasonCode.COND_GIVEN, name=name)
            if "ref_latents" in given and "timestep_zero" in self._reference_method(given):
                yield Reason(ReasonCode.REFERENCE_AT_ZERO)

    def _reference_method(self, given: dict) -> str:
        method = getattr(given.get("ref_latents_method"), "cond", None)
        has_own = hasattr(self.model, "default_ref_method")
        source = self.model if has_own else getattr(self.model, "params", None)
        return str(method or getattr(source, "default_ref_method", ""))


def _has_range(cond: dict) -> bool:
    return cond.get("timestep_start") is not None or cond.get("timestep_end") is not None


def _has_points(histories: Sequence[Any]) -> bool:
    return any(history.points for history in histories)


def is_like(out: Any, x: Tensor, number: int) -> bool:
    """Whether the host gave one tensor like x for each of `number` lists."""
    if not isinstance(out, list | tuple) or len(out) != number:
        return False
    return all(isinstance(each, Tensor) and each.shape == x.shape for each in out)


def not_one_tensor(given: Any) -> Reason:
    """What is said where something gives another thing than one tensor like the latent."""
    if isinstance(given, list | tuple):
        shown = f"{len(given)} values"
    elif isinstance(given, Tensor):
        shown = f"a tensor of {' x '.join(map(str, given.shape))}"
    else:
        shown = type(given).__name__
    return Reason(ReasonCode.NOT_ONE_TENSOR, given=shown)
