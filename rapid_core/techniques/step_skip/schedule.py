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

from ...quadrature.closeness import MARGIN, error_for
from ...quadrature.gap_costs import GapCosts
from ...quadrature.gram import TERMS, Gram, GramFit
from ...quadrature.multistep import MAX_TERMS, prediction_weights
from ...quadrature.spacing import (
    FEW,
    Spacing,
    best_spaced,
    max_evaluations,
    spacing_of,
    steps_of_whole,
)
from ...reasons import ReasonCode
from ...types import (
    FULL,
    Action,
    Actor,
    Aim,
    Mode,
    Observation,
    Policy,
    PredictionWeights,
    Reason,
    Requirements,
    Window,
)

# Closenesses to the full picture in dB, by the names that people choose from.
CLOSENESS = {"faithful": 45.0, "balanced": 40.0, "draft": 34.0}
# What is known of a gap's error before a run has measured any (docs/lab.md): as that of so many gaps,
# the error of one whose cost is 1.
PRIOR_GAPS = 2
ERROR_OF_COST = 1.5e-6
# Above these a run computes until a prediction was measured to be good again: the error of a gap at
# which pictures are at 28 dB of their full ones, and a measured relative L1 error.
SAFE_GAP = error_for(28.0, corrected=False)
SAFE_ERROR = 1.0
TRUSTED_ERROR = 0.5
# Of runs with steps as long as those of so many a quarter is skipped at most (docs/lab.md).
SHORT_RUN = 10

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
            return best_spaced(count, sigmas)
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
            aim=None if self._fitted or self.watch else self.aim,
            decides_schedule=True,
            watch=self.watch,
            safety=self.safe,
        )

    @property
    def _fitted(self) -> bool:
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


class ScheduleActor(Actor):
    """The steps of one image's run, settled at its first evaluation."""

    def __init__(self, policy: SchedulePolicy, window: Window):
        self.policy = policy
        self.window = window
        self.computed: list[bool] = []
        """(N,) whether each step is computed; empty before the first evaluation."""
        self._notes: list[Reason] = []
        self._predictor: GramPredictor | None = None  # where the schedule's weights hold
        self._skipped_step: int | None = None  # of the evaluation in progress, if it was to be so
        self._unplanned_step: int | None = None  # computed although it was to be skipped
        self._paid = 0  # evaluations that are computed less instead
        self._distrusts = False  # after a prediction that was far off
        self._seen: float | None = None  # the latest gap's error
        self._skipped = False  # whether anything was

    @property
    def notes(self) -> Sequence[Reason]:
        """Why the run is not as the schedule has it."""
        return tuple(self._notes)

    def act(self, observation: Observation) -> Action:
        """Full or skip, as the schedule says; the first evaluation is always computed."""
        computed = self.settle(observation)
        step = observation.step
        if self._unplanned_step is not None and self._unplanned_step < step:
            self._pay(step, observation.sigmas)
        if self._overspent(observation):
            self._pay(step, observation.sigmas)
        if self._off(observation) and not computed[step]:
            computed[step] = True  # beside the budget: nothing is computed less instead
        if computed[step] or not observation.computed:
            self._skipped_step = None
            return FULL
        self._skipped_step = step
        return Action(Mode.SKIP, prediction_weights=self.weights(observation))

    def _off(self, observation: Observation) -> bool:
        """Whether the latest gap or the latest measured prediction was too far off, or the model
        gives no numbers, and no prediction was good since; said once."""
        if not self.policy.safe:
            return False
        gap, measured = observation.gap_error, observation.measured_error
        bad = gap is not None and gap != self._seen and not gap <= SAFE_GAP
        self._seen = gap
        if measured is not None:
            # Of noise that a sampler adds a derivative may differ much and a gap little.
            counts = self._skipped and gap is None
            bad = bad or not math.isfinite(measured) or (counts and measured > SAFE_ERROR)
        if bad:
            self._distrusts = True
            said = Reason(ReasonCode.PREDICTIONS_OFF)
            self._notes += [said] if said not in self._notes else []
        elif measured is not None and measured <= TRUSTED_ERROR and not observation.since_computed:
            self._distrusts = False
        return self._distrusts

    def executed(self, action: Action) -> None:
        """Remember a step that had to be computed although it was to be skipped."""
        self._skipped = self._skipped or action.mode is Mode.SKIP
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

    def _pay(self, step: int, sigmas: Sequence[float]) -> None:
        """Compute one evaluation less from here on."""
        self._paid += 1
        self._unplanned_step = None
        left = max(0, sum(self.computed[step:]) - 1)
        self.computed[step:] = [*best_spaced(left + 1, sigmas[step - 1 :])[1:]]

    def settle(self, observation: Observation) -> list[bool]:
        """Which steps are computed, as far as that can be settled before the run; settled once."""
        if not self.computed:
            self.computed = list(self._settled(observation))
        return self.computed

    def _settled(self, observation: Observation) -> tuple[bool, ...]:
        policy = self.policy
        schedule = policy.schedule
        steps = observation.steps
        if policy.watch:
            return (True,) * steps
        count = max_evaluations(policy.speedup, steps)
        short = policy.safe and steps_of_whole(observation.sigmas) <= SHORT_RUN
        if short and schedule is not None and not schedule.fits(observation.sigmas):
            self._note(ReasonCode.SCHEDULE_TOO_SHORT, file=policy.source)
            schedule = None  # moved here it would skip what it skips of a longer run
        if short and count < steps - steps // 4:
            count = steps - steps // 4
            self._note(ReasonCode.SHORT_RUN, steps=steps, skipped=steps // 4)
        if steps > 1 and count < 2:
            self._note(ReasonCode.ONE_EVALUATION, steps=steps, speedup=policy.speedup)
        if schedule is None or count < 2:
            return self._spaced(count, observation.sigmas)
        fits = schedule.fits(observation.sigmas)
        if count <= FEW and not fits:  # where the last one lies decides the picture
            self._note(ReasonCode.SCHEDULE_TOO_SHORT, file=policy.source)
            return best_spaced(count, observation.sigmas)
        if not fits or (schedule.gram is not None and not observation.euler):
            self._note(ReasonCode.SCHEDULE_MOVED, file=policy.source)
        elif schedule.gram is not None:
            self._predictor = GramPredictor(schedule.gram, schedule.sigmas)
        return schedule.computed_on(count, observation.sigmas)

    def _spaced(self, count: int, sigmas: Sequence[float]) -> tuple[bool, ...]:
        """The best `count` steps; those outside of the window are computed beside."""
        inside = [i for i, sigma in enumerate(sigmas[:-1]) if sigma in self.window]
        steps = len(sigmas) - 1
        if len(inside) == steps or not inside:
            return self._best(count, sigmas) if inside else (True,) * steps
        first, last = inside[0], inside[-1]
        few = max(2, count - steps + len(inside))
        within = self._best(few, sigmas[first : last + 2])
        return (*(True,) * first, *within, *(True,) * (steps - 1 - last))

    def _best(self, count: int, sigmas: Sequence[float]) -> tuple[bool, ...]:
        """The best `count` steps by what is known of the model."""
        costs = self.policy.costs
        return best_spaced(count, sigmas) if costs is None else costs.best(count, sigmas)

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


class ClosenessActor(ScheduleActor):
    """Step-size control: the fewest steps whose gaps stay within the error that a closeness allows.

    What a gap of a certain cost (`quadrature.spacing`) does to this image is measured at every gap
    that has ended, and the rest of the run is planned anew with it."""

    def __init__(self, policy: SchedulePolicy, window: Window):
        super().__init__(policy, window)
        self._logs = [math.log(ERROR_OF_COST)] * PRIOR_GAPS  # of the error by cost, gap by gap
        self._step = 0  # of the evaluation in progress
        self._last: int | None = None  # latest step that was computed
        self._gap: tuple[int, int] | None = None  # the latest gap, its error not yet known

    def act(self, observation: Observation) -> Action:
        """Plan the rest anew after each computed evaluation, and follow that."""
        if not self.computed:
            self.computed = [True] * observation.steps
        last = self._last
        self._step = observation.step
        if last is not None and last < self._step and not observation.since_computed:
            self._plan_rest(last, observation)
        if self._off(observation):
            return FULL
        if self.computed[observation.step] or not observation.computed:
            return FULL
        return Action(Mode.SKIP, prediction_weights=self.weights(observation))

    def executed(self, action: Action) -> None:
        """Remember where a gap ended. Nothing is paid back: what others had computed makes the
        picture closer."""
        if action.mode is not Mode.RUN:
            self._skipped = True
            return
        if self._last is not None and self._step > self._last + 1:
            self._gap = self._last, self._step
        self._last = self._step

    def _plan_rest(self, step: int, observation: Observation) -> None:
        """Go on after a computed step as the plan would that has the error asked for at what gaps do
        to this image, as far as it is known now. What was spent so far has no say: an error that is
        left over would be spent where it buys least."""
        spacing = spacing_of(observation.sigmas)
        self._learn(observation, spacing)
        steps = observation.steps
        scale = math.exp(sum(self._logs) / len(self._logs))
        asked = (self.policy.closeness or 0.0) + MARGIN
        allowed = error_for(asked, corrected=observation.euler)
        count = next(
            (n for n in range(2, steps) if scale * spacing.rest(0, n - 1) <= allowed), steps
        )
        # What the last of so many evaluations gains is what each is worth.
        price = spacing.rest(0, count - 2) - spacing.rest(0, count - 1) if count < steps else 0.0
        rest = range(1, steps - step)
        left = min(rest, key=lambda n: spacing.rest(step, n) + price * n, default=0)
        left = left if price else steps - 1 - step
        inside = [sigma in self.window for sigma in observation.sigmas[step + 1 : -1]]
        self.computed[step + 1 :] = [
            on or not within for on, within in zip(spacing.after(step, left), inside, strict=True)
        ]

    def _learn(self, observation: Observation, spacing: Spacing) -> None:
        """Take in the error of the gap that ended last."""
        error = observation.gap_error
        if self._gap is None or error is None:
            return
        cost = spacing.cost(*self._gap)
        self._gap = None
        if not math.isfinite(error):
            self._logs = [math.inf]
        elif error > 0 and cost > 0:
            self._logs.append(math.log(error / cost))


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
