"""Heads that begin with a schedule (`rapid+`): they learn where an image needs more evaluations
than a schedule has, or fewer.

Beyond RAPID3: heads know what is left of the budget and how rough the trajectory is, one file
serves all speed-ups, what is skipped is predicted with weights fitted to what was computed, and
heads that say nothing are the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ...quadrature.spacing import max_evaluations
from ...types import (
    FULL,
    Action,
    Aim,
    HeadInput,
    Observation,
    PredictionWeights,
    Reason,
    Requirements,
    Window,
)
from ..step_skip.schedule import Schedule, SchedulePolicy
from .network import RunHeads
from .prior import OWN, RUNGS, explore_rate, mixture, next_computed, next_in_schedule, prior_logits
from .rapid3 import Rapid3Actor, Rapid3Policy
from .rollout import Decision

# Sigma, share of the evaluations that may still be computed, square root of the estimated error.
NUMBERS = 3
MODES = {"cap": 1.0, "average": 1.5}  # what an image may spend at most, as a multiple of the budget


@dataclass(frozen=True, kw_only=True)
class RapidPlusPolicy(Rapid3Policy):
    """Heads on top of a schedule."""

    technique: ClassVar[str] = "rapid+"

    schedule: Schedule | None = None
    """None for even spacing."""
    ladder: tuple[Schedule, ...] = field(default=(), compare=False, repr=False)
    """Schedules from the fewest evaluations to the most, `schedule` among them."""
    mode: str = "cap"
    """"cap": no image spends more than the budget. "average": images of a calibration set spent it
    in the mean, none more than half as much again."""
    learned_aim: Aim = Aim.FULL_PICTURE
    """Which picture gaps are corrected towards, where no weights are fitted: the one that heads
    learned to come near, whatever a node's `aim` says."""

    @property
    def schedule_policy(self) -> SchedulePolicy:
        """The schedule by itself."""
        return SchedulePolicy(
            speedup=self.speedup,
            aim=self.learned_aim,
            safe=False,  # heads go to their budget
            prediction_order=self.prediction_order,
            schedule=self.schedule,
            source=self.source,
        )

    @property
    def requirements(self) -> Requirements:
        """As the published heads', with the corrector where the schedule has it."""
        return replace(super().requirements, aim=self.schedule_policy.requirements.aim)

    def start(self, window: Window, image: int = 0) -> RapidPlusActor:
        return RapidPlusActor(self, self._run_heads(image), window, image)

    def to_record(self) -> dict[str, Any]:
        return {**super().to_record(), "mode": self.mode, "aim": self.learned_aim.value}


class RapidPlusActor(Rapid3Actor):
    """The heads for one image of a run."""

    deciding_head: ClassVar[str] = "pace"

    def __init__(self, policy: RapidPlusPolicy, run: RunHeads, window: Window, image: int = 0):
        super().__init__(policy, run, image)
        self.plus = policy
        self.schedule = policy.schedule_policy.start(window, image)
        self.marks: Sequence[bool] = ()  # steps that the schedule computes; settled once a run
        self.rungs: list[Sequence[bool] | None] = []  # those of the ladder's schedules about it

    @property
    def notes(self) -> Sequence[Reason]:
        return (*super().notes, *self.schedule.notes)

    def executed(self, action: Action) -> None:
        super().executed(action)
        self.schedule.executed(action)

    def _numbers(self, seen: HeadInput, sigma: Tensor) -> Tensor:
        """As the published heads, and the estimated error of the prediction; 1 where it is not
        known."""
        error = sigma.new_ones(()) if seen.error is None else seen.error
        root = error.to(sigma).clamp(0, 1).sqrt()
        return torch.cat((super()._numbers(seen, sigma), root.expand(1, 1).float()), 1)

    def _max_evaluations(self, steps: int) -> int:
        return max_evaluations(max(1.0, self.plus.speedup / MODES[self.plus.mode]), steps)

    def _decide(self, observation: Observation, logits: dict[str, Tensor] | None) -> Action:
        if observation.step in self.charged:
            return FULL  # a second look at a step, which a schedule computes in full
        return super()._decide(observation, logits)

    def _sigmas(self, observation: Observation) -> tuple[float, float]:
        """Those of whole steps, wherever in them the sampler looks."""
        sigma = observation.sigmas[observation.step]
        return sigma, sigma

    @override
    def _jump_to(
        self, logits: Tensor, start: float, observation: Observation
    ) -> tuple[float, Decision]:
        """The pace head's choice among the next evaluations of schedules."""
        self._settle(observation)
        steps = observation.steps
        last = max(self.charged)
        left = self._max_evaluations(steps) - len(self.charged)
        targets = [
            None if marks is None else next_computed(marks, last, left) for marks in self.rungs
        ]
        targets[OWN] = next_in_schedule(self.marks, last, len(self.charged), left)
        prior = torch.tensor(prior_logits(targets, explore_rate(self._max_evaluations(steps))))
        drawn = self.policy.rollout is not None
        pace = self._pick(mixture(logits, prior).log() if drawn else logits + prior)
        decision = Decision(pace=pace, prior_logits=tuple(prior.tolist()))
        return observation.sigmas[targets[pace] or steps], decision

    def _settle(self, observation: Observation) -> None:
        """The schedule's steps and those of the rungs about it."""
        if self.marks:
            return
        self.marks = tuple(self.schedule.settle(observation))
        self.rungs = [None] * len(RUNGS)
        ladder = self.plus.ladder
        if self.plus.schedule not in ladder:
            return
        own = ladder.index(self.plus.schedule)
        for place, rung in enumerate(RUNGS):
            if rung and 0 <= own + rung < len(ladder):
                schedule = ladder[own + rung]
                self.rungs[place] = schedule.computed_on(observation.steps, observation.sigmas)

    def _prediction_weights(self, observation: Observation) -> PredictionWeights | None:
        self._settle(observation)
        return self.schedule.weights(observation)
