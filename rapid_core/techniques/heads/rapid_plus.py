"""Heads that begin with a plan (`rapid+`): they learn where an image needs more evaluations than a
plan has, or fewer.

Beyond RAPID3: heads know what is left of the budget and how rough the trajectory is, one file
serves all speed-ups, what is held is forecast with weights fitted to what was computed, and heads
that say nothing are the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...types import FULL, Action, HeadInput, ImageState, Observation, Window
from ..step_skip.schedule import Plan, SchedulePolicy, Weights, max_evaluations
from .prior import OWN, RUNGS, explore_rate, mixture, next_computed, next_in_schedule, prior_logits
from .rapid3 import HeadsActor, HeadsPolicy
from .rollout import Decision

NUMBERS = 3  # noise level, share of the evaluations that may still be computed, square root of the estimated error
MODES = {"cap": 1.0, "average": 1.5}  # what an image may spend at most, as a multiple of the budget


@dataclass(frozen=True)
class PlannedPolicy(HeadsPolicy):
    """Heads on top of a plan; None: on even spacing. ladder: plans from the fewest evaluations to
    the most, that one among them. mode: "cap", no image spends more than the budget, or "average",
    images of a calibration set spent it in the mean, none more than half as much again."""

    technique: str = "rapid+"
    plan: Plan | None = None
    ladder: tuple[Plan, ...] = field(default=(), compare=False, repr=False)
    mode: str = "cap"

    @property
    def schedule(self) -> SchedulePolicy:
        """The plan by itself."""
        return SchedulePolicy(
            self.speedup, forecast_order=self.forecast_order, plan=self.plan, source=self.source
        )

    def start(self, window: Window) -> PlannedActor:
        return PlannedActor(self, window)

    def settings(self) -> dict:
        return {k: v for k, v in super().settings().items() if k not in ("plan", "ladder")}


class PlannedActor(HeadsActor):
    """The heads in one run."""

    leaps = "pace"

    def __init__(self, policy: PlannedPolicy, window: Window):
        super().__init__(policy)
        self.planned = policy
        self.schedule = policy.schedule.start(window)
        self.marks: list[bool] = []
        self.rungs: list[Sequence[bool] | None] = []  # marks of the ladder's plans about it
        self.errors: list[Tensor | None] = []

    def ask(self, looks: Sequence[HeadInput | None], sigma: Tensor) -> Tensor | None:
        """As the published heads, with the estimated error of each image's forecast."""
        self.errors = [look.error for look in looks if look is not None]
        return super().ask(looks, sigma)

    def _numbers(self, sigma: Tensor) -> Tensor:
        unknown = sigma.new_ones(())
        errors = torch.stack(
            [(unknown if e is None else e).to(sigma).clamp(0, 1).sqrt() for e in self.errors]
        )
        return torch.cat((super()._numbers(sigma), errors[:, None].float()), 1)

    def _most(self, steps: int) -> int:
        return max_evaluations(max(1.0, self.planned.speedup / MODES[self.planned.mode]), steps)

    def _one(
        self, number: int, image: ImageState, observation: Observation, logits: dict | None
    ) -> Action:
        if observation.step in self.charged.get(number, ()):
            return FULL  # a second look at a step, which a plan computes whole
        return super()._one(number, image, observation, logits)

    def _levels(self, image: ImageState, observation: Observation) -> tuple[float, float]:
        """Those of whole steps, wherever in them the sampler looks."""
        here = observation.schedule[observation.step]
        return here, here

    def _leap(
        self, number: int, logits: Tensor, start: float, observation: Observation
    ) -> tuple[float, Decision]:
        self._plan(observation)
        charged, steps = self.charged[number], observation.steps
        last, left = max(charged), self._most(steps) - len(charged)
        targets = [marks and next_computed(marks, last, left) for marks in self.rungs]
        targets[OWN] = next_in_schedule(self.marks, last, len(charged), left)
        leaning = torch.tensor(prior_logits(targets, explore_rate(self._most(steps))))
        pace = self._pick(
            logits + leaning if self.policy.rollout is None else mixture(logits, leaning).log()
        )
        return observation.schedule[targets[pace] or steps], Decision(
            pace=pace, prior_logits=tuple(leaning.tolist())
        )

    def _plan(self, observation: Observation) -> None:
        """Settle the plan and the rungs about it, once a run."""
        if self.marks:
            return
        self.marks, ladder = self.schedule.plan(observation), self.planned.ladder
        self.notes = sorted({*self.notes, *self.schedule.notes})
        own = ladder.index(self.planned.plan) if self.planned.plan in ladder else None
        near = [
            ladder[own + rung]
            if own is not None and rung and 0 <= own + rung < len(ladder)
            else None
            for rung in RUNGS
        ]
        self.rungs = [plan and plan.on(observation.steps, observation.schedule) for plan in near]

    def _weights(self, number: int, image: ImageState, observation: Observation) -> Weights:
        self._plan(observation)
        return self.schedule.weights(number, image, observation)
