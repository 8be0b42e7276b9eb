"""How close a run with skipped steps comes to its full picture, told by its gap errors.

Every gap, once its far end is computed, shows how far it had moved the latent wrongly (mean square,
relative to that of the denoised latent; `engine.corrector`). The sum of these goes with the distance
of the picture from the full one: in decibels nearly a line, which was fitted to pictures of both
demo models (docs/lab.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable

# closeness = intercept - slope * 10 log10(sum of gap errors times squared lengths), in dB of PSNR; the
# length is `spacing.difficulty`'s. Long gaps of short runs leave more than their errors say. Where the
# sampler is Euler what was found wrong is mended, elsewhere it is made.
CORRECTED = (24.8, 0.80)
MADE = (15.0, 0.99)
HIGHEST = 80.0  # dB that are told at most

# The same line of the errors alone, which mode quality plans with, and more dB than asked for that it
# plans with, so that of twenty pictures nineteen are within 2 dB of what was asked (the fit's residual
# is 6 to 7 dB).
PLANNED_SLOPE = 0.84
PLANNED_CORRECTED = 20.5
PLANNED_MADE = 16.5
MARGIN = 13.0


def closeness(gaps: Iterable[tuple[float, float]], corrected: bool) -> float | None:
    """Predicted PSNR in dB to the full picture; None where no gap has an error. gaps: error and
    length of each; corrected: whether what was found wrong was given to the sampler."""
    total = sum(error * length**2 for error, length in gaps)
    if not total > 0 or not math.isfinite(total):
        return None
    intercept, slope = CORRECTED if corrected else MADE
    return min(HIGHEST, intercept - slope * 10 * math.log10(total))


def error_for(decibels: float, corrected: bool) -> float:
    """The sum of gap errors at which a picture is so many dB from its full one, gaps of all lengths
    alike."""
    intercept = PLANNED_CORRECTED if corrected else PLANNED_MADE
    return 10 ** ((intercept - decibels) / (10 * PLANNED_SLOPE))
