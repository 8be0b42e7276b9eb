"""What is known during one sampling run: histories and the evaluation in progress."""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..quadrature.sigmas import snap_to_schedule, step_weights
from ..types import Actor, HeadInput, ImageState, Mode, Observation
from .evaluation import Evaluation
from .features import FeatureStore
from .history import History, estimate_error, extrapolation_skill, forecast, relative_l1, weighted
from .token_stats import TokenStats


class RunState:
    """Histories of one run: the guided derivative, each condition's derivative and each stream's
    residual.

    order, reach: of forecasts (`forecast.forecast`). schedule: the run's noise levels, for policies
    that count steps. regions: what is known of tokens, where a policy chooses among them. history,
    euler: see `Policy`, `Observation`. mask (B, ...): what is sampled, where the rest of the latent
    is given (inpainting)."""

    def __init__(
        self,
        batch: int,
        order: int,
        actor: Actor,
        schedule: Sequence[float] = (),
        regions: TokenStats | None = None,
        reach: float | None = None,
        history: int = 0,
        euler: bool = False,
        mask: Tensor | None = None,
    ):
        self.keep, self.history, self.euler = max(order + 1, history), history, euler
        self.batch, self.order, self.actor, self.reach = batch, order, actor, reach
        self.schedule, self.regions, self.mask = tuple(schedule), regions, mask
        self.weights = step_weights(self.schedule)
        self._on_device: tuple[Tensor, Tensor] | None = None  # noise levels and weights
        self.guided = History(max(order + 2, history))
        self.slots: dict[Hashable, History] = {}
        self.residuals: dict[tuple, History] = {}  # by (stream, shape, device)
        self.computed = [0] * batch
        self.since = [0] * batch
        self.since_measured = [-1] * batch
        self.pooled: dict[
            int, Tensor
        ] = {}  # each image's pooled modulation vector at the first evaluation
        self.features: FeatureStore | None = None  # where a policy looks at the model's own tokens
        self.last_x: Tensor | None = None
        self.pending: list[
            tuple[int, int, Tensor]
        ] = []  # (evaluation, image, measured error), not yet fetched
        self.turns: list[tuple[int, Tensor]] = []  # (image, moved and slope), not yet fetched
        self.trends: dict[
            int, tuple[float, float | None]
        ] = {}  # moved and slope of images, see `ImageState`
        self.measured: list[float | None] = [None] * batch
        self.measured_log: dict[tuple[int, int], float] = {}
        self.evaluations = 0
        self.same_sigma = 0
        self.last_sigma: float | None = None

    def slot(self, key: Hashable) -> History:
        """History of one condition's derivative."""
        return self.slots.setdefault(key, History(self.keep))

    def forecast(self, key: Hashable, evaluation: Evaluation, images: Sequence[int]) -> Tensor:
        """A condition's derivative of several images at this evaluation, (len(images), ...), as
        their actions want it put together."""
        track, out = self.slot(key), []
        for i in images:
            points, weights, found = track.points(i), evaluation.actions[i].weights, None
            if weights is not None:
                found = weighted(points, weights)
            out.append(
                forecast(points, evaluation.sigma, self.order, self.reach)
                if found is None
                else found
            )
        return torch.stack(out)

    def residual(self, key: tuple) -> History:
        """History of one stream's block-stack residual."""
        return self.residuals.setdefault(key, History(self.order + 1))

    def residuals_of(self, stream: Hashable) -> list[History]:
        """All residual histories of a condition."""
        return [track for key, track in self.residuals.items() if key[0] == stream]

    def begin(self, x: Tensor, sigma: Tensor) -> Evaluation:
        """Observe and decide. x (B, ...), sigma a 0-d tensor; the run's only host synchronisation
        is here."""
        errors = [self._error(i, x, sigma) for i in range(self.batch)]
        flat = [sigma.float()] + [e for pair in errors for e in pair] + self._waiting()
        expected = self._expect(x, sigma)
        asked = (
            self.actor.ask(self._looks(x, errors), sigma)
            if getattr(self.actor, "needs_logits", False)
            else None
        )
        wanted = torch.stack(flat + expected)
        wanted = wanted if asked is None else torch.cat((wanted, asked.float()))
        numbers = wanted.tolist()  # the one synchronisation of an evaluation
        level = snap_to_schedule(numbers[0], self.schedule, self.last_sigma)
        rest, due = numbers[1 : len(flat)], numbers[len(flat) : len(flat) + len(expected)]
        answers = tuple(numbers[len(flat) + len(expected) :])
        self._fetched(rest[2 * self.batch :])
        estimates = [
            rest[2 * i + (1 if self.guided.last_sigma(i) == level else 0)]
            if self.computed[i]
            else math.inf
            for i in range(self.batch)
        ]
        known = [None if n < 0 else int(n) for n in due] or [None] * self.batch
        states = tuple(self._state(i, estimates[i], known[i]) for i in range(self.batch))
        step, steps = self.place(level)
        weight = self.weights[step]
        seen = Observation(
            self.evaluations, level, states, step, steps, weight, self.schedule, self.euler, answers
        )
        actions = list(self.actor.act(seen))
        self.same_sigma = self.same_sigma + 1 if self.last_sigma == level else 0
        self.last_sigma = level
        zeros = [0.0] * self.batch
        return Evaluation(
            self.evaluations,
            level,
            actions,
            estimates,
            self.same_sigma,
            spent=zeros[:],
            dense=zeros[:],
            asked=numbers[0],
        )

    def _looks(self, x: Tensor, errors: Sequence[tuple[Tensor, Tensor]]) -> list[HeadInput | None]:
        """What learned policies see of the images; None for one that was not computed yet."""
        out: list[HeadInput | None] = []
        for i in range(self.batch):
            points, before = self.guided.points(i), self.last_x
            if not points or before is None or before.shape != x.shape:
                out.append(None)
                continue
            shown = self.features.mixed.get(i) if self.features else None
            out.append(
                HeadInput(
                    x[i],
                    x[i] - before[i],
                    points[-1].value,
                    self.pooled.get(i),
                    shown,
                    errors[i][0],
                )
            )
        return out

    def place(self, sigma: float) -> tuple[int, int]:
        """Step of the schedule that `sigma` belongs to, and the number of steps."""
        steps = max(1, len(self.schedule) - 1)
        above = bisect.bisect_right(self.schedule, -sigma * (1 - 1e-6), key=lambda level: -level)
        return min(max(above - 1, 0), steps - 1), steps

    def _expect(self, x: Tensor, sigma: Tensor) -> list[Tensor]:
        """Number of due tokens of each image, where a policy asks for it."""
        if not self.regions or not self.regions.threshold:
            return []
        if self._on_device is None:
            levels = torch.tensor(self.schedule or (0.0,), device=sigma.device)
            self._on_device = levels, torch.tensor(self.weights, device=sigma.device)
        levels, weights = self._on_device  # as `place`, but without asking the device for sigma
        weight = weights.take(((levels >= sigma * (1 - 1e-6)).sum() - 1).clamp(0, len(weights) - 1))
        moved = self.last_x is not None and self.last_x.shape == x.shape
        return [
            self.regions.expect(
                i,
                self.guided.points(i),
                sigma,
                self.order,
                self.reach,
                weight,
                (x[i] - self.last_x[i]) / sigma if moved else None,
            )
            for i in range(self.batch)
        ]

    def _state(self, image: int, error: float, due: int | None) -> ImageState:
        regions = self.regions
        tokens = regions.state(image, self.guided, due) if regions else None
        since_dense = regions.since_dense[image] if regions else -1
        points = self.guided.points(image)
        levels = (
            ()
            if any(isinstance(p.sigma, Tensor) for p in points)
            else tuple(float(p.sigma) for p in points)
        )
        return ImageState(
            self.computed[image],
            self.since[image],
            error,
            self.measured[image],
            since_dense,
            tokens,
            self.since_measured[image],
            levels,
            *self.trends.get(image, (None, None)),
        )

    def _error(self, image: int, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Estimated forecast error: as the noise level has moved on, and for a second look at the
        same level."""
        unknown = sigma.new_full((), math.inf, dtype=torch.float32)
        points = self.guided.points(image)
        estimate = estimate_error(points, sigma, self.order)
        if self.last_x is None or self.last_x.shape != x.shape or not points:
            return (unknown if estimate is None else estimate), unknown
        # At an unchanged denoised the derivative moves with x alone: d' - d = (x' - x) / sigma.
        moved = (x[image] - self.last_x[image]).abs().mean() / (
            sigma * points[-1].value.abs().mean()
        ).clamp_min(1e-12)
        return (unknown if estimate is None else estimate), moved.float()

    def _waiting(self) -> list[Tensor]:
        """What was measured and is not yet fetched, 0-d."""
        return [m for _, _, m in self.pending] + [
            number for _, pair in self.turns for number in pair
        ]

    def _fetched(self, values: list[float]) -> None:
        errors, turned = values[: len(self.pending)], values[len(self.pending) :]
        for (evaluation, image, _), value in zip(self.pending, errors, strict=True):
            self.measured[image] = value
            self.measured_log[evaluation, image] = value
        for (image, _), moved, slope in zip(self.turns, turned[::2], turned[1::2], strict=True):
            self.trends[image] = moved, None if math.isnan(slope) else slope
        self.pending, self.turns = [], []

    def end(self, evaluation: Evaluation, x: Tensor, denoised: Tensor) -> None:
        """Remember what was computed: the guided derivative (x - denoised) / sigma of each image
        that ran."""
        self.evaluations += 1
        for key in (
            self.slots.keys() - evaluation.slots
        ):  # a prompt or a ControlNet ended: its history ends with it
            del self.slots[key]
        ran = evaluation.images(Mode.RUN)
        if evaluation.sigma > 0 and ran:
            derivative = (x - denoised) / evaluation.sigma
            for i in ran:
                self._remember(evaluation, i, derivative[i])
            if len(ran) == self.batch or self.last_x is None:
                self.last_x = x.clone()
            else:
                for i in ran:
                    self.last_x[i] = x[i]
        for i in range(self.batch):
            computed = i in ran
            self.computed[i] += computed
            self.since[i] = 0 if computed else self.since[i] + 1
            if evaluation.actions[i].measures:
                self.since_measured[i] = 0
            elif computed and self.since_measured[i] >= 0:
                self.since_measured[i] += 1
            if self.regions and not computed:
                self.regions.pass_over(i)

    def _remember(self, evaluation: Evaluation, image: int, derivative: Tensor) -> None:
        action, points, where = evaluation.actions[image], self.guided.points(image), None
        if self.regions and action.tokens is not None:
            where = self.regions.grid.mask(action.tokens)
        if len(points) > self.order and self.guided.last_sigma(image) != evaluation.sigma:
            guess = self.guided.forecast([image], evaluation.sigma, self.order, self.reach)[0]
            self.pending.append((evaluation.index, image, relative_l1(guess, derivative, where)))
        if (
            self.history
            and points
            and where is None
            and self.guided.last_sigma(image) != evaluation.sigma
        ):
            part = (
                None
                if self.mask is None
                else self.mask[image % len(self.mask)].to(derivative.device)
            )
            self.turns.append(
                (image, extrapolation_skill(points, evaluation.sigma, derivative, part))
            )
        if self.regions:
            self.regions.remember(image, action, derivative, points[-1].value if points else None)
        self.guided.add(image, evaluation.sigma, derivative, where)

    def finish(self) -> None:
        """Fetch what was measured last; called once when the run has ended."""
        if self.pending or self.turns:
            self._fetched(torch.stack(self._waiting()).tolist())

    def drop(self) -> None:
        """Let go of all tensors; what was counted and measured stays."""
        for track in (self.guided, *self.slots.values(), *self.residuals.values()):
            track.drop()
        self.slots, self.residuals, self.pooled, self.pending, self.turns = {}, {}, {}, [], []
        self.features = self.last_x = self.mask = self._on_device = None
        if self.regions:
            self.regions.drop()

    @property
    def bytes(self) -> int:
        """Memory of all histories."""
        tracks = [self.guided, *self.slots.values(), *self.residuals.values()]
        own = 0 if self.last_x is None else self.last_x.numel() * self.last_x.element_size()
        shown = self.features.bytes if self.features else 0
        return own + shown + sum(track.bytes for track in tracks)
