"""Which steps of one image's run are computed, by a policy that settles it before the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...quadrature.closeness import error_for
from ...quadrature.multistep import prediction_weights
from ...quadrature.spacing import FEW, best_spaced, max_evaluations, steps_of_whole
from ...reasons import ReasonCode
from ...types import FULL, Action, Actor, Mode, Observation, PredictionWeights, Reason, Window
from .fitted_weights import GramPredictor

if TYPE_CHECKING:
    from .schedule import SchedulePolicy

# Above these a run computes until a prediction was measured to be good again: the error of a gap at
# which pictures are at 28 dB of their full ones, and a measured relative L1 error.
SAFE_GAP = error_for(28.0, corrected=False)
SAFE_ERROR = 1.0
TRUSTED_ERROR = 0.5
# Of runs with steps as long as those of so many a quarter is skipped at most (docs/lab.md).
SHORT_RUN = 10
Plan = tuple[bool, ...]
# (number of steps to compute, sigmas (N + 1,), turns among the steps) -> whether each of N steps is.
Choose = Callable[[int, Sequence[float], Sequence[int]], Plan]


class ScheduleActor(Actor):
    """The steps of one image's run, settled at its first evaluation."""

    def __init__(self, policy: SchedulePolicy, window: Window):
        self.policy = policy
        self.window = window
        self.computed: list[bool] = []
        """(N,) whether each step is computed; empty before the first evaluation."""
        self._notes: list[Reason] = []
        self._file = policy.source
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
            self._pay(observation)
        if self._overspent(observation):
            self._pay(observation)
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
        self._seen = self._seen if gap is None else gap
        if measured is not None:
            # Of noise that a sampler adds a derivative may differ much and a gap little.
            counts = self._skipped and self._seen is None
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

    def _pay(self, observation: Observation) -> None:
        """Compute one evaluation less from here on, of those in the window."""
        self._paid += 1
        self._unplanned_step = None
        sigmas = observation.sigmas
        inside = [i for i in range(observation.step, observation.steps) if sigmas[i] in self.window]
        if not inside:
            return
        first, end = inside[0], inside[-1] + 1
        left = max(0, sum(self.computed[first:end]) - 1)
        turns = _turns_within(first - 1, end, observation.turns)
        self.computed[first:end] = best_spaced(left + 1, sigmas[first - 1 : end + 1], turns)[1:]

    def settle(self, observation: Observation) -> list[bool]:
        """Which steps are computed, as far as that can be settled before the run; settled once."""
        if not self.computed:
            self.computed = list(self._settled(observation))
        return self.computed

    def _settled(self, observation: Observation) -> Plan:
        policy = self.policy
        schedule, self._file = policy.schedule_on(observation.sigmas)
        steps = observation.steps
        if policy.watch:
            return (True,) * steps
        count = max_evaluations(policy.speedup, steps)
        short = policy.safe and steps_of_whole(observation.sigmas) <= SHORT_RUN
        if short and schedule is not None and not schedule.fits(observation.sigmas):
            self._note(ReasonCode.SCHEDULE_UNFIT, file=self._file)
            schedule = None  # moved here it would skip what it skips of a longer run
        if short and count < steps - steps // 4:
            count = steps - steps // 4
            self._note(ReasonCode.SHORT_RUN, steps=steps, skipped=steps // 4)
        if steps > 1 and count < 2:
            self._note(ReasonCode.ONE_EVALUATION, steps=steps, speedup=policy.speedup)
        if policy.source and policy.schedule is None:  # a file of what gaps cost
            self._goes_by_file()
        if schedule is None or count < 2:
            return self._in_window(count, observation, self._best)
        fits = schedule.fits(observation.sigmas)
        fitted = schedule.gram if fits and observation.euler else None
        carries_over = fits or count > FEW  # where the last of few lies decides the picture

        def searched(most: int, sigmas: Sequence[float], turns: Sequence[int]) -> Plan:
            nonlocal carries_over
            plan = schedule.computed_on(most, sigmas) if carries_over else None
            carries_over = plan is not None
            return self._best(most, sigmas, turns) if plan is None else plan

        planned = self._in_window(count, observation, searched)
        if not carries_over:
            self._note(ReasonCode.SCHEDULE_UNFIT, file=self._file)
            return planned
        if not all(planned[turn] for turn in observation.turns):
            self._note(ReasonCode.SCHEDULE_TURNS, file=self._file)
            return self._in_window(sum(planned), observation, self._best)
        if fitted is not None:  # weights are fitted to what is computed, whatever was planned
            self._predictor = GramPredictor(fitted, schedule.sigmas)
        self._goes_by_file()
        if not fits or (schedule.gram is not None and fitted is None):
            self._note(ReasonCode.SCHEDULE_MOVED, file=self._file)
        return planned

    def _in_window(self, count: int, observation: Observation, choose: Choose) -> Plan:
        """The `count` steps that are chosen; those outside of the window are computed beside."""
        sigmas, steps = observation.sigmas, observation.steps
        inside = [i for i, sigma in enumerate(sigmas[:-1]) if sigma in self.window]
        if not inside:
            start, end = self.policy.percents
            self._note(ReasonCode.LITTLE_WINDOW, start=start, end=end)
            return (True,) * steps
        if len(inside) == steps:
            return choose(count, sigmas, observation.turns)
        first, last = inside[0], inside[-1]
        few = max(2, count - steps + len(inside))
        turns = _turns_within(first, last + 1, observation.turns)
        within = choose(few, sigmas[first : last + 2], turns)
        return (*(True,) * first, *within, *(True,) * (steps - 1 - last))

    def _best(self, count: int, sigmas: Sequence[float], turns: Sequence[int]) -> Plan:
        """The best `count` steps by what is known of the model. What that is was seen in runs that do not
        change on their way."""
        costs = self.policy.costs
        if costs is None or turns:
            return best_spaced(count, sigmas, turns)
        return costs.best(count, sigmas)

    def weights(self, observation: Observation) -> PredictionWeights | None:
        """Prediction weights for a step that is skipped: fitted ones where the schedule's sigmas
        are the run's, and Adams-Bashforth's otherwise."""
        weights = None
        if self._predictor is not None:
            try:
                weights = self._predictor.weights(observation)
            except ArithmeticError:
                self._predictor = None
                self._note(ReasonCode.SCHEDULE_WITHOUT_WEIGHTS, file=self._file)
        if weights is None:
            weights = prediction_weights(observation, self.policy.prediction_order)
        return weights

    def _goes_by_file(self) -> None:
        found = self.policy.found
        self._note(ReasonCode.POLICY_FOUND if found else ReasonCode.POLICY_GIVEN, file=self._file)

    def _note(self, code: ReasonCode, **params: Any) -> None:
        self._notes.append(Reason(code, **params))


def _turns_within(first: int, end: int, turns: Sequence[int]) -> tuple[int, ...]:
    """Turns from a step on and before another, counted from the first of them."""
    return tuple(turn - first for turn in turns if first <= turn < end)
