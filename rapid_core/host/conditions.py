"""What of ComfyUI's condition lists is active at a noise level; mirrors the host's own rule, reads only."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
