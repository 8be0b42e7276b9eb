"""The best steps to compute on one workflow: which pictures are drawn to find them, and what is taken.

Full pictures show what gaps cost (`quadrature.gap_costs`). Plans that these costs suggest are drawn on
the same seeds and judged by how near they come to the full pictures; the formula's plan is left only
for one that is clearly better. A plan that follows pictures closely is nearer on these whatever it is
worth on others, so it is judged on pictures of other prompts than it was made from. What draws is
known by two functions, so that ComfyUI's node and the trainer may share this."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Protocol

from ..quadrature.gap_costs import Gap, GapCosts, gaps_of
from ..quadrature.spacing import Spacing, best_spaced, max_evaluations
from .search import clearly_better, key_of, neighbours

SPEEDUPS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
AT_LEAST = 2  # pictures before a plan is judged
# dB behind another plan in the mean, at which a plan is given up where that is no accident.
FAR = 1.0
MEASURED = 2  # pictures that show what a plan is worth which is taken unseen
# Prompts from which on some can judge what others taught. Plans that follow the pictures of one prompt
# as closely as they can are 5 to 10 dB nearer there, and up to 3 farther on others (docs/lab.md).
SEVERAL = 3

Plan = tuple[bool, ...]
"""(N,) which steps are computed."""
Table = Mapping[Gap, float]
"""Errors of the gaps of one watched picture, shares of the latent's mean square."""


@dataclass(frozen=True)
class Effort:
    """How much is drawn."""

    budget: float
    """The most that all pictures may cost, in full pictures."""
    pictures: int
    """Seeds that full pictures are drawn of."""
    compares: bool = True
    """Whether plans are drawn to be compared; else the watched costs decide."""
    climbs: bool = False
    """Whether neighbours of the best plans are tried with what is left."""


EFFORTS = {
    "few": Effort(10, 4, compares=False),
    "normal": Effort(40, 8),
    "long": Effort(150, 12, climbs=True),
}


class Pictures(Protocol):
    """What draws a workflow's pictures, by the number of their seed."""

    def full(self, number: int) -> list[Table]:
        """Draw a picture with all steps, and remember it. What each image of it shows of gaps."""
        ...

    def psnr(self, plan: Plan, number: int) -> float:
        """Draw a picture with these steps. PSNR in dB of its latent to the full one."""
        ...


@dataclass
class Figures:
    """All that was measured, so that a calibration that was interrupted goes on where it was."""

    tables: dict[int, list[Table]] = field(default_factory=dict)
    """What full pictures have shown, by number."""
    psnr: dict[str, dict[int, float]] = field(default_factory=dict)
    """PSNR in dB by plan (`key_of`) and number."""
    again: int = 0
    """Full pictures that were lost and have to be drawn a second time."""

    def lose(self, number: int) -> None:
        """A full picture is not there any more: it will be drawn again, and counts twice."""
        if self.tables.pop(number, None) is not None:
            self.again += 1

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        tables = {
            str(number): [[[*gap, error] for gap, error in table.items()] for table in drawn]
            for number, drawn in self.tables.items()
        }
        psnr = {
            plan: {str(number): value for number, value in by_number.items()}
            for plan, by_number in self.psnr.items()
        }
        return {"tables": tables, "psnr": psnr, "again": self.again}

    @classmethod
    def from_json(cls, found: Mapping[str, Any], steps: int) -> Figures:
        """What `to_json` gave, of runs of so many steps. Raises ValueError, KeyError, TypeError or
        AttributeError for anything else."""
        tables: dict[int, list[Table]] = {
            int(number): [{(int(a), int(b)): float(error) for a, b, error in t} for t in drawn]
            for number, drawn in found["tables"].items()
        }
        gaps = set(gaps_of(steps))
        if any(not drawn or any(t.keys() != gaps for t in drawn) for drawn in tables.values()):
            raise ValueError(f"gaps are not those of a run of {steps} steps")
        psnr = {
            str(plan): {int(number): float(value) for number, value in by_number.items()}
            for plan, by_number in found["psnr"].items()
        }
        return cls(tables, psnr, int(found["again"]))


@dataclass(frozen=True)
class Chosen:
    """The plan of one speed-up."""

    speedup: float
    computed: Plan
    psnr: float | None
    """Its mean PSNR in dB to the full pictures; None where the budget was spent before."""
    psnr_default: float | None
    """That of the plan without a policy on the same pictures; None where it was not drawn on them."""
    pictures: int
    """That they are means over."""


class Calibration:
    """One calibration of a run's sigmas (N + 1,), falling.

    pictures: what draws; figures: what was drawn before, and where it is kept; kept: called after
    every picture that was drawn; prompts: how many the pictures are of, in turn."""

    def __init__(
        self,
        sigmas: Sequence[float],
        effort: Effort,
        pictures: Pictures,
        figures: Figures,
        kept: Callable[[], None] = lambda: None,
        prompts: int = 1,
    ):
        self.sigmas = tuple(sigmas)
        self.steps = len(sigmas) - 1
        self.effort = effort
        self.pictures = pictures
        self.figures = figures
        self.kept = kept
        self.prompts = prompts
        self.splits = effort.compares and prompts >= SEVERAL
        self.numbers: list[int] = []
        """Of the seeds whose full pictures were drawn."""
        # Whatever was drawn before counts once it is asked for, so that a calibration that goes on
        # takes the same course as one that was never interrupted.
        self._asked: dict[Plan, list[int]] = {}

    @property
    def spent(self) -> float:
        """What was drawn so far, in full pictures: evaluations that were computed over those of a
        full run."""
        computed = sum(sum(plan) * len(numbers) for plan, numbers in self._asked.items())
        return self.figures.again + len(self.numbers) + computed / self.steps

    @property
    def left_over(self) -> bool:
        """Whether one of a longer effort has drawn more before: it begins with more full pictures."""
        return not self.figures.tables.keys() <= set(self.numbers)

    def run(self) -> list[Chosen]:
        """The best plans that the effort finds, one a speed-up, by rising speed-up. Raises ValueError
        where pictures show numbers that are not finite."""
        self._watch()
        costs = self._costs(self.numbers)
        promised = {s: costs.best(self._count(s), self.sigmas) for s in SPEEDUPS}
        if not self.effort.compares:
            return self._measured(promised)
        candidates = {s: [self._formula(s), plan] for s, plan in promised.items()}
        if self.splits:
            closely = Spacing(self.sigmas, self._costs(self.teachers).on(self.sigmas, share=1.0))
            for speedup, plans in candidates.items():
                count = self._count(speedup)
                plans += [costs.cheapest(count, self.sigmas), closely.best(count)]
        candidates = {s: list(dict.fromkeys(plans)) for s, plans in candidates.items()}
        self._compare(candidates)
        best = {s: self._best_of(plans, promised[s]) for s, plans in candidates.items()}
        if self.effort.climbs and self.splits:
            for i, speedup in enumerate(SPEEDUPS):
                share = (self.effort.budget - self.spent) / (len(SPEEDUPS) - i)
                climbed = self._climb(best[speedup], self.spent + share)
                plans = [self._formula(speedup), best[speedup], climbed]
                best[speedup] = self._best_of(list(dict.fromkeys(plans)), promised[speedup])
        return [self._chosen(speedup, plan) for speedup, plan in best.items()]

    @property
    def teachers(self) -> list[int]:
        """Pictures that plans are made from which follow pictures closely: those of the first half of
        the prompts; all, where there are too few prompts for any to judge."""
        return [n for n in self.numbers if not self.splits or self._teaches(n)]

    @property
    def judges(self) -> list[int]:
        """Pictures that plans are judged on: those of the other prompts."""
        return [n for n in self.numbers if not self.splits or not self._teaches(n)]

    def _teaches(self, number: int) -> bool:
        return number % self.prompts < self.prompts // 2

    def _costs(self, numbers: Sequence[int]) -> GapCosts:
        """What gaps cost by these pictures."""
        tables = [table for number in numbers for table in self.figures.tables[number]]
        return GapCosts.seen(tables, self.sigmas)

    def _count(self, speedup: float) -> int:
        return max_evaluations(speedup, self.steps)

    def _formula(self, speedup: float) -> Plan:
        """What is computed without a policy."""
        return best_spaced(self._count(speedup), self.sigmas)

    # Drawing.

    def _watch(self) -> None:
        """Draw the full pictures, one at least."""
        for number in range(self.effort.pictures):
            if self.numbers and self.spent + 1 > self.effort.budget:
                return
            if number not in self.figures.tables:
                self.figures.tables[number] = self.pictures.full(number)
                self.numbers.append(number)
                self.kept()
            else:
                self.numbers.append(number)

    def _draw(self, plan: Plan, number: int, most: float | None = None) -> bool:
        """Have a picture drawn with a plan, unless it was. False where that would cost more than the
        budget, or `most`, allows."""
        asked = self._asked.setdefault(plan, [])
        if number in asked:
            return True
        limit = self.effort.budget if most is None else min(most, self.effort.budget)
        if self.spent + sum(plan) / self.steps > limit + 1e-9:
            return False
        scores = self.figures.psnr.setdefault(key_of(plan), {})
        known = number in scores
        if not known:
            scores[number] = self.pictures.psnr(plan, number)
        asked.append(number)
        if not known:
            self.kept()
        return True

    def _compare(self, candidates: Mapping[float, Sequence[Plan]]) -> None:
        """Draw all plans, the formula's first of each speed-up, judge by judge for as long as the
        budget lasts; those that are far behind no longer."""
        for number in self.judges:
            for plans in candidates.values():
                kept = [p for p in plans if p == plans[0] or not self._far_behind(p, plans)]
                if not all(self._draw(plan, number) for plan in kept):
                    return

    def _measured(self, plans: Mapping[float, Plan]) -> list[Chosen]:
        """What plans are worth that were taken unseen, and the formula's beside them as far as the
        budget lasts."""
        for speedup in sorted(plans, reverse=True):  # those that cost least first
            for number in self.numbers[:MEASURED]:
                self._draw(plans[speedup], number)
        for speedup in sorted(plans, reverse=True):
            for number in self.numbers[:MEASURED]:
                self._draw(self._formula(speedup), number)
        return [self._chosen(speedup, plan) for speedup, plan in plans.items()]

    # Judging.

    def _pairs(
        self, plan: Plan, other: Plan, numbers: Sequence[int] | None = None
    ) -> tuple[list[float], list[float]]:
        """PSNR of two plans on the pictures that both were drawn on, of these numbers; the judges' for
        None."""
        asked = self.judges if numbers is None else numbers
        drawn, beside = (self._asked.get(p, ()) for p in (plan, other))
        both = [n for n in drawn if n in beside and n in asked]
        first, second = (self.figures.psnr.get(key_of(p), {}) for p in (plan, other))
        return [first[n] for n in both], [second[n] for n in both]

    def _gain(self, plan: Plan, other: Plan, numbers: Sequence[int] | None = None) -> float:
        """How much nearer a plan comes than another, in dB; 0 where they share no picture."""
        own, others = self._pairs(plan, other, numbers)
        return mean(own) - mean(others) if own else 0.0

    def _clearly_better(
        self, plan: Plan, other: Plan, numbers: Sequence[int] | None = None
    ) -> bool:
        return clearly_better(*self._pairs(plan, other, numbers))

    def _far_behind(self, plan: Plan, plans: Sequence[Plan]) -> bool:
        """Whether one of the plans is better by more than pictures differ."""
        return any(
            self._gain(other, plan) > FAR and self._clearly_better(other, plan)
            for other in plans
            if other != plan
        )

    def _best_of(self, plans: Sequence[Plan], promised: Plan) -> Plan:
        """The first, which is the formula's, or `promised`, the plan that was expected to be better
        before it was drawn (`GapCosts.best`), where it is better; or the best of those that are
        clearly better than that."""
        formula, *others = plans
        best = promised if self._gain(promised, formula) > 0 else formula
        better = [plan for plan in others if self._clearly_better(plan, best)]
        return max(better, key=lambda plan: self._gain(plan, best), default=best)

    def _chosen(self, speedup: float, plan: Plan) -> Chosen:
        alone, _ = self._pairs(plan, plan)
        own, default = self._pairs(plan, self._formula(speedup))
        if len(own) < len(alone):  # not comparable
            own, default = alone, []
        return Chosen(
            speedup,
            plan,
            mean(own) if own else None,
            mean(default) if default else None,
            len(own),
        )

    # Climbing.

    def _climb(self, plan: Plan, most: float) -> Plan:
        """The best plan that is found from neighbour to neighbour, on the pictures that teach, until so
        much is spent in all with what it costs to judge it."""
        teachers = self.teachers
        most -= len(self.judges) * sum(plan) / self.steps
        if not all(self._draw(plan, number, most) for number in teachers):
            return plan
        generator = random.Random(0)
        start = plan
        improved = True
        while improved:
            improved = False
            for neighbour in neighbours(plan, generator):
                better = self._beats(neighbour, plan, most)
                if better is None:
                    return self._judged(plan, start)
                if better:
                    plan, improved = neighbour, True
                    break
        return self._judged(plan, start)

    def _beats(self, neighbour: Plan, plan: Plan, most: float) -> bool | None:
        """Whether a neighbour is clearly better than a plan; it is given up where it is not ahead after
        a few. None where the budget does not last."""
        teachers = self.teachers
        for i, number in enumerate(teachers):
            if i >= AT_LEAST and self._gain(neighbour, plan, teachers) <= 0:
                return False
            if not self._draw(neighbour, number, most):
                return None
        return self._clearly_better(neighbour, plan, teachers)

    def _judged(self, plan: Plan, start: Plan) -> Plan:
        """A plan that was climbed to, drawn on the judges; the one that it began at where the budget
        does not last."""
        return plan if all(self._draw(plan, number) for number in self.judges) else start
