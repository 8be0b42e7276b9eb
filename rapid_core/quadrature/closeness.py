"""How close a run with skipped steps comes to its full picture, told by its gap errors.

Every gap, once its far end is computed, shows how far it had moved the latent wrongly (mean square,
relative to that of the denoised latent; `engine.corrector`). The sum of these goes with the distance
of the picture from the full one: in decibels nearly a line, which was fitted to pictures of both
demo models (docs/lab.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable

# closeness = intercept - SLOPE * 10 log10(sum of gap errors), in dB of PSNR. The errors that were found
# are mended where the sampler is Euler, and are made where it is not.
SLOPE = 0.84
CORRECTED = 20.5
MADE = 16.5
HIGHEST = 80.0  # dB that are told at most
# More dB than asked for that mode quality plans with, so that of twenty pictures nineteen are within 2
# dB of what was asked (the fit's residual is 6 to 7 dB).
MARGIN = 13.0


def closeness(gap_errors: Iterable[float], corrected: bool) -> float | None:
    """Predicted PSNR in dB to the full picture; None where no gap has an error. corrected: whether
    what was found wrong was given to the sampler."""
    total = sum(gap_errors)
    if not total > 0 or not math.isfinite(total):
        return None
    intercept = CORRECTED if corrected else MADE
    return min(HIGHEST, intercept - SLOPE * 10 * math.log10(total))


def error_for(decibels: float, corrected: bool) -> float:
    """The sum of gap errors at which `closeness` is so many dB."""
    intercept = CORRECTED if corrected else MADE
    return 10 ** ((intercept - decibels) / (10 * SLOPE))
