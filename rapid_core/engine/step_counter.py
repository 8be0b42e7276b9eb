"""Which step of the schedule an evaluation belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from ..quadrature.sigmas import is_in_schedule, place_in_schedule


class StepCounter:
    """Counts the steps of a run. Where a sampler tells the model other sigmas than the schedule's
    (Detail Daemon), the sigma does not tell the step; the sampler's callback does, after each one.
    Only samplers that evaluate once a step are followed so: others (dpm_2) look at sigmas between
    two of the schedule's, and these belong to the step before."""

    def __init__(self, sigmas: Sequence[float]):
        self.sigmas = sigmas
        self.last_step: int | None = None  # the step that the callback told of
        self._evaluations = 0  # since then
        self._per_step: int | None = None  # between the latest two

    def passed(self, step: int) -> None:
        """The sampler's callback: this step has been evaluated."""
        self._per_step = None if self.last_step is None else self._evaluations
        self.last_step = step
        self._evaluations = 0

    def counted(self) -> None:
        """An evaluation begins."""
        self._evaluations += 1

    def step(self, sigma: float) -> int:
        """Step of an evaluation at `sigma` that is about to begin."""
        place = place_in_schedule(sigma, self.sigmas)
        if self.last_step is None or self._per_step != 1 or is_in_schedule(sigma, self.sigmas):
            return place
        return min(self.last_step + 1, max(0, len(self.sigmas) - 2))
