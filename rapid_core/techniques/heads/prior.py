"""Where heads begin: a schedule, and the ladder of schedules that it is a rung of.

The pace head says whose next evaluation is computed next: the schedule's own, or that of a schedule
with more or fewer evaluations. Heads that say nothing follow their schedule, and in training now
and then another one to its next evaluation; what they learn is where an image needs more than
others, and where less."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ...quadrature.spacing import evenly_spaced

RUNGS = (-2, -1, 0, 1, 2)  # of the ladder, from the schedule's own; those above compute more
OWN = RUNGS.index(0)
# Chances of the rungs where heads that say nothing leave the schedule.
ASIDE = (0.2, 0.3, 0.0, 0.3, 0.2)
CLOSED = -1e4  # added to the logit of a rung that cannot be had


def next_in_schedule(marks: Sequence[bool], step: int, computed: int, left: int) -> int:
    """Next step to be computed after `step`, when `computed` evaluations were and `left` more are
    affordable: the schedule's next one; where heads spent an evaluation of their own, the
    schedule's beyond the one that it took the place of, and where they spent several, these are
    saved bit by bit and leave no hole; evenly spaced where a budget is smaller than the schedule's.
    Number of steps for none."""
    steps = len(marks)
    if left <= 0:
        return steps
    planned = [i for i in range(step + 1, steps) if marks[i]]
    if len(planned) <= left:  # an evaluation that was saved is not spent for its own sake
        return planned[0] if planned else steps
    if sum(marks) <= computed + left:
        return planned[math.ceil((len(planned) - left) / left)]
    spread = evenly_spaced(left + 1, steps - step)
    return step + next(i for i in range(1, len(spread)) if spread[i])


def next_computed(marks: Sequence[bool], step: int, left: int) -> int:
    """Next step that a schedule computes after `step`; number of steps for none, or where nothing
    is left to spend."""
    return next((i for i in range(step + 1, len(marks)) if marks[i] and left > 0), len(marks))


def prior_logits(targets: Sequence[int | None], chance: float) -> tuple[float, ...]:
    """What is added to the logits of the rungs.

    targets: the next step that each computes, None where the ladder has none; one that a nearer
    rung has, too, is no choice. chance: of heads that say nothing to leave the schedule here."""
    seen: set[int] = set()
    out = [CLOSED] * len(RUNGS)
    for i in sorted(range(len(RUNGS)), key=lambda i: abs(RUNGS[i])):
        target = targets[i]
        if target is not None and target not in seen:
            seen.add(target)
            out[i] = math.log(chance * ASIDE[i] if i != OWN else 1 - chance)
    return tuple(out)


def explore_rate(evaluations: int) -> float:
    """Chance to leave a schedule at one of so many evaluations: three times a run, in the mean."""
    return min(0.4, 3 / evaluations)


def mixture(logits: Tensor, prior: Tensor) -> Tensor:
    """Chances (..., rungs) with which training draws rungs: half the heads', half those of heads
    that say nothing. What heads learn first is that leaving the schedule costs in the mean; without
    the other half they would never leave it again."""
    return ((logits + prior).softmax(-1) + prior.softmax(-1)) / 2
