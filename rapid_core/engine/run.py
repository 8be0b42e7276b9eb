"""One sampling run: decides every evaluation for every image, and remembers what was computed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..quadrature.closeness import closeness
from ..quadrature.gap_costs import Gap
from ..quadrature.sigmas import step_weights
from ..reasons import ReasonCode
from ..transfer import to_device
from ..types import Action, Aim, Mode, Reason
from .evaluation import Evaluation
from .image_run import ImageRun
from .merge import CompositeActor
from .plan import RunPlan
from .step_counter import StepCounter
from .tap import Tap
from .token_stats import stats_of_run


@dataclass
class Refusals:
    """What a run cannot do, each with the reason; None where it can."""

    no_hooks: Reason | None = None
    """Blocks cannot be changed: no reuse, no sparse attention."""
    no_tokens: Reason | None = None
    """Tokens cannot be chosen."""
    no_skip: Reason | None = None
    """Nothing that asks for safety may be skipped."""
    no_split: Reason | None = None
    """A batch cannot be split by action."""
    full: Reason | None = None
    """Nothing can be done: the rest of the run is computed in full."""


class Run:
    """Images of one run, and the evaluation in progress.

    mask (B or 1, C or 1, ...): what is sampled, where the rest of the latent is given."""

    def __init__(self, plan: RunPlan, tap: Tap | None = None, mask: Tensor | None = None):
        self.plan = plan
        self.tap = tap
        self.refusals = Refusals(no_hooks=plan.no_hooks, no_tokens=plan.no_tokens)
        self.counter = StepCounter(plan.sigmas, plan.one_evaluation)
        self.safe = [policy.requirements.safety for policy in plan.policies]
        self.step_weights = step_weights(plan.sigmas)
        self.evaluations = 0
        self.ended: frozenset[int] = frozenset()  # images of which nothing is wanted any more
        # Whether a prompt, a ControlNet or guidance has begun or ended after something was skipped.
        self.turned = False
        self.images = [self._image(number, mask) for number in range(plan.batch)]
        if plan.tokens is not None and plan.grid is not None:
            stats = stats_of_run(
                plan.grid,
                plan.batch,
                mask,
                plan.tokens.focus,
                plan.tokens.error_threshold,
                plan.tokens.max_age,
            )
            for image, own in zip(self.images, stats, strict=True):
                image.token_stats = own
        self._occurrence = 0
        # Conditionings that the latest evaluation asked for, and lists of them as often as it did.
        self._asked: tuple[set[Hashable], Counter[Hashable]] | None = None
        self._on_device: tuple[Tensor, Tensor] | None = None  # sigmas and step weights

    def _image(self, number: int, mask: Tensor | None) -> ImageRun:
        plan = self.plan
        actors = [
            policy.start(window, number)
            for policy, window in zip(plan.policies, plan.windows, strict=True)
        ]
        part = None
        if mask is not None and tuple(mask.shape[1:]) == plan.shape[1:]:
            part = mask[number % len(mask)]
        return ImageRun(number, plan, CompositeActor(actors, self.safe), part=part)

    @property
    def wants_logits(self) -> bool:
        """Whether any policy has heads that look at latents."""
        return any(image.actor.wants_logits for image in self.images)

    @property
    def notes(self) -> tuple[Reason, ...]:
        """What the run and the policies have to say, each once; of one kind about one file the first
        image's alone."""
        notes: dict[Hashable, Reason] = {}
        if self.refusals.no_skip is not None:
            notes[self.refusals.no_skip] = self.refusals.no_skip
        for note in (note for image in self.images for note in image.actor.notes):
            file = note.params.get("file")
            notes.setdefault(note if file is None else (note.code, file), note)
        return tuple(notes.values())

    def begin(self, x: Tensor, timestep: Tensor) -> Evaluation:
        """Observe and decide. x (B, C, ...), timestep (B,) or (1,): sigmas; the run's only host
        synchronisation is here."""
        told = [timestep[i % len(timestep)] for i in range(self.plan.batch)]
        scalars = [self._scalars(image, x[image.number], told) for image in self.images]
        logits = [
            self._logits(image, x[image.number], told[image.number], some)
            for image, some in zip(self.images, scalars, strict=True)
        ]
        flat = torch.stack([scalar for some in scalars for scalar in some])
        if any(some is not None for some in logits):
            flat = torch.cat([flat, *(some.float() for some in logits if some is not None)])
        numbers = iter(flat.tolist())
        fetched = [[next(numbers) for _ in some] for some in scalars]
        for own, some in zip(fetched, logits, strict=True):
            own += [next(numbers) for _ in range(0 if some is None else len(some))]
        self.counter.counted()
        sigmas, steps, actions, estimates = [], [], [], []
        first_before = self.images[0].last_sigma
        for image, some in zip(self.images, fetched, strict=True):
            sigma = image.snapped(some[0])
            step = self.counter.step(sigma)
            if self.counter.told_other and any(self.safe):
                self.refusals.no_skip = Reason(ReasonCode.OTHER_SIGMAS)
            estimate, action = self._decide(image, sigma, step, some[1:])
            sigmas.append(sigma)
            steps.append(step)
            estimates.append(estimate)
            actions.append(action)
            image.last_sigma = sigma
        self._occurrence = self._occurrence + 1 if first_before == sigmas[0] else 0
        return Evaluation(
            self.evaluations,
            sigmas,
            actions,
            estimates,
            steps,
            self._occurrence,
            told_sigma=fetched[0][0],
        )

    def _scalars(self, image: ImageRun, latent: Tensor, told: Sequence[Tensor]) -> list[Tensor]:
        """What the host has to know of an image before it decides, 0-d float32: sigma, two error
        estimates where a policy looks at them, what was measured, and tokens at the threshold where
        a policy asks."""
        sigma = told[image.number]
        errors = image.unfetched_errors(latent, sigma) if self.plan.error_estimates else ()
        scalars = [sigma.float(), *errors, *image.unfetched()]
        over = self._over_threshold(image, latent, sigma)
        return scalars if over is None else [*scalars, *over]

    def _logits(
        self, image: ImageRun, latent: Tensor, sigma: Tensor, scalars: Sequence[Tensor]
    ) -> Tensor | None:
        """What the heads of an image's policies say, (n,); None where there are none. scalars: see
        `_scalars`."""
        if not image.actor.wants_logits or image.number in self.ended:
            return None
        seen = None
        if self.tap is not None:
            points = image.guided.points
            derivative = points[-1].value if points else None
            error = scalars[1] if self.plan.error_estimates else None
            seen = self.tap.head_input(image.number, latent, image.last_latent, derivative, error)
        return image.actor.logits(seen, sigma)

    def _decide(
        self, image: ImageRun, sigma: float, step: int, numbers: list[float]
    ) -> tuple[float, Action]:
        """The error estimate and the action of an image. numbers: those of `_scalars` after sigma,
        and of `_logits`."""
        fresh = again = math.inf
        rest = numbers
        if self.plan.error_estimates:
            fresh, again, *rest = numbers
        measured = len(image.unfetched())
        image.fetched(rest[:measured])
        rest = rest[measured:]
        over: list[int] = []
        if self._asks_tokens(image):
            over = [] if rest[0] < 0 else [int(number) for number in rest[:2]]
            rest = rest[2:]
        estimate = math.inf
        if image.computed:
            estimate = again if image.guided.last_sigma == sigma else fresh
        observation = image.observe(
            index=self.evaluations,
            sigma=sigma,
            step=step,
            step_weight=self.step_weights[step],
            error=estimate,
            tokens=image.token_state(over),
            logits=tuple(rest),
        )
        if image.number in self.ended:
            return estimate, Action(Mode.SKIP)
        no_skip = self.refusals.no_skip is not None
        return estimate, image.actor.act(observation, no_skip)

    def _asks_tokens(self, image: ImageRun) -> bool:
        return image.token_stats is not None and bool(image.token_stats.error_threshold)

    def _over_threshold(self, image: ImageRun, latent: Tensor, sigma: Tensor) -> Tensor | None:
        """Numbers of tokens over the threshold and near it, (2,); None where no policy asks."""
        if not self._asks_tokens(image):
            return None
        assert image.token_stats is not None
        if self._on_device is None:
            sigmas = torch.tensor(self.plan.sigmas or (0.0,))
            weights = torch.tensor(self.step_weights)
            self._on_device = to_device(sigmas, sigma.device), to_device(weights, sigma.device)
        sigmas, weights = self._on_device  # as the step counter, but without asking the device
        place = ((sigmas >= sigma * (1 - 1e-6)).sum() - 1).clamp(0, len(weights) - 1)
        change = image.latent_change(latent)
        return image.token_stats.accumulate(
            image.guided.points,
            sigma,
            self.plan.prediction_order,
            self.plan.reach,
            weights.take(place),
            None if change is None else change / sigma,
        )

    def end(self, evaluation: Evaluation, x: Tensor, denoised: Tensor) -> Tensor:
        """Remember what was computed: the guided derivative (x - denoised) / sigma of each image
        that ran. Returns what the sampler is given, (B, C, ...): `denoised`, and where a gap has
        ended, with its correction."""
        self.evaluations += 1
        turned = self._turned(evaluation)
        skipped = any(image.computed < self.evaluations - 1 for image in self.images)
        self.turned = self.turned or (turned and skipped)
        given = denoised
        for image in self.images:
            i = image.number
            if turned:
                image.turn()
            sigma = evaluation.sigmas[i]
            ran = evaluation.actions[i].mode is Mode.RUN
            image.keep_conds(evaluation.cond_keys)
            if self.plan.predicts and sigma > 0 and (ran or image.corrector is not None):
                derivative = (x[i] - denoised[i]) / sigma
                if ran:
                    image.remember(evaluation, x[i].clone(), derivative)
                    image.watch(evaluation, derivative, denoised[i])
                corrected = image.correct(evaluation, derivative, denoised[i])
                if corrected is not None:
                    given = denoised.clone() if given is denoised else given
                    given[i] = x[i] - sigma * corrected
            image.executed(evaluation.actions[i])
        return given

    def _turned(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation is of other conditionings than the one before: a prompt, a ControlNet
        or guidance, that of a skipped layer, too, has begun or ended."""
        if not evaluation.cond_keys:  # another node answered
            return False
        before = self._asked
        self._asked = evaluation.cond_keys, evaluation.cond_lists
        return before is not None and before != self._asked

    @property
    def tells_closeness(self) -> bool:
        """Whether gap errors say how near the full picture a run of this plan comes."""
        return self.plan.aim is Aim.FULL_PICTURE and self.plan.tokens is None

    def closeness(self) -> list[float | None]:
        """Predicted PSNR in dB of each image to its full picture; None where nothing is known: where
        tokens have gaps of their own, and where something turned, since what was off before it is off
        by another measure after it (docs/lab.md)."""
        if not self.tells_closeness or self.turned:
            return [None] * self.plan.batch
        return [
            closeness(
                [(error, image.gap_lengths[i]) for i, error in image.gap_errors.items()],
                self.plan.euler,
            )
            for image in self.images
        ]

    def gap_errors(self) -> list[dict[Gap, float]]:
        """What each watched image shows of gaps, see `Watcher.errors`; of those that show it."""
        tables = [image.watcher.errors() for image in self.images if image.watcher is not None]
        return [table for table in tables if table is not None]

    @property
    def watched(self) -> bool:
        """Whether an image was watched from its first step to its last, whatever it showed."""
        return any(image.watcher is not None and image.watcher.whole for image in self.images)

    def finish(self) -> None:
        """Fetch what was measured last; called once when the run has ended."""
        measured = [image.unfetched() for image in self.images]
        if not any(measured):
            return
        numbers = iter(torch.stack([m.float() for some in measured for m in some]).tolist())
        for image, some in zip(self.images, measured, strict=True):
            image.fetched([next(numbers) for _ in some])

    def drop(self) -> None:
        """Let go of all tensors."""
        self.images = []
        self._on_device = None
        if self.tap is not None:
            self.tap.drop()

    @property
    def bytes(self) -> int:
        """Memory of all histories."""
        shown = 0 if self.tap is None else self.tap.bytes
        return shown + sum(image.bytes for image in self.images)
