"""CALC_COND_BATCH: which conditions are active, and the forecast of held images' derivative for each of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..actions import Level
from ..engine.state import Evaluation, RunState


def is_active(cond: dict, sigma: float) -> bool:
    """Whether the host evaluates this condition at `sigma` (its start and end percent are already sigmas)."""
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    return not (start is not None and sigma > float(start)) and not (end is not None and sigma < float(end))


def control_state(cond: dict, sigma: float) -> tuple[bool, ...]:
    """Which of the condition's chained ControlNets act at `sigma`: a forecast must not cross their start or end."""
    states, control = [], cond.get("control")
    while control is not None:
        bounds = getattr(control, "timestep_range", None)
        states.append(bounds is None or not (sigma > bounds[0] or sigma < bounds[1]))
        control = getattr(control, "previous_controlnet", None)
    return tuple(states)


def slot_key(slot: int, conds: list | None, sigma: float, x: Tensor) -> tuple | None:
    """Cache key of one slot (cond, uncond ...): what is active in it, shape and device; None for an unused slot."""
    if conds is None:
        return None
    active = tuple((c.get("uuid"), control_state(c, sigma)) for c in conds if is_active(c, sigma))
    return slot, active, tuple(x.shape[1:]), str(x.device)


def active_uuids(conds: list, sigma: float) -> list[Any]:
    """uuids of all conditions that the host will evaluate at `sigma`."""
    return [c.get("uuid") for slot in conds if slot is not None for c in slot if is_active(c, sigma)]


class Conditions:
    """Holds images per condition, after the host has merged areas and masks; guidance then runs as stock."""

    def __init__(self, state: RunState):
        self.state = state
        self.flops: dict[tuple, float] = {}  # dense FLOPs of a slot of an image, as last computed

    def __call__(self, executor: Any, evaluation: Evaluation, arguments: tuple) -> list[Tensor]:
        """`arguments` are the host's: model, conds, x, timestep, model_options."""
        conds, x = arguments[1], arguments[2]
        keys = [slot_key(i, cond, evaluation.sigma, x) for i, cond in enumerate(conds)]
        self._check_history(evaluation, keys, conds)
        held = evaluation.images(Level.HOLD)
        for i in held:
            evaluation.dense[i] += sum(self.flops.get((key, i), 0.0) for key in keys if key)
        if len(held) == self.state.batch:
            return [self._held(key, held, x, evaluation.sigma) if key else torch.zeros_like(x) for key in keys]
        out = executor(*arguments)
        for slot, key in enumerate(keys):
            if key is not None:
                if held:
                    out[slot][held] = self._held(key, held, x, evaluation.sigma)
                self._remember(evaluation, key, x, out[slot], slots=len(keys) - keys.count(None))
        return out

    def _held(self, key: tuple, held: list[int], x: Tensor, sigma: float) -> Tensor:
        """denoised = x - sigma * forecast derivative, (len(held), ...)."""
        return x[held] - sigma * self.state.slot(key).forecast(held, sigma, self.state.order).to(x)

    def _remember(self, evaluation: Evaluation, key: tuple, x: Tensor, out: Tensor, slots: int) -> None:
        if evaluation.sigma <= 0:
            return
        for i in evaluation.images(Level.RUN):
            self.state.slot(key).add(i, evaluation.sigma, (x[i] - out[i]) / evaluation.sigma)
            self.flops[key, i] = evaluation.dense[i] / slots

    def _check_history(self, evaluation: Evaluation, keys: list, conds: list) -> None:
        """Images whose conditions have no history yet (a prompt's range just began) are computed."""
        for key in filter(None, keys):
            points = self.state.slot(key).points
            missing = [i for i in evaluation.images(Level.HOLD) if not points(i)]
            evaluation.fall_back("a condition became active; it has no history yet", missing)
        if not evaluation.images(Level.REUSE):
            return
        for uuid in active_uuids(conds, evaluation.sigma):
            tracks = [track for key, track in self.state.residuals.items() if key[0] == uuid]
            missing = [i for i in evaluation.images(Level.REUSE) if not any(t.points(i) for t in tracks)]
            evaluation.fall_back("a condition has no residual yet", missing)
