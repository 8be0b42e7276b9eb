"""Which evaluations of a run are computed, where nothing else decides it."""

from __future__ import annotations

import math

FEW = 3  # evaluations of a run, too few to have one at its very end


def evenly_spaced(count: int, steps: int, few: bool = False) -> tuple[bool, ...]:
    """`count` of `steps` evaluations, evenly spaced, the first and the last among them; few: of a
    whole run, in which the last one comes earlier where there are no more than `FEW`."""
    count = min(max(count, 1), steps)
    back = 0.5 if few and count <= FEW and 2 * count < steps else 1.0
    if count == 1:
        computed = {0}
    else:
        computed = {round(i * (steps - back) / (count - back)) for i in range(count)}
    return tuple(i in computed for i in range(steps))


def max_evaluations(speedup: float, steps: int) -> int:
    """Evaluations that may be computed of `steps` within 1 / speedup of their cost; the first
    always is."""
    return max(1, math.floor(steps / speedup + 1e-9))
