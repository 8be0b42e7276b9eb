"""What gaps cost on one model: how its pictures show it, and what steps to compute then.

Where every step of a run was computed, every gap that it could have had is known: what the corrector
would have made of the gap's ends (`quadrature.multistep`) beside what was computed between them. The
mean square of that difference, one number a gap, goes with what the gap does to the picture, on the
development prompts of both demo models as well as trying each gap does (docs/lab.md), and costs
nothing. Of a picture that takes inner products of its derivatives, whatever its size."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from ..types import Aim
from .multistep import correction_weights, gap_moments
from .spacing import Spacing, best_spaced, difficulty, falling
from .student import surely_above_zero

Gap = tuple[int, int]
"""The computed steps that a gap lies between."""

LONGEST = 8  # steps of a gap that are looked at; longer ones follow from these
NEIGHBOURS = 2  # places to either side that a cost is smoothed over
# How much of what was seen beside the formula is taken, as an exponent. Pictures differ by a factor of
# 3 at the same gap, so that a few say only so much about the next ones: on unseen pictures of both demo
# models a half was better than the whole, and than none (docs/lab.md).
SHARE = 0.5
# Of the latent's mean square: below it, errors are not told from rounding, and their logarithm would
# count for more than they do.
NOTHING = 1e-9
# Mean difference of the logarithms of gap errors, below which two pictures are the same one; of the demo
# models' pictures the two that are most alike are 0.11 apart.
SAME_PICTURE = 0.02
# dB that a plan has to promise for the formula's to be left: costs do not quite add up, and of two
# plans that are about as good neither is known to be the better one.
WORTH = 0.45
# With which the next picture has to be nearer, too, for the formula's plan to be left.
SURE = 0.95


def gaps_of(steps: int, longest: int = LONGEST) -> list[Gap]:
    """All gaps of up to so many steps in a run. The last step is always computed: what follows it is
    the picture, and nothing would correct a gap there."""
    return [
        (step, step + length + 1)
        for step in range(steps - 2)
        for length in range(1, min(longest, steps - 2 - step) + 1)
    ]


def error_weights(gap: Gap, sigmas: Sequence[float]) -> tuple[int, np.ndarray]:
    """Weights of a full run's derivatives for how far a gap of it would move the latent wrongly: the
    corrector's, of the gap's ends and the step before it, less what was computed. The number of the
    first derivative that has one, and (n,) its weight and those of the following."""
    before, after = gap
    nodes = [i for i in (before - 1, before, after) if i >= 0]
    first = nodes[0]
    origin = sigmas[nodes[-2]]
    steps = [(sigmas[i], sigmas[i + 1]) for i in range(before + 1, after)]
    moments = [gap_moments(step, origin, Aim.FULL_PICTURE) for step in steps]
    whole = tuple(sum(powers) for powers in zip(*moments, strict=True))
    weights = np.zeros(after + 1 - first)
    weights[[i - first for i in nodes]] = correction_weights(
        [sigmas[i] - origin for i in nodes], whole
    )
    for i, (start, stop) in enumerate(steps, before + 1):
        weights[i - first] -= stop - start
    return first, weights


def errors_of(products: np.ndarray, sigmas: Sequence[float]) -> dict[Gap, float]:
    """The error of every gap of a full run, a mean square. products (N, N) float64: mean products of
    its derivatives with each other, over the latent; sigmas (N + 1,), falling."""
    errors = {}
    for gap in gaps_of(len(sigmas) - 1):
        first, weights = error_weights(gap, sigmas)
        part = slice(first, first + len(weights))
        errors[gap] = max(0.0, float(weights @ products[part, part] @ weights))
    return errors


def distinct(tables: Iterable[Mapping[Gap, float]]) -> list[Mapping[Gap, float]]:
    """Tables without those of a picture that is there already: drawn again (a seed that was kept while a
    speed-up was tried), it would pass for another one that agrees."""
    found: list[Mapping[Gap, float]] = []
    for table in tables:
        if not any(_same(table, other) for other in found):
            found.append(table)
    return found


def _same(table: Mapping[Gap, float], other: Mapping[Gap, float]) -> bool:
    """Whether two tables are of one picture: pictures differ by a factor of 3, and one that is drawn again
    on a device that adds up in another order by rounding."""
    if table.keys() != other.keys():
        return False
    logs = [abs(math.log((table[g] + NOTHING) / (other[g] + NOTHING))) for g in table]
    return sum(logs) <= SAME_PICTURE * len(logs)


@dataclass(frozen=True, eq=False)
class GapCosts:
    """What gaps cost on a model beside the formula of `quadrature.spacing`, on one schedule."""

    sigmas: tuple[float, ...]
    """(N + 1,), falling."""
    logs: tuple[Mapping[Gap, float], ...]
    """By each picture: the logarithm of a gap's cost over the formula's, smoothed; up to a constant."""

    @property
    def pictures(self) -> int:
        """That it was seen on."""
        return len(self.logs)

    @classmethod
    def seen(cls, tables: Iterable[Mapping[Gap, float]], sigmas: Sequence[float]) -> GapCosts:
        """Out of the tables of single pictures: errors of gaps as shares of the latent's mean
        square. Raises ValueError where one is not finite, or the tables have different gaps."""
        tables = list(tables)
        if any(table.keys() != tables[0].keys() for table in tables):
            raise ValueError("tables of gap errors have different gaps")
        if not all(math.isfinite(error) for table in tables for error in table.values()):
            raise ValueError("the model gives numbers that are not finite where steps are skipped")
        formula = Spacing(sigmas)
        logs = [
            {
                gap: math.log(error + NOTHING) - math.log(formula.cost(*gap))
                for gap, error in t.items()
            }
            for t in tables
        ]
        smoothed = tuple({gap: _smoothed(log, gap) for gap in log} for log in logs)
        return cls(tuple(sigmas), smoothed)

    @functools.cached_property
    def _mean(self) -> Mapping[Gap, float]:
        """Over the pictures: the geometric mean of costs, since one picture may be a hundred times
        another."""
        gaps = self.logs[0] if self.logs else ()
        return {gap: mean(log[gap] for log in self.logs) for gap in gaps}

    def on(self, sigmas: Sequence[float], share: float = SHARE) -> dict[Gap, float]:
        """What gaps cost in a run on `sigmas` (N + 1,), falling; in no unit. On another schedule than
        this one a gap is looked up where it lies in this one's steps. share: of what was seen, 0 for
        the formula alone and 1 for the whole."""
        return self._on(sigmas, self._mean, share)

    def _on(
        self, sigmas: Sequence[float], logs: Mapping[Gap, float], share: float = SHARE
    ) -> dict[Gap, float]:
        formula = Spacing(sigmas)
        places = self._places(sigmas)
        longest = max((after - before - 1 for before, after in logs), default=0)
        return {
            gap: formula.cost(*gap) * math.exp(share * _log(logs, *(places[i] for i in gap)))
            for gap in gaps_of(len(sigmas) - 1, longest)
        }

    def best(self, count: int, sigmas: Sequence[float]) -> tuple[bool, ...]:
        """`count` steps of a run on `sigmas`, where skipping the others costs least: the formula's
        where others do not promise to be worth it."""
        usual = best_spaced(count, sigmas)
        plan = self.cheapest(count, sigmas)
        return plan if plan != usual and self._promises(plan, usual, sigmas) else usual

    def cheapest(self, count: int, sigmas: Sequence[float]) -> tuple[bool, ...]:
        """`count` steps where skipping the others costs least in the mean of the pictures, whether
        that is worth it or not."""
        if not self.logs or not falling(sigmas):
            return best_spaced(count, sigmas)
        return self._spacings(tuple(sigmas))[0].best(count)

    def _promises(
        self, plan: Sequence[bool], usual: Sequence[bool], sigmas: Sequence[float]
    ) -> bool:
        """Whether a plan is worth it, and would be nearer on the next picture, too. Where pictures
        disagree about a plan, what they show says little of how it ends (docs/lab.md), and one alone
        does not say how far they disagree."""
        _, *each = self._spacings(tuple(sigmas))
        if not all(one.total(usual) for one in each):  # it skips only where sigmas stand still
            return False
        gains = [10 * math.log10(one.total(usual) / one.total(plan)) for one in each]
        return mean(gains) >= WORTH and surely_above_zero(gains, SURE, of_next=True)

    @functools.cached_property
    def _tables(self) -> dict[tuple[float, ...], list[Spacing]]:
        return {}

    def _spacings(self, sigmas: tuple[float, ...]) -> list[Spacing]:
        """Tables of a run's sigmas, made once: by all pictures, and by each."""
        if sigmas not in self._tables:
            logs = (self._mean, *self.logs)
            self._tables[sigmas] = [Spacing(sigmas, self._on(sigmas, log)) for log in logs]
        return self._tables[sigmas]

    def _places(self, sigmas: Sequence[float]) -> list[float]:
        """Where sigmas lie in this schedule's steps."""
        if tuple(sigmas) == self.sigmas:
            return list(map(float, range(len(sigmas))))
        own = [difficulty(sigma, self.sigmas[0]) for sigma in self.sigmas]
        asked = [difficulty(sigma, self.sigmas[0]) for sigma in sigmas]
        return np.interp(asked, own, range(len(own))).tolist()


def _log(logs: Mapping[Gap, float], before: float, after: float) -> float:
    """That of the gap between two places: between the gaps that were seen, or of the nearest."""
    length = after - before - 1
    corners = {
        (i, i + n + 1): (1 - abs(before - i)) * (1 - abs(length - n))
        for i in (math.floor(before), math.ceil(before))
        for n in (math.floor(length), math.ceil(length))
    }
    known = {gap: weight for gap, weight in corners.items() if gap in logs}
    if not sum(known.values()):
        return logs[min(logs, key=functools.partial(_away, before, length))]
    return sum(w * logs[gap] for gap, w in known.items()) / sum(known.values())


def _away(before: float, length: float, gap: Gap) -> float:
    """How far a gap is from a place and a length."""
    return abs(gap[0] - before) + abs(gap[1] - gap[0] - 1 - length)


def _smoothed(logs: Mapping[Gap, float], gap: Gap) -> float:
    """The mean over gaps as long at places nearby, weighed by how near they are."""
    before, after = gap
    places = range(-NEIGHBOURS, NEIGHBOURS + 1)
    near = {by: logs[before + by, after + by] for by in places if (before + by, after + by) in logs}
    weights = {by: 1 / (1 + abs(by)) for by in near}
    return sum(weights[by] * near[by] for by in near) / sum(weights.values())
