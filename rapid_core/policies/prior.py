"""Where heads begin: a plan, and how far they may step aside of it.

The move head chooses the next evaluation to be computed: the plan's next one, or one of its neighbours. Heads that say
nothing take the plan's, and in training now and then a neighbour; what they learn is where a plan is left."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .schedule import even

MOVES = (-2, -1, 0, 1, 2)  # steps from the plan's next evaluation
ASIDE = (0.1, 0.4, 0.0, 0.4, 0.1)  # chances of the moves where heads that say nothing leave the plan
CLOSED = -1e4  # added to the logit of a move that cannot be made


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


def lean(last: int, target: int, steps: int, chance: float) -> tuple[float, ...]:
    """What is added to the logits of the moves from `target`, the next step to be computed by the plan (`steps`: none),
    after step `last` was computed. chance: of heads that say nothing to leave the plan here."""
    open_ = [last < target + move <= steps for move in MOVES]
    chances = [chance * share if move else 1 - chance for move, share in zip(MOVES, ASIDE, strict=True)]
    return tuple(math.log(p) if ok else CLOSED for ok, p in zip(open_, chances, strict=True))


def often(evaluations: int) -> float:
    """Chance to leave a plan at one of so many evaluations: one and a half times a run, in the mean. Most of what
    leaves it costs some dB, so that with more in a run none would be told from the others."""
    return min(0.4, 1.5 / evaluations)


def drawn(logits: Tensor, leaning: Tensor) -> Tensor:
    """Chances (..., moves) with which training draws moves: half the heads', half those of heads that say nothing. What
    heads learn first is that leaving the plan costs; without the other half they would never leave it again."""
    return ((logits + leaning).softmax(-1) + leaning.softmax(-1)) / 2
