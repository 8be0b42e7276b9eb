"""Which evaluations to compute: hill climbing from even spacing, every candidate sampled for real.

Costs of candidates by dense runs alone do not tell the better plan: once an error is in the latent,
later derivatives change with it. So each candidate is rolled out on the calibration prompts, with
weights fitted anew, and judged by the latents that come out."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from torch import Tensor
from tqdm import tqdm

from rapid_core.quadrature.gram import Gram
from rapid_core.techniques.step_skip.schedule import (
    Plan,
    SchedulePolicy,
    evenly_spaced,
    max_evaluations,
)
from training.graph import Graph
from training.host import attach
from training.processes import rank, share, together
from training.references import Reference
from training.state import Kept

LEAST_GAIN = 0.02  # dB; smaller differences are not worth a move
Score = Callable[[Plan], list[float]]


def latent_psnr(found: Tensor, wanted: Tensor) -> float:
    """PSNR in dB of latents, their peak being the range of `wanted`; -100 to 100, -100 where they
    are not finite."""
    error = (found.float() - wanted.float()).square().mean()
    peak = wanted.float().max() - wanted.float().min()
    near = float(20 * peak.log10() - 10 * error.clamp_min(1e-20).log10())
    return max(-100.0, min(100.0, near)) if math.isfinite(near) else -100.0


class Rollouts:
    """Scores of plans: PSNR of each reference's latent under a plan, kept in a file. alone: by this
    process, not each by its share."""

    def __init__(
        self,
        graph: Graph,
        references: Sequence[Reference],
        speedup: float,
        path: Path,
        alone: bool = False,
    ):
        self.graph, self.references, self.speedup, self.alone = graph, references, speedup, alone
        self.kept = Kept(path, alone)

    def __call__(self, plan: Plan) -> list[float]:
        return self.kept.get(key_of(plan), lambda: self._scores(plan))

    def _scores(self, plan: Plan) -> list[float]:
        model = attach(self.graph.model, SchedulePolicy(self.speedup, plan=plan, source="search"))
        found = [
            latent_psnr(self.graph.sample(r.prompt, r.seed, model).cpu(), r.latent)
            for r in (self.references if self.alone else share(self.references))
        ]
        return found if self.alone else together(found)

    def best(self) -> tuple[bool, ...]:
        """Marks of the best plan that was ever scored here, by an earlier search too."""
        fitted = {
            key: mean(found) for key, found in self.kept.known.items() if set(key) <= {"#", "."}
        }
        return tuple(on == "#" for on in max(fitted, key=fitted.__getitem__))


def key_of(plan: Plan) -> str:
    """A plan as text: its marks, and the kind of its weights."""
    marks = "".join("#" if on else "." for on in plan.computed)
    return marks + (" adams-bashforth" if plan.gram is None else "")


def search(
    score: Score,
    schedule: Sequence[float],
    gram: Gram,
    speedup: float,
    most: int,
    seed: int = 0,
    start: Plan | None = None,
    report: Callable[[int, float], None] = lambda tried, best: None,
) -> tuple[Plan, list[float]]:
    """The best plan found with `most` candidates, and its scores. score: of `Rollouts`; gram: what
    weights are fitted to; report: is told how many were tried, and the best mean score so far."""
    steps, generator = len(schedule) - 1, random.Random(seed)
    begin = start or Plan(
        evenly_spaced(max_evaluations(speedup, steps), steps), tuple(schedule), gram
    )
    best, scores, tried = begin, score(begin), 1
    report(tried, mean(scores))
    with tqdm(
        total=most, initial=1, desc=f"plans at {speedup:g}x", unit="plan", disable=rank() > 0
    ) as bar:
        improved = True
        while improved and tried < most:
            improved = False
            for marks in neighbours(best.computed, generator):
                if tried >= most:
                    break
                plan = Plan(marks, tuple(schedule), gram)
                found = score(plan)
                tried += 1
                bar.update()
                if mean(found) > mean(scores) + LEAST_GAIN:
                    best, scores, improved = plan, found, True
                    bar.set_postfix(psnr=f"{mean(scores):.2f}")
                report(tried, mean(scores))
                if improved:
                    break
    return best, scores


def neighbours(computed: Sequence[bool], generator: random.Random) -> list[tuple[bool, ...]]:
    """Plans with one computed evaluation, never the first, one or two steps elsewhere, in random
    order."""
    steps, out = len(computed), []
    for i in (i for i in range(1, steps) if computed[i]):
        for j in (i - 2, i - 1, i + 1, i + 2):
            if 0 < j < steps and not computed[j]:
                marks = list(computed)
                marks[i], marks[j] = False, True
                out.append(tuple(marks))
    generator.shuffle(out)
    return out


def filled_up(computed: Sequence[bool], count: int) -> tuple[bool, ...]:
    """A plan of `count` computed evaluations, if it has fewer: one more in the middle of its
    longest gap at a time."""
    marks = list(computed)
    while sum(marks) < min(count, len(marks)):
        edges = [*(i for i, on in enumerate(marks) if on), len(marks)]
        gaps = [(b - a, a) for a, b in itertools.pairwise(edges)]
        length, begin = max(gaps, key=lambda gap: (gap[0], -gap[1]))
        marks[begin + length // 2] = True
    return tuple(marks)


def default_plan(schedule: Sequence[float], speedup: float) -> Plan:
    """What RAPID Accelerate does without a policy."""
    steps = len(schedule) - 1
    return Plan(evenly_spaced(max_evaluations(speedup, steps), steps, few=True), tuple(schedule))


def oracle(
    rollouts: Callable[[Reference], Score],
    references: Sequence[Reference],
    static: Plan,
    gram: Gram,
    speedup: float,
    most: int,
) -> tuple[float, float]:
    """Mean score of the static plan, and of plans searched for each image by itself: what looking
    at the image can give at most, as far as the search goes."""
    own = []
    for reference in share(references):
        score = rollouts(reference)
        before = score(static)[0]
        own.append(
            (before, search(score, static.schedule, gram, speedup, most, start=static)[1][0])
        )
    before, after = zip(*together(own), strict=True)
    return mean(before), mean(after)
