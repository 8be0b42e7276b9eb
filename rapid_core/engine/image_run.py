"""One image of a run: its sigma, histories, counters, tokens and actors."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..quadrature.lagrange import adams_bashforth
from ..quadrature.multistep import Step, slope_share_on_device
from ..quadrature.sigmas import snap_to_schedule
from ..quadrature.spacing import difficulty
from ..transfer import to_device
from ..types import Action, Aim, Mode, Observation, TokenState
from .corrector import Corrector
from .evaluation import Evaluation
from .history import (
    SMALLEST,
    History,
    change_and_skill,
    error_estimate,
    predict,
    weighted_sum,
    worst_part,
)
from .merge import CompositeActor
from .plan import RunPlan, history_lengths
from .step_counter import MOVED
from .token_stats import TokenStats
from .watcher import Watcher

CondKey = tuple  # of a list of conditionings: see `comfy.conditions.cond_key`


class ImageRun:
    """State of one image, from the beginning of a run to its end.

    part (C, ...) or None: what is sampled, where the rest of the latent is given (inpainting)."""

    def __init__(
        self,
        number: int,
        plan: RunPlan,
        actor: CompositeActor,
        token_stats: TokenStats | None = None,
        part: Tensor | None = None,
    ):
        self.number = number
        self.plan = plan
        self.actor = actor
        self.token_stats = token_stats
        self.part = part
        # One point more than a prediction needs: the error estimate compares it with the next order.
        self._lengths = history_lengths(plan)
        self.guided = History(self._lengths[0])
        self.conds: dict[CondKey, History] = {}  # derivatives of conditionings
        self.residuals: dict[tuple, History] = {}  # of the blocks, by (cond, shape, device)
        self.last_latent: Tensor | None = None  # when the model was last computed
        self.last_sigma: float | None = None
        self.computed = 0
        self.since_computed = 0
        self.since_measured = -1
        self.measured_error: float | None = None
        self.change: float | None = None
        self.extrapolation_skill: float | None = None
        self.measured_log: dict[int, float] = {}  # by evaluation
        self.watcher = Watcher(plan.sigmas, part) if plan.watch else None
        self.corrector = None if plan.aim is None else Corrector(plan.aim, plan.euler)
        self.gap_error: float | None = None
        self.gap_errors: dict[int, float] = {}  # by evaluation that ended a gap
        self.gap_lengths: dict[int, float] = {}  # the same gaps', see `spacing.difficulty`
        # Scalars that are still on the device; `Run.begin` fetches those of all images together:
        # errors by evaluation, and the latest change and skill.
        self._errors: list[tuple[int, Tensor]] = []
        self._shifts: list[tuple[int, Tensor]] = []
        self._trend: tuple[Tensor, Tensor] | None = None
        self._last_step = -1
        self._turned = False  # since the latest evaluation that computed all tokens

    def cond(self, key: CondKey) -> History:
        """History of a conditioning's derivative."""
        if key not in self.conds:
            self.conds[key] = History(self._lengths[1])
        return self.conds[key]

    def residual(self, key: tuple) -> History:
        """History of the blocks' residual in a conditioning."""
        if key not in self.residuals:
            self.residuals[key] = History(self._lengths[2])
        return self.residuals[key]

    def residuals_of(self, cond: Hashable) -> list[History]:
        """All residual histories of a conditioning."""
        return [history for key, history in self.residuals.items() if key[0] == cond]

    def predict_cond(self, key: CondKey, evaluation: Evaluation) -> Tensor:
        """A conditioning's derivative (C, ...) at this evaluation, as the action wants it."""
        points = self.cond(key).points
        weights = evaluation.actions[self.number].prediction_weights
        value = None if weights is None else weighted_sum(points, weights)
        if value is not None:
            return value
        sigma = evaluation.sigmas[self.number]
        return predict(points, sigma, self.plan.prediction_order, self.plan.reach)

    def latent_change(self, latent: Tensor) -> Tensor | None:
        """How far the latent (C, ...) has moved since the model was last computed; None where that
        is not known."""
        if self.last_latent is None or self.last_latent.shape != latent.shape:
            return None
        return latent - self.last_latent

    def unfetched_errors(self, latent: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Estimated error of a prediction, 0-d float32: as sigma has moved on, and for a second look
        at the same sigma (heun), which a polynomial over sigma cannot tell from the first. latent
        (C, ...), sigma 0-d; inf where it is not known."""
        unknown = sigma.new_full((), math.inf, dtype=torch.float32)
        points = self.guided.points
        estimate = error_estimate(points, sigma, self.plan.prediction_order, self.plan.parts)
        fresh = unknown if estimate is None else estimate
        change = self.latent_change(latent)
        if change is None or not points:
            return fresh, unknown
        # At an unchanged denoised the derivative moves with x alone: d' - d = (x' - x) / sigma.
        scale = sigma * points[-1].value.abs().mean()
        again = change.abs().mean() / scale.clamp_min(SMALLEST)
        return fresh, again.float()

    def unfetched(self) -> list[Tensor]:
        """What was measured and is not yet fetched, 0-d."""
        measured = [value for _, value in (*self._errors, *self._shifts)]
        return measured + list(self._trend or ())

    def fetched(self, values: Iterable[float]) -> None:
        """The numbers of `unfetched`."""
        numbers = iter(values)
        for evaluation, _ in self._errors:
            self.measured_error = self.measured_log[evaluation] = next(numbers)
        for evaluation, _ in self._shifts:
            self.gap_errors[evaluation] = self.gap_error = next(numbers)
        if self._trend is not None:
            self.change = next(numbers)
            skill = next(numbers)
            self.extrapolation_skill = None if math.isnan(skill) else skill
        self._errors = []
        self._shifts = []
        self._trend = None

    def snapped(self, sigma: float) -> float:
        """The schedule's sigma for the one that the sampler gave."""
        return snap_to_schedule(sigma, self.plan.sigmas, self.last_sigma)

    def observe(self, **known: Any) -> Observation:
        """What policies see; known: what the run knows of the evaluation."""
        return Observation(
            image=self.number,
            steps=max(1, len(self.plan.sigmas) - 1),
            sigmas=self.plan.sigmas,
            turns=self.plan.turns,
            euler=self.plan.euler,
            aim=self.plan.aim,
            computed=self.computed,
            since_computed=self.since_computed,
            measured_error=self.measured_error,
            gap_error=self.gap_error,
            since_full=-1 if self.token_stats is None else self.token_stats.since_full,
            since_measured=self.since_measured,
            history=self.guided.sigmas,
            change=self.change,
            extrapolation_skill=self.extrapolation_skill,
            **known,
        )

    def token_state(self, over_and_near: Sequence[int]) -> TokenState | None:
        """See `TokenStats.state`."""
        return (
            None if self.token_stats is None else self.token_stats.state(self.guided, over_and_near)
        )

    def turn(self) -> None:
        """From this evaluation on the guided derivative is of other conditionings: what is known of it
        does not lead there, and a gap that ends there cannot be corrected."""
        self._turned = True
        self.gap_error = None
        if self.corrector is not None:
            self.corrector.reset()

    def remember(self, evaluation: Evaluation, latent: Tensor, derivative: Tensor) -> None:
        """The evaluation was computed: derivative (C, ...) of this image."""
        action = evaluation.actions[self.number]
        sigma = evaluation.sigmas[self.number]
        where = self._ran(action)
        if self._turned and where is None:
            self.guided.clear()
            self._turned = False
        points = self.guided.points
        fresh = self.guided.last_sigma != sigma
        if len(points) > self.plan.prediction_order and fresh:
            guess = self.guided.predict(sigma, self.plan.prediction_order, self.plan.reach)
            error = worst_part(guess, derivative, self.plan.parts, where)
            self._errors.append((evaluation.index, error))
        if self.plan.history and points and where is None and fresh:
            part = None if self.part is None else to_device(self.part, derivative.device)
            self._trend = change_and_skill(points, sigma, derivative, part)
        if self.token_stats is not None:
            self.token_stats.computed(action, derivative, points[-1].value if points else None)
        self.guided.add(sigma, derivative, where)
        self.last_latent = latent

    def watch(self, evaluation: Evaluation, derivative: Tensor, denoised: Tensor) -> None:
        """Let the watcher see an evaluation that computed all of the image, (C, ...)."""
        step = evaluation.steps[self.number]
        sigma = evaluation.sigmas[self.number]
        at = any(abs(own - sigma) <= MOVED * own for own in self.plan.sigmas[step : step + 1])
        if self.watcher is not None and at and evaluation.actions[self.number].full:
            self.watcher.add(step, derivative, denoised)

    def correct(
        self, evaluation: Evaluation, derivative: Tensor, denoised: Tensor
    ) -> Tensor | None:
        """The derivative (C, ...) to give the sampler in place of this evaluation's, so that a gap
        that ends here is made good; None for no other. Called for every evaluation, after
        `remember`. denoised (C, ...): of the evaluation."""
        corrector = self.corrector
        if corrector is None:
            return None
        step = self._step(evaluation)
        action = evaluation.actions[self.number]
        if step is None:
            corrector.reset()
            return None
        points = self.guided.points
        if action.mode is Mode.SKIP:
            corrector.estimated(step, derivative, points)
        if action.mode is not Mode.RUN:
            return None
        ran = self._ran(action)
        shift = corrector.shift(points, ran)
        if shift is not None:
            # What a mask keeps is put back by the host, whatever it is given.
            sampled = (
                shift if self.part is None else shift * (to_device(self.part, shift.device) > 0)
            )
            size = sampled.square().mean() / denoised.float().square().mean().clamp_min(SMALLEST)
            self._shifts.append((evaluation.index, size))
            self.gap_lengths[evaluation.index] = self._gap_length(step)
        own = derivative
        if corrector.applies and corrector.aim is Aim.BEST_PICTURE:
            own = derivative if ran is not None else self._mean_over(step)
            corrector.estimated(step, own, points)
        elif ran is not None:
            corrector.estimated(step, own, points, ~ran)
        given = corrector.given(step, own, shift)
        return None if given is derivative else given

    def _gap_length(self, end: Step) -> float:
        """Of the gap that ended at the beginning of a step, see `spacing.difficulty`."""
        sigmas = self.plan.sigmas
        begin = max(0, self._last_step - self.since_computed - 1)
        ends = (difficulty(sigma, sigmas[0]) for sigma in (end[0], sigmas[begin]))
        return next(ends) - next(ends)

    def _ran(self, action: Action) -> Tensor | None:
        """Mask of the latent where an action computes tokens, (1, H, W), (1, T, H, W) or, of a packed
        one, (1, L); None for all of it."""
        if self.token_stats is None or action.tokens is None:
            return None
        return self.token_stats.grid.latent_mask(action.tokens)

    def _step(self, evaluation: Evaluation) -> Step | None:
        """Sigmas of the step that an evaluation begins; None where it is a second look at a step, or
        its sigma is not the schedule's."""
        number = evaluation.steps[self.number]
        first = number != self._last_step
        self._last_step = number
        sigmas = self.plan.sigmas
        if (
            not first
            or number + 1 >= len(sigmas)
            or sigmas[number] != evaluation.sigmas[self.number]
        ):
            return None
        return sigmas[number], sigmas[number + 1]

    def _mean_over(self, step: Step) -> Tensor:
        """Mean derivative (C, ...) over the step that the latest computed one begins: of the line
        through the latest two, with as much of its slope as predictions take."""
        points = self.guided.points[-2:]
        latest = points[-1].value.float()
        sigmas = [p.sigma for p in points if not isinstance(p.sigma, Tensor)]
        if len(sigmas) < 2 or self._trend is None:
            return latest
        older = adams_bashforth(sigmas, *step)[0] * slope_share_on_device(*self._trend)
        return torch.lerp(latest, points[0].value.float(), older.float())

    def executed(self, action: Action) -> None:
        """Count an evaluation that has ended, and tell the policies."""
        computed = action.mode is Mode.RUN
        self.computed += computed
        self.since_computed = 0 if computed else self.since_computed + 1
        if action.measured_density:
            self.since_measured = 0
        elif computed and self.since_measured >= 0:
            self.since_measured += 1
        if self.token_stats is not None and not computed:
            self.token_stats.passed_over()
        self.actor.executed(action)

    def keep_conds(self, keys: set[Hashable]) -> None:
        """Let go of the histories of other conditionings: those that ended."""
        for key in self.conds.keys() - keys:
            del self.conds[key]

    def forget(self, cond: Hashable) -> None:
        """What is known of a conditioning's blocks no longer belongs to it."""
        for history in self.residuals_of(cond):
            history.clear()

    @property
    def bytes(self) -> int:
        """Memory of all histories, of the latent that the latest is of, and of what a gap has moved."""
        histories = [self.guided, *self.conds.values(), *self.residuals.values()]
        latent = self.last_latent
        own = 0 if latent is None else latent.nbytes
        own += 0 if self.watcher is None else self.watcher.bytes
        own += 0 if self.corrector is None else self.corrector.bytes
        return own + sum(history.bytes for history in histories)
