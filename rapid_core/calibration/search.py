"""Which steps to compute: hill climbing from even spacing, every candidate sampled for real.

Costs of candidates by full runs alone do not tell the better schedule: once an error is in the
latent, later derivatives change with it. So each candidate is sampled on the calibration prompts,
with weights fitted anew, and judged by the latents that come out."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from statistics import mean

from torch import Tensor

from ..quadrature.gram import Gram
from ..quadrature.spacing import evenly_spaced, max_evaluations
from ..techniques.step_skip.schedule import Schedule

MIN_GAIN = 0.02  # dB; smaller differences are not worth a move

Score = Callable[[Schedule], list[float]]
"""PSNR in dB of each calibration prompt's latent under a schedule."""
Report = Callable[[int, float], None]
"""Is told how many schedules were tried, and the best mean score so far."""


def latent_psnr(latents: Tensor, reference: Tensor) -> float:
    """PSNR in dB of latents, their peak being the range of `reference`; within -100 .. 100, -100
    where they are not finite."""
    error = (latents.float() - reference.float()).square().mean()
    peak = reference.float().max() - reference.float().min()
    psnr = float(20 * peak.log10() - 10 * error.clamp_min(1e-20).log10())
    return max(-100.0, min(100.0, psnr)) if math.isfinite(psnr) else -100.0


def key_of(schedule: Schedule) -> str:
    """A schedule as text: its marks, and the kind of its weights."""
    marks = "".join("#" if on else "." for on in schedule.computed)
    return marks + (" adams-bashforth" if schedule.gram is None else "")


def best_marks(scores: dict[str, list[float]]) -> tuple[bool, ...]:
    """Which steps the best schedule with fitted weights computes. scores: by `key_of`."""
    fitted = {key: mean(values) for key, values in scores.items() if set(key) <= {"#", "."}}
    best = max(fitted, key=fitted.__getitem__)
    return tuple(mark == "#" for mark in best)


def default_schedule(sigmas: Sequence[float], speedup: float) -> Schedule:
    """What RAPID Accelerate does without a policy file."""
    steps = len(sigmas) - 1
    count = max_evaluations(speedup, steps)
    return Schedule(evenly_spaced(count, steps, few=True), tuple(sigmas))


def search(
    score: Score,
    sigmas: Sequence[float],
    gram: Gram,
    speedup: float,
    max_tried: int,
    seed: int = 0,
    start: Schedule | None = None,
    report: Report | None = None,
) -> tuple[Schedule, list[float]]:
    """The best schedule that is found with `max_tried` candidates, and its scores. sigmas (N + 1,):
    of the runs; gram: what weights are fitted to; start: where the search begins, even spacing for
    None."""
    generator = random.Random(seed)
    if start is None:
        steps = len(sigmas) - 1
        marks = evenly_spaced(max_evaluations(speedup, steps), steps)
        start = Schedule(marks, tuple(sigmas), gram)
    best = start
    best_scores = score(best)
    tried = 1
    if report is not None:
        report(tried, mean(best_scores))
    improved = True
    while improved and tried < max_tried:
        improved = False
        for marks in neighbours(best.computed, generator):
            if improved or tried >= max_tried:
                break
            candidate = Schedule(marks, tuple(sigmas), gram)
            scores = score(candidate)
            tried += 1
            if mean(scores) > mean(best_scores) + MIN_GAIN:
                best = candidate
                best_scores = scores
                improved = True
            if report is not None:
                report(tried, mean(best_scores))
    return best, best_scores


def neighbours(computed: Sequence[bool], generator: random.Random) -> list[tuple[bool, ...]]:
    """Schedules with one computed step, never the first, one or two steps elsewhere, in random
    order."""
    steps = len(computed)
    out = []
    for i in range(1, steps):
        if not computed[i]:
            continue
        for j in (i - 2, i - 1, i + 1, i + 2):
            if 0 < j < steps and not computed[j]:
                marks = list(computed)
                marks[i] = False
                marks[j] = True
                out.append(tuple(marks))
    generator.shuffle(out)
    return out


def fill_up(computed: Sequence[bool], count: int) -> tuple[bool, ...]:
    """`count` computed steps where there are fewer: one more in the middle of the longest gap at a
    time."""
    marks = list(computed)
    while sum(marks) < min(count, len(marks)):
        edges = [*(i for i, on in enumerate(marks) if on), len(marks)]
        gaps = [(after - before, before) for before, after in itertools.pairwise(edges)]
        length, begin = max(gaps, key=lambda gap: (gap[0], -gap[1]))
        marks[begin + length // 2] = True
    return tuple(marks)
