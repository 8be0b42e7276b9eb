"""Schedules: which steps of a run are computed is settled before it; the others are predicted by
quadrature (see `quadrature.multistep` and `quadrature.gram`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from typing_extensions import override

from ...quadrature.gram import TERMS, Gram, GramFit
from ...quadrature.multistep import MAX_TERMS, prediction_weights
from ...quadrature.spacing import FEW, evenly_spaced, max_evaluations
from ...reasons import ReasonCode
from ...types import (
    FULL,
    Action,
    Actor,
    Mode,
    Observation,
    Policy,
    PredictionWeights,
    Reason,
    Requirements,
    Window,
)

# Measured relative L1 error of a prediction above which a run computes until it falls.
SAFE_ERROR = 0.5
SAME_SIGMAS = 1e-3  # difference of sigmas that are the same, as a share of the highest


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

    def computed_on(self, most: int, sigmas: Sequence[float]) -> tuple[bool, ...]:
        """Which steps of a run on `sigmas` are computed: the same share of them, at the sigmas
        where this schedule computes; thinned out to `most`. Placed by step instead, a schedule
        loses up to 4 dB to even spacing on another scheduler."""
        fits = self.fits(sigmas)
        steps = len(sigmas) - 1
        count = min(most, max(1, round(sum(self.computed) * steps / len(self.computed))))
        if fits and count == sum(self.computed):
            return self.computed
        places = np.arange(float(steps)) if fits else self._places(sigmas[:-1])
        own = np.flatnonzero(self.computed)
        numbers = np.arange(float(len(own)))
        first, last = np.interp((places[0], places[-1]), own, numbers)
        if count < 2 or last - first < 1:  # hardly any of the schedule's lie within the run
            return evenly_spaced(count, steps, few=True)
        # Two in a row only where the schedule has such pairs, too, or there is no room without.
        in_a_row = any(a and b for a, b in itertools.pairwise(self.computed))
        gap = 1 if in_a_row or 2 * count > steps + 1 else 2
        chosen: list[int] = []
        for i in range(count):  # between two of the schedule's where they are not as many
            target = np.interp(first + i * (last - first) / (count - 1), numbers, own)
            lowest = chosen[-1] + gap if chosen else 0
            free = range(lowest, steps - gap * (count - 1 - i))
            chosen.append(min(free, key=lambda step: abs(places[step] - target)))
        return tuple(i in chosen for i in range(steps))

    def _places(self, sigmas: Sequence[float]) -> np.ndarray:
        """Where sigmas lie among those of the search, in its steps."""
        known = -np.array(self.sigmas)
        return np.interp(-np.array(sigmas), known, np.arange(float(len(known))))


@dataclass(frozen=True, kw_only=True)
class SchedulePolicy(Policy):
    """Even spacing, or a searched schedule, within a budget."""

    technique: ClassVar[str] = "schedule"

    speedup: float
    """Evaluations of the full run over those that are computed, at least 1; a ceiling on what is
    spent."""
    prediction_order: int = 1
    """Order of the polynomial that predicts, where no weights are fitted."""
    schedule: Schedule | None = None
    """A searched schedule; None for even spacing."""
    safe: bool = True
    """Whether nothing is skipped where that is known to go wrong, or was seen to."""
    source: str = ""
    """File that the schedule is from."""

    @property
    def requirements(self) -> Requirements:
        """Whole evaluations are skipped, by weights of its own."""
        return Requirements(
            modes=frozenset((Mode.SKIP, Mode.RUN)),
            prediction_order=self.prediction_order,
            history=MAX_TERMS,
            decides_schedule=True,
            safety=self.safe,
        )

    @override
    def start(self, window: Window, image: int = 0) -> ScheduleActor:
        """An actor for one image. A schedule is about whole runs: the window has no say."""
        return ScheduleActor(self)

    def to_record(self) -> dict[str, Any]:
        """Its settings, the schedule by the name of its file."""
        return {
            "technique": self.technique,
            "speedup": self.speedup,
            "prediction_order": self.prediction_order,
            "safe": self.safe,
            "source": self.source,
        }


class ScheduleActor(Actor):
    """The steps of one image's run, settled at its first evaluation."""

    def __init__(self, policy: SchedulePolicy):
        self.policy = policy
        self.computed: list[bool] = []
        """(N,) whether each step is computed; empty before the first evaluation."""
        self._notes: list[Reason] = []
        self._predictor: GramPredictor | None = None  # where the schedule's weights hold
        self._skipped_step: int | None = None  # of the evaluation in progress, if it was to be so
        self._unplanned_step: int | None = None  # computed although it was to be skipped
        self._paid = 0  # evaluations that are computed less instead

    @property
    def notes(self) -> Sequence[Reason]:
        """Why the run is not as the schedule has it."""
        return tuple(self._notes)

    def act(self, observation: Observation) -> Action:
        """Full or skip, as the schedule says; the first evaluation is always computed."""
        computed = self.settle(observation)
        step = observation.step
        if self._unplanned_step is not None and self._unplanned_step < step:
            self._pay(step)
        if self._overspent(observation):
            self._pay(step)
        if not computed[step] and self._off(observation):
            computed[step] = True  # beside the budget: nothing is computed less instead
        if computed[step] or not observation.computed:
            self._skipped_step = None
            return FULL
        self._skipped_step = step
        return Action(Mode.SKIP, prediction_weights=self.weights(observation))

    def _off(self, observation: Observation) -> bool:
        """Whether the latest prediction that was measured was too far off, or the model gives no
        numbers; said once."""
        measured = observation.measured_error
        if not self.policy.safe or measured is None or measured <= SAFE_ERROR:
            return False
        said = Reason(ReasonCode.PREDICTIONS_OFF, percent=round(100 * SAFE_ERROR))
        self._notes += [said] if said not in self._notes else []
        return True

    def executed(self, action: Action) -> None:
        """Remember a step that had to be computed although it was to be skipped."""
        if self._predictor is not None:
            self._predictor.executed(action)
        if action.mode is Mode.RUN and self._skipped_step is not None:
            self._unplanned_step = self._skipped_step

    def _overspent(self, observation: Observation) -> bool:
        """Whether more was computed than the steps that have passed have to: a sampler told other
        sigmas than the schedule's, and its step was mistaken. Known where each step was evaluated
        once."""
        step = observation.step
        planned = sum(self.computed[:step]) + self._paid
        return observation.index == step and observation.computed > planned

    def _pay(self, step: int) -> None:
        """Compute one evaluation less from here on, evenly spaced."""
        self._paid += 1
        self._unplanned_step = None
        left = max(0, sum(self.computed[step:]) - 1)
        steps = len(self.computed)
        self.computed[step:] = evenly_spaced(left + 1, steps - step + 1)[1:]

    def settle(self, observation: Observation) -> list[bool]:
        """Which steps are computed, as far as that can be settled before the run; settled once."""
        if not self.computed:
            self.computed = list(self._settled(observation))
        return self.computed

    def _settled(self, observation: Observation) -> tuple[bool, ...]:
        policy = self.policy
        schedule = policy.schedule
        steps = observation.steps
        count = max_evaluations(policy.speedup, steps)
        if steps > 1 and count < 2:
            self._note(ReasonCode.ONE_EVALUATION, steps=steps, speedup=policy.speedup)
        if schedule is None or count < 2:
            return evenly_spaced(count, steps, few=True)
        fits = schedule.fits(observation.sigmas)
        if count <= FEW and not fits:  # where the last one lies decides the picture
            self._note(ReasonCode.SCHEDULE_TOO_SHORT, file=policy.source)
            return evenly_spaced(count, steps, few=True)
        if not (fits and observation.euler):
            self._note(ReasonCode.SCHEDULE_MOVED, file=policy.source)
        elif schedule.gram is not None:
            self._predictor = GramPredictor(schedule.gram, schedule.sigmas)
        return schedule.computed_on(count, observation.sigmas)

    def weights(self, observation: Observation) -> PredictionWeights | None:
        """Prediction weights for a step that is skipped: fitted ones where the schedule's sigmas
        are the run's, and Adams-Bashforth's otherwise."""
        weights = None
        if self._predictor is not None:
            try:
                weights = self._predictor.weights(observation)
            except ArithmeticError:
                self._predictor = None
                self._note(ReasonCode.SCHEDULE_WITHOUT_WEIGHTS, file=self.policy.source)
        if weights is None:
            weights = prediction_weights(observation, self.policy.prediction_order)
        return weights

    def _note(self, code: ReasonCode, **params: Any) -> None:
        self._notes.append(Reason(code, **params))


class GramPredictor:
    """Weights fitted to what one image's run computed so far."""

    def __init__(self, gram: Gram, sigmas: Sequence[float]):
        self.fit = GramFit(gram, sigmas)
        self.skipped: dict[int, tuple[list[int], tuple[float, ...]]] = {}
        """By step that was skipped: steps whose derivatives stood for it, and their weights."""
        self._asked: int | None = None  # step of the evaluation in progress, if it has weights

    def weights(self, observation: Observation) -> PredictionWeights | None:
        """Weights of the latest computed derivatives for the present step; None where one of them
        is not at the beginning of a step. Raises ArithmeticError where they cannot be computed or
        are not finite."""
        step = observation.step
        sigmas = observation.sigmas
        while self.fit.step < step:
            used, weights = self.skipped.get(self.fit.step, ([], ()))
            self.fit.advance(used, weights)
        latest = observation.history[-TERMS:]
        past = sigmas[:step]
        if not latest or any(sigma not in past for sigma in latest) or self.fit.step > step:
            return None
        used = [sigmas.index(sigma) for sigma in latest]
        try:
            weights = self.fit.weights(used)
        except torch.linalg.LinAlgError as error:  # pyright: ignore
            raise ArithmeticError(str(error)) from None
        if not all(map(math.isfinite, weights)):
            raise ArithmeticError("weights are not finite")
        self.skipped[step] = used, weights
        self._asked = step
        return tuple(zip(latest, weights, strict=True))

    def executed(self, action: Action) -> None:
        """Forget the weights of a step that was computed after all."""
        if action.mode is Mode.RUN and self._asked is not None:
            self.skipped.pop(self._asked)
        self._asked = None
