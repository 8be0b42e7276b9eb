"""Which evaluations of a run are computed, where nothing else decides it.

A gap is what lies between two computed evaluations. What skipping it costs grows with a power of
its length, measured not in sigma but by `difficulty`, or was measured on the model itself
(`calibration.gaps`); and costs of gaps add up, since each is a small push of its own. So the steps
to compute are the shortest path through a table of gaps."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Mapping, Sequence

FEW = 3  # evaluations of a run, too few to have one at its very end

# Measured on both demo models (docs/lab.md): one gap of 1 to 5 steps at every place of a run, and
# what it does to the picture, 250 numbers. A gap's cost in mean squared error goes with the 4.8th
# power of its length; the length is nearly the change of log-SNR, log((1 - sigma) / sigma), with
# the noisy end weighed six times, and each end blunted.
POWER = 4.8
NOISY_WEIGHT = 5.9
CLEAN_FLOOR = 0.02
NOISY_FLOOR = 0.11
HIGHEST_OF_OTHERS = 14.6  # sigma of pure noise in models that are no flows (SD 1.5, SDXL)
LONGEST = 12  # steps of a gap that are looked at, more where a budget needs longer ones
# Multiples of a gap's cost where it ends at a turn, over which nothing can be corrected, and where it
# begins at one, from which a single derivative predicts (docs/lab.md).
ENDS_AT_TURN = 2.0
BEGINS_AT_TURN = 8.0


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


def difficulty(sigma: float, highest: float = 1.0) -> float:
    """How far along a run a sigma is, so that equal differences are equally hard to predict over.
    highest: sigma of the run; above 1 the model is not a flow, and sigma / (1 + sigma) is what
    its share of noise is."""
    noise = sigma / (1 + sigma) if highest > 1 + 1e-6 else min(sigma, 1.0)
    return NOISY_WEIGHT * math.log(1 - noise + NOISY_FLOOR) - math.log(noise + CLEAN_FLOOR)


def steps_of_whole(sigmas: Sequence[float]) -> float:
    """Steps that a run from pure noise to the picture would have, made of steps as long as those of
    a run on `sigmas` (N + 1,), which may be a part of one (image to image, one of two experts)."""
    highest = HIGHEST_OF_OTHERS if sigmas[0] > 1 + 1e-6 else 1.0
    whole = difficulty(0.0, highest) - difficulty(highest, highest)
    own = difficulty(sigmas[-1], highest) - difficulty(sigmas[0], highest)
    return (len(sigmas) - 1) * max(1.0, whole / own) if own > 0 else math.inf


def gap_cost(start: float, stop: float, highest: float = 1.0) -> float:
    """What a gap costs that begins after the evaluation at the sigma `start` and ends before the one
    at `stop`; in no unit, to be compared with others."""
    return abs(difficulty(stop, highest) - difficulty(start, highest)) ** POWER


Rest = tuple[list[float], list[int]]


class Spacing:
    """The best steps to compute on the falling sigmas of a run (N + 1,), for every number of them.

    measured: what gaps cost by the two computed steps they lie between, in any one unit; the formula
    for None. Of each step the shortest gaps are there, up to some length; longer ones go on with the
    formula's power. What follows the last computed step is a gap like another (`tail`). turns: steps
    from which on the derivative is another one (a prompt or a ControlNet begins or ends), so that no
    gap leads over them."""

    def __init__(
        self,
        sigmas: Sequence[float],
        measured: Mapping[tuple[int, int], float] | None = None,
        turns: Sequence[int] = (),
    ):
        self.steps = len(sigmas) - 1
        self.turns = frozenset(turns)
        must = sorted({0, *turns, self.steps - 1})
        self._fewest = len(must)
        # Where turns lie together, the gap before them may be longer than any that is worth it otherwise.
        self._between = max((b - a for a, b in itertools.pairwise(must)), default=0) if turns else 0
        self._at = [difficulty(sigma, sigmas[0]) for sigma in sigmas]
        self._ends = sigmas[-1] <= 0
        self._measured = measured
        self._longest: dict[int, int] = {}  # the end of the longest gap that was measured, by step
        for step, following in measured or ():
            self._longest[step] = max(following, self._longest.get(step, 0))
        # By number of evaluations still to be computed, at [i] from the computed step i on: the
        # least cost of the rest, and the step that is computed next (the number of steps for none).
        nothing = [self.steps] * self.steps
        self._rest: list[Rest] = [([math.inf] * (self.steps - 1) + [0.0], nothing)]
        # The same where the last steps need not be computed.
        self._open: list[Rest] = [([self.tail(step) for step in range(self.steps)], nothing)]
        self._lock = threading.Lock()  # runs of several threads share tables

    def cost(self, step: int, following: int) -> float:
        """Of the gap between two computed steps; none where there is nothing between."""
        if following == step + 1:
            return 0.0
        if any(step < turn < following for turn in self.turns):
            return math.inf
        if self._measured is None:
            return self._multiple(step, following) * self._length(step, following) ** POWER
        known = min(following, self._longest[step])
        if following == known:
            return self._measured[step, known]
        length = self._length(step, known)
        if not length:  # sigmas stand still there: nothing was measured
            return self._length(step, following) ** POWER
        return self._measured[step, known] * (self._length(step, following) / length) ** POWER

    def tail(self, step: int) -> float:
        """Of what follows the last computed step, over which nothing is corrected; inf where the last step
        has to be computed. It need not be where a run ends in the picture: the last steps of many
        schedulers (beta, normal, karras) are next to nothing."""
        if step == self.steps - 1:
            return 0.0
        if not self._ends or self.turns:
            return math.inf
        length = self._length(step, self.steps) ** POWER
        near = sorted(self._longest.items(), key=lambda gap: abs(gap[0] - step))
        known = next((gap for gap in near if self._length(*gap)), None)
        if known is None:
            return length
        return length * self.cost(*known) / self._length(*known) ** POWER

    def _multiple(self, step: int, following: int) -> float:
        """Of a gap's cost at turns."""
        multiple = ENDS_AT_TURN if following in self.turns else 1.0
        return multiple * (BEGINS_AT_TURN if step in self.turns else 1.0)

    def _length(self, step: int, following: int) -> float:
        return abs(self._at[following] - self._at[step])

    def total(self, computed: Sequence[bool]) -> float:
        """Of all gaps between computed steps, and of what follows the last one."""
        chosen = [step for step, on in enumerate(computed) if on]
        between = sum(self.cost(*gap) for gap in itertools.pairwise(chosen))
        return between + self.tail(chosen[-1])

    def best(self, count: int) -> tuple[bool, ...]:
        """`count` steps, the first among them, where skipping the others costs least; more where there are
        as many turns, which are computed anyway."""
        count = min(max(count, 1), self.steps)
        if self.turns:
            count = max(count, self._fewest)
        elif count < 2 or (count <= FEW and 2 * count < self.steps):
            return evenly_spaced(count, self.steps, few=True)
        return True, *self._after(0, count - 1, self._open)

    def rest(self, step: int, left: int) -> float:
        """Least cost of what follows a computed step, with `left` more evaluations, the last step's
        among them; inf where that cannot be."""
        return self._table(left, self._rest)[0][step]

    def after(self, step: int, left: int) -> tuple[bool, ...]:
        """Which of the steps after a computed one are computed, of `left`; the last always is."""
        return self._after(step, left, self._rest)

    def _after(self, step: int, left: int, rest: list[Rest]) -> tuple[bool, ...]:
        chosen = set()
        at = step
        for still in range(min(left, self.steps - 1 - step), 0, -1):
            at = self._table(still, rest)[1][at]
            chosen.add(at)
        return tuple(i in chosen for i in range(step + 1, self.steps))

    def _table(self, left: int, rest: list[Rest]) -> Rest:
        with self._lock:
            while len(rest) <= left:
                rest.append(self._longer(rest[-1][0], len(rest)))
        return rest[left]

    def _longer(self, after: list[float], left: int) -> Rest:
        """The table for one evaluation more than `after` is of."""
        least = [math.inf] * self.steps
        then = [self.steps] * self.steps
        for step in range(self.steps - 1):
            # A longest gap that still lets `left` evaluations reach the end.
            reach = max(LONGEST, self._between, math.ceil(1.5 * (self.steps - step) / left))
            for following in range(step + 1, min(self.steps, step + 1 + reach)):
                cost = self.cost(step, following) + after[following]
                if cost < least[step]:
                    least[step], then[step] = cost, following
        return least, then


@functools.lru_cache(maxsize=32)
def spacing_of(sigmas: tuple[float, ...], turns: tuple[int, ...] = ()) -> Spacing:
    """The table of a run's sigmas and turns, made once for all its images."""
    return Spacing(sigmas, turns=turns)


def falling(sigmas: Sequence[float]) -> bool:
    """Whether no sigma is above the one before it."""
    return all(b <= a for a, b in itertools.pairwise(sigmas))


def best_spaced(count: int, sigmas: Sequence[float], turns: Sequence[int] = ()) -> tuple[bool, ...]:
    """`count` steps of a run on `sigmas` (N + 1,), where skipping the others costs least. turns: see
    `Spacing`."""
    if not falling(sigmas):
        return evenly_spaced(count, len(sigmas) - 1, few=True)
    return spacing_of(tuple(sigmas), tuple(turns)).best(count)
