"""Which step of the schedule an evaluation belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from ..quadrature.sigmas import is_in_schedule, place_in_schedule

# Relative difference from the schedule's first sigma that is another sigma, and not the little by
# which samplers that add noise move the first one away from pure noise (dpmpp_sde: 0.00003).
MOVED = 1e-3


class StepCounter:
    """Counts the steps of a run. Where a sampler tells the model other sigmas than the schedule's
    (Detail Daemon), the sigma does not tell the step; the sampler's callback does, after each one.
    Only samplers that evaluate once a step are followed so: others (dpm_2) look at sigmas between
    two of the schedule's, and these belong to the step before.

    one_evaluation: whether the sampler evaluates once a step, at the schedule's sigmas; None where
    that is to be seen."""

    def __init__(self, sigmas: Sequence[float], one_evaluation: bool | None = None):
        self.sigmas = sigmas
        self.one_evaluation = one_evaluation
        self.told_other = False
        """Whether the model was told a sigma that is not the schedule's, where there is no other
        reason for it than that sampler and schedule do not belong together."""
        self.last_step: int | None = None  # the step that the callback told of
        self._evaluations = 0  # since then
        self._per_step: int | None = None  # between the latest two
        # Whether another sigma than the step's was told: in this evaluation, in the one before, and
        # in the first. After such a one, a sigma of the schedule's may be there by chance.
        self._off_now = False
        self._off_before = False
        self._off_first = False

    def passed(self, step: int) -> None:
        """The sampler's callback: this step has been evaluated."""
        self._per_step = None if self.last_step is None else self._evaluations
        self.last_step = step
        self._evaluations = 0

    def counted(self) -> None:
        """An evaluation begins."""
        self._evaluations += 1
        self._off_before = self._off_now
        self._off_now = False

    def step(self, sigma: float) -> int:
        """Step of an evaluation at `sigma` that is about to begin."""
        place = place_in_schedule(sigma, self.sigmas)
        off = not is_in_schedule(sigma, self.sigmas)
        self._watch(sigma)
        if self.sigmas and self.last_step is None and self._evaluations == 1:
            self._off_first = abs(sigma - self.sigmas[place]) > MOVED * sigma
        following = 0 if self.last_step is None else self.last_step + 1
        following = min(following, max(0, len(self.sigmas) - 2))
        repeated = following < place and self.sigmas[following] == self.sigmas[place]
        step = place
        if (off or self._off_before or repeated) and self._counts():
            step = following
        self._off_now = self._off_now or off or (step != place and not repeated)
        return step

    def _watch(self, sigma: float) -> None:
        """Look whether a sigma is another than the schedule has here: the first one of a run, and
        later ones where no sampler looks between two of the schedule's."""
        if not self.sigmas or self.told_other:
            return
        if self.last_step is None and self._evaluations == 1:
            known: Sequence[float] = self.sigmas[:1]
        elif self.one_evaluation or (self.one_evaluation is None and self._per_step == 1):
            place = place_in_schedule(sigma, self.sigmas)
            known = self.sigmas[place : place + 2]
        else:
            return
        self.told_other = all(abs(sigma - s) > MOVED * max(s, sigma) for s in known)

    def _counts(self) -> bool:
        """Whether steps are known to be evaluated once each. Before the second one has passed, a
        sampler whose first sigma is not the schedule's is taken to do so."""
        if self._per_step is not None:
            return self._per_step == 1
        return self._off_first and self._evaluations == 1
