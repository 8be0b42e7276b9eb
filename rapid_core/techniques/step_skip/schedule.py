"""Schedules: which steps of a run are computed is settled before it; the others are predicted by
quadrature (see `quadrature.multistep` and `quadrature.gram`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from ...quadrature.gap_costs import GapCosts
from ...quadrature.gram import Gram
from ...quadrature.multistep import MAX_TERMS
from ...quadrature.spacing import falling, spacing_of
from ...types import Aim, Mode, Policy, Requirements, Window
from .closeness_actor import ClosenessActor
from .schedule_actor import ScheduleActor

# Closenesses to the full picture in dB, by the names that people choose from.
CLOSENESS = {"faithful": 45.0, "balanced": 40.0, "draft": 34.0}
SAME_SIGMAS = 1e-3  # difference of sigmas that are the same, as a share of the highest
# How much more a schedule may cost beside the best steps, by the formula, where it is moved to than where it
# was searched: moved schedules that were tried lie below 1 dB or above 4 (docs/lab.md).
CARRIES_OVER = 10**0.1


@dataclass(frozen=True)
class Schedule:
    """Which steps of a run are computed, as a search found it for N steps."""

    computed: tuple[bool, ...]
    """(N,) whether each step's evaluation is computed."""
    sigmas: tuple[float, ...]
    """(N + 1,) sigmas that it was searched on, falling."""
    gram: Gram | None = field(default=None, compare=False, repr=False)
    """What prediction weights are fitted to; None for Adams-Bashforth's."""

    def fits(self, sigmas: Sequence[float]) -> bool:
        """Whether a run's sigmas are those of the search, within a thousandth of the highest."""
        if len(sigmas) != len(self.sigmas):
            return False
        pairs = zip(sigmas, self.sigmas, strict=True)
        return max(abs(a - b) for a, b in pairs) <= SAME_SIGMAS * self.sigmas[0]

    def computed_on(self, most: int, sigmas: Sequence[float]) -> tuple[bool, ...] | None:
        """Which steps of a run on `sigmas` are computed, at most so many: the schedule's own, or those
        it is moved to. None where it does not carry over: where sigmas lie elsewhere, moved steps
        leave long gaps, which cost up to 30 dB."""
        fits = self.fits(sigmas)
        steps = len(sigmas) - 1
        share = math.ceil(sum(self.computed) * steps / len(self.computed) - 1e-9)
        # The share of a search's steps that was computed may be rounded down.
        count = most if not fits and most == share + 1 else min(most, share)
        if fits and count == sum(self.computed):
            return self.computed
        if not falling(sigmas):
            return None
        chosen = self.moved_to(count, sigmas)
        if not chosen:
            return None
        # The last of a run with smaller steps may lie nearer to the picture than any of the schedule's.
        ends = [chosen] if chosen[-1] == steps - 1 else [chosen, [*chosen[:-1], steps - 1]]
        plans = [tuple(i in picked for i in range(steps)) for picked in ends]
        excess, moved = min((_excess(plan, sigmas), plan) for plan in plans)
        return moved if excess <= CARRIES_OVER * _excess(self.computed, self.sigmas) else None

    def moved_to(self, count: int, sigmas: Sequence[float]) -> list[int]:
        """`count` steps of a run at the sigmas where this schedule computes; none where hardly any of
        these lie within the run. Placed by step instead, a schedule loses up to 4 dB to even spacing
        on another scheduler."""
        steps = len(sigmas) - 1
        places = np.arange(float(steps)) if self.fits(sigmas) else self._places(sigmas[:-1])
        own = np.flatnonzero(self.computed)
        numbers = np.arange(float(len(own)))
        first, last = np.interp((places[0], places[-1]), own, numbers)
        if count < 2 or last - first < 1:
            return []
        # Two in a row only where the schedule has such pairs, too, or there is no room without.
        in_a_row = any(a and b for a, b in itertools.pairwise(self.computed))
        gap = 1 if in_a_row or 2 * count > steps + 1 else 2
        chosen: list[int] = []
        for i in range(count):  # between two of the schedule's where they are not as many
            target = np.interp(first + i * (last - first) / (count - 1), numbers, own)
            lowest = chosen[-1] + gap if chosen else 0
            free = range(lowest, steps - gap * (count - 1 - i))
            chosen.append(min(free, key=lambda step: abs(places[step] - target)))
        return chosen

    def _places(self, sigmas: Sequence[float]) -> np.ndarray:
        """Where sigmas lie among those of the search, in its steps."""
        known = -np.array(self.sigmas)
        return np.interp(-np.array(sigmas), known, np.arange(float(len(known))))


def _excess(computed: Sequence[bool], sigmas: Sequence[float]) -> float:
    """What steps cost by the formula over what the best ones would, as many on the same sigmas."""
    spacing = spacing_of(tuple(sigmas))
    own, best = spacing.total(computed), spacing.total(spacing.best(sum(computed)))
    if best > 0:
        return own / best
    return math.inf if own > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class SchedulePolicy(Policy):
    """The steps where skipping the others costs least, or a searched schedule, within a budget."""

    technique: ClassVar[str] = "schedule"

    speedup: float = 1.0
    """Evaluations of the full run over those that are computed, at least 1; a ceiling on what is
    spent. Without meaning where a closeness is asked for."""
    closeness: float | None = None
    """PSNR in dB to the full picture that is asked for: each image computes as many steps as it
    needs. None for a speed-up."""
    aim: Aim = Aim.FULL_PICTURE
    """Which picture it is to come near, where no weights are fitted."""
    start_percent: float = 0.0
    """Share of the schedule from which on evaluations may be skipped."""
    end_percent: float = 1.0
    """Share of the schedule after which all evaluations are computed."""
    safe: bool = True
    """Whether nothing is skipped where that is known to go wrong, or was seen to."""
    prediction_order: int = 1
    """Order of the polynomial that predicts, where no weights are fitted."""
    schedule: Schedule | None = None
    """A searched schedule; None for the spacing of `quadrature.spacing`."""
    source: str = ""
    """File that the schedule is from."""
    found: bool = False
    """Whether nobody named the file: it was found by the model's weights."""
    others: tuple[tuple[Schedule, str], ...] = field(default=(), repr=False)
    """Schedules of other files that were made for the model, each with its file, for runs on whose sigmas
    they were searched."""
    learn: bool = False
    """Whether it goes by what pictures of the model have shown (`comfy.learning`), as far as any
    have."""
    costs: GapCosts | None = field(default=None, repr=False)
    """What gaps cost on this model; None for the formula of `quadrature.spacing`."""
    watch: bool = False
    """Whether everything is computed, so that the run shows what gaps cost."""

    @property
    def percents(self) -> tuple[float, float]:
        """Shares of the schedule between which evaluations may be skipped."""
        return self.start_percent, self.end_percent

    @property
    def requirements(self) -> Requirements:
        """Whole evaluations are skipped, by weights of its own."""
        return Requirements(
            modes=frozenset((Mode.SKIP, Mode.RUN)),
            prediction_order=self.prediction_order,
            history=MAX_TERMS,
            error_estimates=False,
            # Fitted weights make good in later predictions what earlier ones did wrong.
            aim=None if self.fitted or self.watch else self.aim,
            decides_schedule=True,
            watch=self.watch,
            safety=self.safe,
        )

    def schedule_on(self, sigmas: Sequence[float]) -> tuple[Schedule | None, str]:
        """The schedule for a run on `sigmas` and its file: the first that was searched on these, else the
        policy's own."""
        if self.schedule is None:
            return None, self.source
        own = (self.schedule, self.source)
        return next((pair for pair in (own, *self.others) if pair[0].fits(sigmas)), own)

    @property
    def fitted(self) -> bool:
        """Whether predictions go by weights that are fitted to what the file knows."""
        return self.schedule is not None and self.schedule.gram is not None

    @override
    def start(self, window: Window, image: int = 0) -> ScheduleActor:
        """An actor for one image."""
        if self.closeness is not None and not self.watch:
            return ClosenessActor(self, window)
        return ScheduleActor(self, window)

    def to_record(self) -> dict[str, Any]:
        """Its settings, the schedule by the name of its file."""
        return {
            "technique": self.technique,
            "speedup": self.speedup,
            "closeness": self.closeness,
            "aim": self.aim.value,
            "start_percent": self.start_percent,
            "end_percent": self.end_percent,
            "safe": self.safe,
            "prediction_order": self.prediction_order,
            "source": self.source,
            "learn": self.learn,
        }
