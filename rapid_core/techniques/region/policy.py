"""Region-adaptive sampling (RAS, Liu et al. 2025): only the tokens that matter pass the model.

The signal is a statistic of the guided derivative at each token, raised with the time since the
token was last computed. Differences to the paper's code, on purpose: a neglected token rises in
priority whatever the direction of the selection, counters start anew when a token is computed, and
nothing is counted in absolute step numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...token_grid import TokenGrid
from ...types import FULL, Action, ImageState, Mode, Observation, Sparsity, TokenState, Window

METRICS = ("std", "l2", "change", "attention", "random", "rounds")
INACTIVE = ("hold", "forecast", "interpolate")
DIRECTIONS = ("low", "high")
DUE_AGE = 4  # evaluations after which a token is due whatever its forecast promises
WAIT = 2  # evaluations that fewer than a block of due tokens may wait for others
KEPT_AGE = (
    8  # evaluations after which clocks compute tokens that an inpaint mask keeps: with all others
)
PRECISIONS = (
    "forecast",
    "model",
    "8 bit",
    "pooled",
    "host memory",
    "none",
)  # of cached keys and values


@dataclass(frozen=True)
class RegionPolicy:
    """keep_ratio: share of image tokens computed, mean over the sparse evaluations, in (0, 1].

    warm_up, tail: shares of the steps at the beginning and end that compute all tokens.
    refresh_interval: sparse evaluations between two that compute all tokens; 0 = none. resets:
    shares of the schedule at which all tokens are computed. drift_threshold: relative L1 error of
    the forecast of computed tokens above which the next evaluation computes all; 0 = off.
    error_threshold: above 0, a token is computed when the estimated error of its forecasts, added
    up since it was computed, reaches it: as many as are due, none (hold), or all (but for what an
    inpaint mask keeps) where that is more than keep_ratio; metric, direction, starvation and slope
    do not count then. metric, direction: which tokens come first ("low" values of the metric or
    "high" ones). starvation: k of the priority +-log(metric) + k * age. slope: the share runs from
    keep_ratio * (1 + slope) to keep_ratio * (1 - slope). inactive: what the other tokens do. reach:
    how far a forecast may go, in distances of the two evaluations it is made from. kv_cache,
    memory_limit (GiB, 0 = none): how keys and values are kept, and how much of them. focus: (1 or
    B, H, W), 0 .. 1, of any size: tokens that come first (with error_threshold: that are due at
    half of it). seed: of the random metric."""

    keep_ratio: float
    warm_up: float = 0.15
    tail: float = 0.05
    refresh_interval: int = 3
    resets: tuple[float, ...] = ()
    drift_threshold: float = 0.0
    error_threshold: float = 0.0
    metric: str = "change"
    direction: str = "high"
    starvation: float = 0.3
    slope: float = 0.0
    inactive: str = "forecast"
    forecast_order: int = 1
    reach: float = 4.0
    kv_cache: str = "forecast"
    memory_limit: float = 0.0
    focus: Tensor | None = field(default=None, compare=False, repr=False)
    seed: int = 0
    start_percent: float = 0.0
    end_percent: float = 1.0
    technique: str = "region_adaptive"
    regional: bool = True
    history: int = 0
    sparsity: Sparsity | None = None

    @property
    def levels(self) -> frozenset[Mode]:
        return frozenset((Mode.RUN, Mode.SKIP))  # with a fixed share where a mask keeps everything

    def least(self, state: TokenState) -> float:
        """Smallest share of the tokens that may be chosen which a sparse evaluation of the run
        computes."""
        if not self.slope or not state.free:
            return self.keep_ratio
        return min(
            1.0, max(self.keep_ratio * (1 - abs(self.slope)), block_of(state.number) / state.free)
        )

    @property
    def due(self) -> tuple[float, int]:
        """Drift and age at which a token is due."""
        return self.error_threshold, DUE_AGE

    def start(self, window: Window) -> RegionActor:
        return RegionActor(self)

    def focused(self, mask: Tensor | None) -> RegionPolicy:
        """These settings with a mask."""
        return replace(self, focus=mask)

    def settings(self) -> dict:
        return {
            **{k: v for k, v in vars(self).items() if k != "focus"},
            "mask": self.focus is not None,
        }


def per_token_error(threshold: float, keep_ratio: float = 0.75, **cache) -> RegionPolicy:
    """Every token has a clock of its own, and nothing else decides; `cache`: kv_cache and
    memory_limit."""
    return RegionPolicy(
        keep_ratio, warm_up=0.0, tail=0.03, refresh_interval=0, error_threshold=threshold, **cache
    )


def paper(family: str, keep_ratio: float, memory_limit: float = 0.0) -> RegionPolicy:
    """The published schedules: 28 steps of SD3 (start 4, resets 12 and 20) or 30 of Lumina (4, 12
    and 22).

    Metric, hold and starvation as in the paper; other families take SD3's. Lumina's share falls
    over the run, from .6875 to .3125 at a keep_ratio of .5 (its skip list grows by 256 of 4,096
    tokens every 4 steps). Starvation has the sign of the paper's text, not that of its code, which
    lets neglected tokens starve."""
    steps, resets, slope = (
        (30, (12, 22), 0.375) if family in ("lumina2", "z_image") else (28, (12, 20), 0.0)
    )
    return RegionPolicy(
        keep_ratio,
        warm_up=4 / steps,
        tail=0.0,
        refresh_interval=0,
        resets=tuple(r / steps for r in resets),
        metric="std",
        direction="low",
        starvation=0.1,
        slope=slope,
        inactive="hold",
        forecast_order=0,
        kv_cache="model",
        memory_limit=memory_limit,
    )


class RegionActor:
    """Answers from what it is shown; the only state is the settings."""

    needs_logits = False

    def __init__(self, policy: RegionPolicy):
        self.policy = policy

    def act(self, observation: Observation) -> tuple[Action, ...]:
        return tuple(
            self._one(observation, image, number) for number, image in enumerate(observation.images)
        )

    def _one(self, observation: Observation, image: ImageState, number: int) -> Action:
        state = image.tokens
        if state is None or self._all(observation, image):
            return FULL
        if self.policy.error_threshold:
            return self._due(image, state)
        count = min(rounded(self._ratio(observation) * state.free, state.number), state.free)
        if count >= state.number:
            return FULL
        if not count:
            return Action(Mode.SKIP)
        order = priority(self.policy, state, observation, number)
        chosen = per_frame(order, state, count) if state.grid[0] > 1 else order.topk(count).indices
        return Action(Mode.RUN, chosen.sort().values)

    def _due(self, image: ImageState, state: TokenState) -> Action:
        """All tokens that are due, rounded up to whole blocks; fewer than a block wait, but not for
        long."""
        p = self.policy
        if state.due is None or state.drift is None:
            return FULL
        many, some = state.due > p.keep_ratio * state.free, state.free < state.number
        if image.since_dense >= KEPT_AGE if some else many:  # what a mask keeps is never due
            return FULL
        block = block_of(state.number)
        if state.due == 0 or (state.due < block and image.since_computed < WAIT):
            return Action(Mode.SKIP)
        order = torch.where(state.age >= DUE_AGE, 1e6 + state.drift, state.drift)
        order = order if state.wanted is None else order.masked_fill(~state.wanted, -1e9)
        count = state.free if many else min(math.ceil(state.due / block) * block, state.free)
        return (
            FULL
            if count >= state.number
            else Action(Mode.RUN, order.topk(count).indices.sort().values)
        )

    def _all(self, observation: Observation, image: ImageState) -> bool:
        """Whether this evaluation computes all tokens."""
        p, step, steps = self.policy, observation.step, observation.steps
        if (
            image.since_dense < 0
            or step < math.ceil(p.warm_up * steps)
            or step >= steps - math.ceil(p.tail * steps)
        ):
            return True
        if p.refresh_interval and image.since_dense >= p.refresh_interval:
            return True
        # A reset belongs to a step; a second evaluation in it (heun) need not be dense again.
        if any(step == round(r * steps) for r in p.resets) and image.since_dense > 0:
            return True
        return (
            bool(p.drift_threshold)
            and image.measured is not None
            and image.measured > p.drift_threshold
        )

    def _ratio(self, observation: Observation) -> float:
        """Share of tokens at this step, on the line that `slope` gives."""
        p, steps = self.policy, observation.steps
        first, last = math.ceil(p.warm_up * steps), steps - math.ceil(p.tail * steps) - 1
        place = 0.5 if last <= first else (observation.step - first) / (last - first)
        return min(1.0, max(0.0, p.keep_ratio * (1 + p.slope * (1 - 2 * place))))


def rounded(count: float, number: int) -> int:
    """Token counts as matrix units like them: multiples of 64 in big pictures, at least one
    block."""
    block = block_of(number)
    return min(number, max(block, round(count / block) * block))


def block_of(number: int) -> int:
    """Tokens that are chosen together, of `number`."""
    return 64 if number >= 2048 else 16 if number >= 256 else 4


def oldest(share: float) -> int:
    """Age from which a token goes before all others. share: the smallest in the run. With at least
    K of N tokens computed at a time, no token waits longer than oldest + ceil(N / K)
    evaluations."""
    return max(2, math.ceil(2 / share))


def priority(
    policy: RegionPolicy, state: TokenState, observation: Observation, number: int
) -> Tensor:
    """Priority (N,) of the tokens, float32: paper's eq. 1 in logarithms, R = metric * exp(k *
    age)."""
    if policy.metric == "rounds":
        order = state.age.float()  # round-robin: the oldest first, then a checkerboard-like scatter
        spread = torch.arange(state.number, device=order.device)
        order = order + (spread * 0.6180339887) % 1.0
    elif policy.metric == "random":
        generator = torch.Generator().manual_seed(
            policy.seed * 1000003 + observation.index * 1009 + number
        )
        order = torch.rand(state.number, generator=generator).to(state.age.device)
    else:
        sign = 1.0 if policy.direction == "high" else -1.0
        order = (
            sign * metric(policy.metric, state).clamp_min(1e-12).log()
            + policy.starvation * state.age
        )
    if policy.metric != "random":
        late = state.age >= oldest(policy.least(state))
        order = torch.where(late, 1e6 + state.age.float(), order)
    if state.focus is not None:
        order = order + 1e3 * state.focus
    return order if state.wanted is None else order.masked_fill(~state.wanted, -1e9)


def metric(name: str, state: TokenState) -> Tensor:
    """A token's signal (N,), float32, mean over its pixels.

    std: over the channels of the derivative; l2: its norm; change: how much it had changed when
    last computed; attention: what the image's queries gave it."""
    if name == "change":
        return state.change
    if name == "attention" and state.attention is not None:
        return state.attention
    values = state.derivative.float()
    pixels = values.norm(dim=0) if name == "l2" else values.std(dim=0)
    sides = zip(values.shape[-2:], state.grid[1:], strict=True)
    patch = max(math.ceil(pixels / tokens) for pixels, tokens in sides)
    return TokenGrid(tuple(values.shape), patch).to_tokens(pixels)


def per_frame(order: Tensor, state: TokenState, count: int) -> Tensor:
    """The best tokens of each frame that has any to choose, so that none starves; the remainder by
    priority. A frame with fewer than its share leaves the rest to the others."""
    frames = state.grid[0]
    rank = order.view(frames, -1).argsort(1, descending=True).argsort(1).flatten()
    wanted = torch.ones_like(rank, dtype=torch.bool) if state.wanted is None else state.wanted
    quota = count // wanted.view(frames, -1).any(1).sum().clamp_min(1)  # stays on the device
    return torch.where((rank < quota) & wanted, math.inf, order).topk(count).indices
