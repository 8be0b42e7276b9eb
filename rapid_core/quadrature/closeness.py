"""How close a run with skipped steps comes to its full picture, told by its gap errors.

Every gap, once its far end is computed, shows how far it had moved the latent wrongly (mean square,
relative to that of the denoised latent; `engine.corrector`). The sum of these goes with the distance
of the picture from the full one: in decibels nearly a line, which was fitted to pictures of both
demo models (docs/lab.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable

# closeness = INTERCEPT - SLOPE * 10 log10(sum of gap errors), in dB of PSNR.
SLOPE = 1.0
INTERCEPT = 10.0
HIGHEST = 80.0  # dB that are told at most


def closeness(gap_errors: Iterable[float]) -> float | None:
    """Predicted PSNR in dB to the full picture; None where no gap has an error."""
    total = sum(gap_errors)
    if not total > 0 or not math.isfinite(total):
        return None
    return min(HIGHEST, INTERCEPT - SLOPE * 10 * math.log10(total))


def error_for(decibels: float) -> float:
    """The sum of gap errors at which `closeness` is so many dB."""
    return 10 ** ((INTERCEPT - decibels) / (10 * SLOPE))
