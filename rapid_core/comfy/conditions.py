"""CALC_COND_BATCH: which conditions are active, and for each of them the forecast of what was not
computed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..architectures import Architecture
from ..engine.evaluation import Evaluation
from ..engine.kv import KVStore
from ..engine.normalized_convolution import normalized_convolution
from ..engine.run import RunState
from ..engine.sparse import SparseResidual
from ..types import Mode


def single(level: Any) -> float:
    """A bound of a range as the host compares it with a noise level: in single precision. Where a
    level of the schedule is the bound, a double may lie on its other side."""
    return struct.unpack("f", struct.pack("f", float(level)))[0]


def is_active(cond: dict, sigma: float) -> bool:
    """Whether the host evaluates this condition at `sigma` (its start and end percent are already
    sigmas)."""
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    return not (start is not None and sigma > single(start)) and not (
        end is not None and sigma < single(end)
    )


def control_state(cond: dict, sigma: float) -> tuple[bool, ...]:
    """Which of the condition's chained ControlNets act at `sigma`: a forecast must not cross their
    start or end."""
    states, control = [], cond.get("control")
    while control is not None:
        bounds = getattr(control, "timestep_range", None)
        states.append(
            bounds is None or not (sigma > single(bounds[0]) or sigma < single(bounds[1]))
        )
        control = getattr(control, "previous_controlnet", None)
    return tuple(states)


def hook_state(cond: dict, sigma: float) -> tuple[int, ...]:
    """Keyframes that the condition's hooks (LoRA schedules) are at: a forecast must not cross from
    one to the next."""
    groups = (
        getattr(hook, "hook_keyframe", None) for hook in getattr(cond.get("hooks"), "hooks", ())
    )
    frames = (getattr(group, "keyframes", ()) for group in groups)
    return tuple(sum(single(frame.start_t) >= sigma for frame in some[1:]) for some in frames)


def slot_key(slot: int, conds: list | None, sigma: float, x: Tensor) -> tuple | None:
    """Cache key of one slot (cond, uncond ...): what is active in it, shape and device; None for an
    unused slot."""
    if conds is None:
        return None
    some = (c for c in conds if is_active(c, sigma))
    active = tuple((c.get("uuid"), (control_state(c, sigma), hook_state(c, sigma))) for c in some)
    return slot, active, tuple(x.shape[1:]), str(x.device)


def active_streams(conds: list, sigma: float) -> list[tuple]:
    """Streams (see `model_call.streams_of`) of all conditions that the host will evaluate at
    `sigma`."""
    return [
        (i, c.get("uuid"))
        for i, slot in enumerate(conds)
        for c in slot or ()
        if is_active(c, sigma)
    ]


def is_part(area: Sequence | None, shape: tuple[int, ...]) -> bool:
    """Whether a condition's area (sizes, then places, as the host resolved it) is less than a
    latent of `shape`."""
    if area is None:
        return False
    sizes, block_table = area[: len(area) // 2][: len(shape)], area[len(area) // 2 :][: len(shape)]
    return any(block_table) or any(
        size < whole for size, whole in zip(sizes, shape[-len(sizes) :], strict=True)
    )


class Conditions:
    """Fills in what was not computed, per condition, after the host has merged areas and masks;
    guidance then runs as stock. store: keys and values, where a region policy is; interpolate:
    inactive tokens move with their neighbours; left_out: differences to dense attention, where they
    are kept."""

    def __init__(
        self,
        state: RunState,
        architecture: Architecture | None,
        model: Any,
        store: KVStore | None = None,
        interpolate: bool = False,
        left_out: SparseResidual | None = None,
    ):
        self.state, self.store, self.interpolate, self.left_out = (
            state,
            store,
            interpolate,
            left_out,
        )
        self.architecture, self.model = architecture, model
        self.flops: dict[tuple, float] = {}  # dense FLOPs of a slot of an image, as last computed

    def __call__(
        self, executor: Any, evaluation: Evaluation, arguments: tuple, first: bool = True
    ) -> list[Tensor] | None:
        """`arguments` are the host's: model, conds, x, timestep, model_options. No action changes
        after the checks, nor where others of this evaluation have obeyed them (first: none has):
        None where these cannot, too."""
        conds, x = arguments[1], arguments[2]
        keys = [slot_key(i, cond, evaluation.asked, x) for i, cond in enumerate(conds)]
        evaluation.slots.update(filter(None, keys))
        decided = list(evaluation.actions)
        self._check_history(evaluation, keys, conds, x)
        if not first and any(a is not b for a, b in zip(decided, evaluation.actions, strict=True)):
            evaluation.actions[:] = decided
            return None
        held, spent = evaluation.images(Mode.SKIP), list(evaluation.spent)
        if len(held) == self.state.batch:
            self._count_held(evaluation, keys, held)
            return [
                self._forecast(key, evaluation, held, x) if key else torch.zeros_like(x)
                for key in keys
            ]
        out = executor(*arguments)
        if held or evaluation.partial():
            out = [each.clone() for each in out]  # what the host or another node may keep
        # Where the batch could not be split, held images were computed with the others, and
        # counted.
        self._count_held(evaluation, keys, [i for i in held if evaluation.spent[i] == spent[i]])
        for slot, key in enumerate(keys):
            if key is not None:
                for i in held:
                    out[slot][i] = self._forecast(key, evaluation, [i], x[i : i + 1])[0]
                for i in evaluation.partial():
                    out[slot][i] = self._completed(evaluation, key, i, x[i], out[slot][i])
                self._remember(evaluation, key, x, out[slot], slots=len(keys) - keys.count(None))
        return out

    def _count_held(self, evaluation: Evaluation, keys: list, images: list[int]) -> None:
        """What a dense evaluation of these images would have cost."""
        for i in images:
            evaluation.dense[i] += sum(self.flops.get((key, i), 0.0) for key in keys if key)

    def _forecast(self, key: tuple, evaluation: Evaluation, images: list[int], x: Tensor) -> Tensor:
        """denoised = x - sigma * forecast derivative of these images; x (len(images), ...)."""
        return x - evaluation.sigma * self.state.forecast(key, evaluation, images).to(x)

    def _completed(
        self, evaluation: Evaluation, key: tuple, image: int, x: Tensor, out: Tensor
    ) -> Tensor:
        """An image's denoised (C, ...): computed at its tokens, forecast elsewhere."""
        tokens, regions = evaluation.actions[image].tokens, self.state.regions
        assert tokens is not None and regions is not None
        forecast, mask = (
            self._forecast(key, evaluation, [image], x[None])[0],
            regions.grid.mask(tokens),
        )
        if self.interpolate:
            forecast = forecast + normalized_convolution(out - forecast, mask, regions.grid.patch)
        return torch.where(mask, out, forecast.to(out))

    def _remember(
        self, evaluation: Evaluation, key: tuple, x: Tensor, out: Tensor, slots: int
    ) -> None:
        if evaluation.sigma <= 0:
            return
        for i in evaluation.images(Mode.RUN):
            tokens, regions = evaluation.actions[i].tokens, self.state.regions
            where = None if tokens is None or regions is None else regions.grid.mask(tokens)
            self.state.slot(key).add(i, evaluation.sigma, (x[i] - out[i]) / evaluation.sigma, where)
            self.flops[key, i] = evaluation.dense[i] / slots

    def _check_history(self, evaluation: Evaluation, keys: list, conds: list, x: Tensor) -> None:
        """Images whose conditions have no history yet (a prompt's or a ControlNet's range just
        began or ended) are computed densely, and what was kept of their streams is forgotten."""
        for key in filter(None, keys):
            points = self.state.slot(key).points
            missing = [i for i in range(self.state.batch) if not points(i)]
            evaluation.force_full("a condition became active; it has no history yet", missing)
            for uuid in {uuid for uuid, _ in key[1]}:
                self._forget((key[0], uuid), missing)
        streams = active_streams(conds, evaluation.asked)
        if evaluation.partial():
            evaluation.force_full(*self._whole(conds, evaluation))
            if self.store is not None and any(map(self.store.refuses, streams)):
                evaluation.force_full(
                    "a condition that memory_limit was not counted for", evaluation.partial()
                )
            shape = (tuple(x.shape[1:]), str(x.device))
            missing = [
                i
                for i in evaluation.partial()
                if not all(self._has(stream, i, shape) for stream in streams)
            ]
            evaluation.force_full("a condition has no keys and values of this latent yet", missing)
        if not evaluation.images(Mode.REUSE):
            return
        for stream in streams:
            tracks = self.state.residuals_of(stream)
            missing = [
                i for i in evaluation.images(Mode.REUSE) if not any(t.points(i) for t in tracks)
            ]
            evaluation.force_full("a condition has no residual yet", missing)

    def _forget(self, stream: tuple, images: list[int]) -> None:
        for i in images:
            for track in self.state.residuals_of(stream):
                track.forget(i)
            if self.store is not None:
                self.store.forget(stream, i)
            if self.left_out is not None:
                self.left_out.forget(stream, i)
                self.state.since_measured[i] = -1

    def let_go(self) -> None:
        """Free what is held of conditions whose history ended with an evaluation."""
        alive = {(key[0], uuid) for key in self.state.slots for uuid, _ in key[1]}
        for key in [key for key in self.state.residuals if key[0] not in alive]:
            self.state.residuals.pop(key).drop()
        for held in (self.store, self.left_out):
            if held is not None:
                held.keep_only(alive)

    def _whole(self, conds: list, evaluation: Evaluation) -> tuple[str, list[int]]:
        """Why all tokens must be computed, and of which images: conditions that address tokens by
        their place."""
        active = [
            c for slot in conds if slot is not None for c in slot if is_active(c, evaluation.asked)
        ]
        reasons = [reason for reason in map(self._whole_for, active) if reason]
        return (reasons[0], evaluation.partial()) if reasons else ("", [])

    def always_whole(self, conds: list, x: Tensor) -> str | None:
        """Why all tokens must be computed in every evaluation of the run on latents x; None where
        some need not."""
        whole_run = [
            c
            for slot in conds
            if slot is not None
            for c in slot
            if c.get("timestep_start") is None and c.get("timestep_end") is None
        ]
        if any(is_part(c.get("area"), tuple(x.shape[2:])) for c in whole_run):
            return "a condition has an area: all tokens are computed, no keys and values are kept"
        return next((reason for reason in map(self._whole_for, whole_run) if reason), None)

    def _whole_for(self, cond: dict) -> str | None:
        given = cond.get("model_conds", {})
        for name in self.architecture.whole if self.architecture else ():
            if name in given:
                return f"{name} is conditioned on: all tokens are computed"
        if "ref_latents" in given and "timestep_zero" in self._reference_method(given):
            return "reference latents at timestep zero: all tokens are computed"
        return None

    def _reference_method(self, given: dict) -> str:
        method = getattr(given.get("ref_latents_method"), "cond", None)
        source = (
            self.model
            if hasattr(self.model, "default_ref_method")
            else getattr(self.model, "params", None)
        )
        return str(method or getattr(source, "default_ref_method", ""))

    def _has(self, stream: tuple, image: int, shape: tuple) -> bool:
        return self.store is not None and self.store.has(stream, image, shape)
