"""Which steps to compute: hill climbing, every candidate sampled for real.

The table of gaps (`gaps`) knows nothing of how gaps act on each other: once an error is in the
latent, later derivatives change with it. So each candidate is sampled on the calibration prompts,
and judged by the latents that come out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean

from torch import Tensor

from ..quadrature.spacing import best_spaced, max_evaluations
from ..quadrature.student import surely_above_zero
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


def clearly_better(scores: Sequence[float], others: Sequence[float]) -> bool:
    """Whether scores of the same prompts are higher in the mean with 97.5 % (Student's t: two standard
    errors of their differences where prompts are many, three where they are four)."""
    gains = [a - b for a, b in zip(scores, others, strict=True)]
    return surely_above_zero(gains, 0.975)


def key_of(computed: Sequence[bool]) -> str:
    """Steps as text: `#` for those that are computed."""
    return "".join("#" if on else "." for on in computed)


def default_schedule(sigmas: Sequence[float], speedup: float) -> Schedule:
    """What RAPID Accelerate does without a policy file."""
    count = max_evaluations(speedup, len(sigmas) - 1)
    return Schedule(best_spaced(count, sigmas), tuple(sigmas))


def search(
    score: Score,
    start: Schedule,
    max_tried: int,
    seed: int = 0,
    report: Report | None = None,
) -> tuple[Schedule, list[float]]:
    """The best schedule that is found with `max_tried` candidates, and its scores. start: where the
    search begins, and the first of them."""
    generator = random.Random(seed)
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
            candidate = replace(best, computed=marks)
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
