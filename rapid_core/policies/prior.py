"""Where heads begin: a plan as the offset of their jumps.

The Step-Skip head gives a Beta-distributed jump. With an offset of its logits, heads that say nothing jump to the next
evaluation that a plan computes, and in training now and then a step of the grid beside it; what they learn is a
difference to the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .schedule import even

NEAREST = 1e-5  # of a jump to 0 and 1: its logits stay finite, and the next of a thousand steps can be reached
# Deviation of a jump in steps of the grid. Half a step to either side is the plan's own evaluation: one jump in six
# goes elsewhere. With a whole step half of them do, and the first rollouts are 2 dB worse (FLUX-like, 32 rollouts).
WANDER = 0.35
SHARP = (2.0, 2900.0)  # concentration within which a prior stays: `head_net.beta` limits logits to 8


def following(marks: Sequence[bool], step: int, computed: int, left: int) -> int:
    """Next step to be computed after `step`, when `computed` evaluations were and `left` more are affordable: the
    plan's next one; where heads spent an evaluation of their own, the plan's beyond the one that it took the place of;
    evenly spread where a budget is smaller than the plan's. Number of steps for none."""
    steps = len(marks)
    if left <= 0:
        return steps
    planned = [i for i in range(step + 1, steps) if marks[i]]
    if len(planned) <= left:  # an evaluation that was saved is not spent for its own sake
        return planned[0] if planned else steps
    if sum(marks) <= computed + left:
        return planned[len(planned) - left]
    spread = even(left + 1, steps - step)
    return step + next(i for i in range(1, len(spread)) if spread[i])


def offset(schedule: Sequence[float], start: float, target: int) -> tuple[float, float]:
    """Offset of the logits of a jump (see `head_net.beta`) from the noise level `start`: its mode lies between the
    levels of `target`, the next step to be computed, and of the one before, its deviation is WANDER steps of the grid.
    target = number of steps: to the end."""
    steps = len(schedule) - 1
    above, here = schedule[target - 1], schedule[min(target, steps)]
    below = schedule[min(target + 1, steps)]
    mode = min(max((above + here) / 2 / start, NEAREST), 1 - NEAREST)
    width = max(WANDER * (above - below) / 2 / start, NEAREST)
    sharp = min(max(mode * (1 - mode) / width**2, SHARP[0]), SHARP[1])
    return math.log(sharp * mode), math.log(sharp * (1 - mode))
