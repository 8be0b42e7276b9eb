"""Mode quality: as many steps of one image's run as a closeness needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...quadrature.closeness import MARGIN, error_for
from ...quadrature.spacing import Spacing, spacing_of
from ...types import FULL, Action, Mode, Observation, Window
from .schedule_actor import ScheduleActor

if TYPE_CHECKING:
    from .schedule import SchedulePolicy

# What is known of a gap's error before a run has measured any (docs/lab.md): as that of so many gaps,
# the error of one whose cost is 1.
PRIOR_GAPS = 2
ERROR_OF_COST = 1.5e-6


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
        spacing = spacing_of(observation.sigmas, observation.turns)
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
        if math.isinf(price):  # with one less the turns could not all be computed
            price = spacing.rest(0, count - 1)
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
