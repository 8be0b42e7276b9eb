"""Schedules: which evaluations are computed is settled before the run; what is left out is forecast
by quadrature.

A sampling run is a quadrature of the derivative over the noise level. Under Euler an evaluation
that is left out needs the mean derivative over its step, and the polynomial through the computed
ones gives it as a weighted sum of them (Adams-Bashforth on the run's own noise levels). For other
samplers the polynomial's value is the forecast."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ...quadrature.gram import TERMS, Fit, Gram, adams_bashforth
from ...types import FULL, Action, ImageState, Mode, Observation, Sparsity, Window

Weights = tuple[tuple[float, float], ...] | None  # see `Action.weights`
MOST_WEIGHTS = 4  # computed derivatives that a forecast may be the sum of
# The share of its slope by which the polynomial moves on. At every computed evaluation the share is
# measured that would have been best to get there (0 and less where guidance makes the beginning of
# a run rough, near 1 at its end); three fifths of it and two fifths are best for what comes next.
# Before there is such a measurement the latest derivative is held, as in a step of Euler's, if the
# first two differ by much (SD3-like .7 to 2.5, FLUX-like .04 to .13).
KEPT, FOLLOWED = 0.4, 0.6
USUAL, ROUGH = 0.75, 0.3
FEW = 3  # evaluations of a run, too few to have one at its very end


def evenly_spaced(count: int, steps: int, few: bool = False) -> tuple[bool, ...]:
    """`count` of `steps` evaluations, evenly spaced, the first and the last among them; few: of a
    whole run, in which the last one comes earlier where there are no more than `FEW`."""
    count = min(max(count, 1), steps)
    back = 0.5 if few and count <= FEW and 2 * count < steps else 1.0
    chosen = (
        {round(i * (steps - back) / (count - back)) for i in range(count)} if count > 1 else {0}
    )
    return tuple(i in chosen for i in range(steps))


def max_evaluations(speedup: float, steps: int) -> int:
    """Evaluations that may be computed of `steps` within 1 / speedup of their cost; the first
    always is."""
    return max(1, math.floor(steps / speedup + 1e-9))


def slope_of(image: ImageState) -> float:
    """Share of the polynomial's slope by which a forecast moves on, 0 to 1."""
    if image.slope is not None:
        return min(1.0, max(0.0, KEPT + FOLLOWED * image.slope))
    return 0.0 if image.moved is not None and image.moved > ROUGH else USUAL


def multistep(image: ImageState, observation: Observation, order: int) -> Weights:
    """Weights of the latest computed derivatives for what an evaluation is left out for: their
    polynomial's mean over the step under Euler, its value otherwise, as far as its slope was found
    to hold. None where no noise levels are known."""
    slope, used = slope_of(image), image.levels[-(order + 1) :]
    if not used:
        return None
    stop = observation.schedule[observation.step + 1] if observation.euler else None
    older = [slope * w for w in adams_bashforth(used, observation.sigma, stop)[:-1]]
    return tuple(zip(used, [*older, 1.0 - sum(older)], strict=True))


@dataclass(frozen=True)
class Plan:
    """A searched plan. computed: whether each step's evaluation is; schedule: noise levels it was
    searched on; gram: what the weights of forecasts are fitted to (None: Adams-Bashforth's)."""

    computed: tuple[bool, ...]
    schedule: tuple[float, ...]
    gram: Gram | None = field(default=None, compare=False, repr=False)

    def fits(self, schedule: Sequence[float]) -> bool:
        """Whether a run's noise levels are the plan's, within a thousandth of the highest."""
        if len(schedule) != len(self.schedule):
            return False
        return (
            max(abs(a - b) for a, b in zip(schedule, self.schedule, strict=True))
            <= 1e-3 * self.schedule[0]
        )

    def on(self, most: int, schedule: Sequence[float]) -> tuple[bool, ...]:
        """The same share of the steps of a run, at the noise levels where the plan's evaluations
        lie; thinned out to `most`. Placed by step instead, a plan loses up to 4 dB to even spacing
        on another scheduler."""
        own, fits = len(self.computed), self.fits(schedule)
        at = [float(i) if fits else self._place(level) for i, level in enumerate(schedule[:-1])]
        count = min(most, max(1, round(sum(self.computed) * len(at) / own)))
        if fits and count == sum(self.computed):
            return self.computed
        marks = [i for i, on in enumerate(self.computed) if on]
        first, last = (bent(place, marks, range(len(marks))) for place in (at[0], at[-1]))
        if count < 2 or last - first < 1:  # hardly any of the plan's lie within the run
            return evenly_spaced(count, len(at), few=True)
        pairs = (
            any(a and b for a, b in itertools.pairwise(self.computed)) or 2 * count > len(at) + 1
        )
        gap, chosen = 1 if pairs else 2, list[int]()
        for i in range(count):  # between two of the plan's where they are not as many
            wanted = bent(first + i * (last - first) / (count - 1), range(len(marks)), marks)
            there = range(chosen[-1] + gap if chosen else 0, len(at) - gap * (count - 1 - i))
            chosen.append(min(there, key=lambda step: abs(at[step] - wanted)))
        return tuple(i in chosen for i in range(len(at)))

    def _place(self, level: float) -> float:
        """Where a noise level lies among the plan's, in its steps."""
        return bent(-level, [-known for known in self.schedule], range(len(self.schedule)))


def bent(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The line through points of rising xs, at x; beyond the ends it is level."""
    after = bisect.bisect_right(xs, x)
    if after in (0, len(xs)):
        return float(ys[0 if after == 0 else -1])
    part = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return ys[after - 1] + part * (ys[after] - ys[after - 1])


@dataclass(frozen=True)
class SchedulePolicy:
    """Even spacing, or a plan, within a budget. speedup: dense over spent evaluations, at least 1;
    a ceiling on what is spent.

    forecast_order: of the polynomial that stands for what is left out."""

    speedup: float
    start_percent: float = 0.0
    end_percent: float = 1.0
    forecast_order: int = 1
    technique: str = "schedule"
    regional: bool = False
    history: int = MOST_WEIGHTS
    sparsity: Sparsity | None = None
    plan: Plan | None = None
    source: str = ""  # file that the plan is from

    @property
    def levels(self) -> frozenset[Mode]:
        return frozenset((Mode.SKIP, Mode.RUN))

    def start(self, window: Window) -> ScheduleActor:
        return ScheduleActor(self)

    def settings(self) -> dict:
        return {k: v for k, v in asdict(self).items() if k != "plan"}


class ScheduleActor:
    """One plan an image, made at the first evaluation."""

    needs_logits = False

    def __init__(self, policy: SchedulePolicy):
        self.policy = policy
        self.plans: dict[int, list[bool]] = {}
        self.held: dict[int, int] = {}  # step at which an image was last to be held
        self.notes: list[str] = []
        self.courses: dict[int, SchedulePredictor] | None = None  # where the plan's weights hold

    def act(self, observation: Observation) -> tuple[Action, ...]:
        return tuple(self._one(i, image, observation) for i, image in enumerate(observation.images))

    def _one(self, number: int, image: ImageState, observation: Observation) -> Action:
        step, steps = observation.step, observation.steps
        if number not in self.plans:
            self.plans[number] = self.plan(observation)
        plan = self.plans[number]
        if (
            self.held.get(number, step) < step and image.since_computed == 0
        ):  # what was to be held had to be computed
            left = max(0, sum(plan[step:]) - 1)
            plan[step:] = evenly_spaced(left + 1, steps - step + 1)[1:]
        self.held.pop(number, None)
        if plan[step] or not image.computed:
            return FULL
        self.held[number] = step
        return Action(Mode.SKIP, weights=self.weights(number, image, observation))

    def plan(self, observation: Observation) -> list[bool]:
        """Which steps of a run are computed, as far as that is settled before it."""
        steps, plan = observation.steps, self.policy.plan
        count = max_evaluations(self.policy.speedup, steps)
        if steps > 1 and count < 2:
            self.notes = [
                f"{steps} steps at {self.policy.speedup:g} times the speed: one evaluation is computed"
            ]
        if plan is None or count < 2:
            return list(evenly_spaced(count, steps, few=True))
        fits = observation.euler and plan.fits(observation.schedule)
        if count <= FEW and not plan.fits(
            observation.schedule
        ):  # where the last one lies decides the picture
            self.notes = [
                f"{self.policy.source} was searched for euler on other noise levels: so few evaluations are "
                "spaced evenly instead"
            ]
            return list(evenly_spaced(count, steps, few=True))
        if fits and plan.gram is not None and self.courses is None:
            self.courses = {}
        if not fits:
            self.notes = [
                f"{self.policy.source} was searched for euler on other noise levels: its plan is moved to "
                "this run's steps, forecasts are Adams-Bashforth's"
            ]
        return list(plan.on(count, observation.schedule))

    def weights(self, number: int, image: ImageState, observation: Observation) -> Weights:
        """Of the forecast for a step that is left out: fitted ones where the plan's noise levels
        are the run's."""
        plan, found = self.policy.plan, None
        if plan is not None and self.courses is not None:
            if number not in self.courses:
                self.courses[number] = SchedulePredictor(plan)
            found = self.courses[number].weights(observation, image.levels)
        if found is not None:
            return found
        return multistep(image, observation, self.policy.forecast_order)


class SchedulePredictor:
    """What one image's run computed so far, and the weights fitted to that."""

    def __init__(self, plan: Plan):
        assert plan.gram is not None
        self.fit = Fit(plan.gram, plan.schedule)
        self.held: dict[
            int, tuple[list[int], tuple[float, ...]]
        ] = {}  # steps left out: what stands for them

    def weights(self, observation: Observation, levels: Sequence[float]) -> Weights:
        """Weights of the derivatives computed at `levels` for the present step; None where one of
        them is not at the beginning of a step."""
        step, schedule = observation.step, observation.schedule
        while self.fit.step < step:
            at = self.fit.step
            self.fit.advance(*(() if schedule[at] in levels else self.held.get(at, ())))
        some = levels[-TERMS:]
        if not some or any(level not in schedule[:step] for level in some) or self.fit.step > step:
            return None
        used = [schedule.index(level) for level in some]
        self.held[step] = used, self.fit.weights(used)
        return tuple(zip(some, self.held[step][1], strict=True))
