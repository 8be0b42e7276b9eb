"""Region-adaptive sampling (RAS, Liu et al. 2025): only the tokens that matter pass the model.

The signal is a statistic of the guided derivative at each token, raised with the time since the
token was last computed; or an estimate of each token's error, added up. Differences to the paper's
code, on purpose: a neglected token rises in priority whatever the direction of the selection,
counters start anew when a token is computed, and nothing is counted in absolute step numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ...reasons import ReasonCode
from ...types import (
    FULL,
    Action,
    Actor,
    Aim,
    KVKind,
    Mode,
    Must,
    Observation,
    Policy,
    Reason,
    Requirements,
    TokenRequirements,
    TokenState,
    Window,
)
from .priority import (
    FIRST,
    FOCUS,
    block_size,
    first_per_frame,
    random,
    ranked,
    round_robin,
    round_to_blocks,
    selectable_only,
    starving_age,
)

INACTIVE = ("last value", "predict", "interpolate")
MAX_AGE = 4  # evaluations after which a token is computed whatever its error estimate promises
MAX_WAIT = 2  # evaluations that few tokens may wait for others
# Of the tokens that may be computed, fewer are few. An evaluation in which most tokens are predicted
# is less exact for the others, too, through their keys and values: tokens are computed together.
FEW = 0.3
# Evaluations after which, by error estimates, all tokens are computed where an inpaint mask keeps
# some: nothing else comes back to those.
MAX_MASKED_AGE = 8
# Settings that have no effect where error estimates choose the tokens.
ONLY_BY_METRIC = ("metric", "direction", "starvation", "slope")

COMPUTE_ALL = Action(must=Must.ALL)
SKIP = Action(Mode.SKIP)


@dataclass(frozen=True, kw_only=True)
class RegionPolicy(Policy):
    """Which image tokens are computed, and what the others do. Tokens are chosen either by a metric
    and a share, or, with `error_threshold`, by an estimate of the error of each."""

    technique: ClassVar[str] = "region_adaptive"

    keep_ratio: float
    """Share of the image tokens that is computed, the mean over the evaluations that choose, in
    (0, 1]; with `error_threshold` the share above which all are computed."""
    warm_up: float = 0.15
    """Share of the steps at the beginning that compute all tokens."""
    tail: float = 0.05
    """Share of the steps at the end that compute all tokens."""
    refresh_interval: int = 3
    """Evaluations that choose tokens between two that compute all; 0 for no refresh."""
    resets: tuple[float, ...] = ()
    """Shares of the schedule at which all tokens are computed."""
    drift_threshold: float = 0.0
    """Relative L1 error of the prediction of the computed tokens above which the next evaluation
    computes all; 0 for no such check."""
    error_threshold: float = 0.0
    """Above 0: a token is computed when the estimated error of its predictions, added up since it
    was computed, reaches this; as many as there are, none (skip), or all."""
    metric: str = "change"
    """What makes a token matter, one of METRICS."""
    direction: str = "high"
    """Which values of the metric come first, one of DIRECTIONS."""
    starvation: float = 0.3
    """k of the priority +-log(metric) + k * age."""
    slope: float = 0.0
    """How the share changes over the run: from keep_ratio * (1 + slope) to keep_ratio * (1 -
    slope)."""
    inactive: str = "predict"
    """What tokens that are not computed do, one of INACTIVE: "last value"; "predict", along a line;
    "interpolate", along a line and as their computed neighbours differed from theirs."""
    aim: Aim | None = Aim.FULL_PICTURE
    """What a token's gap is corrected towards when it is computed again; None for no correction."""
    reach: float = 4.0
    """How far a token's prediction may go, in distances of the two evaluations it is made from."""
    kv: KVKind = KVKind.PREDICT
    """How keys and values of tokens that are not computed are kept."""
    memory_limit: float = 0.0
    """GiB for keys and values; 0 for the default bound."""
    focus: Tensor | None = field(default=None, compare=False, repr=False)
    """The user's mask (B or 1, H, W) of any size, 0 .. 1: tokens that come first, or, with
    `error_threshold`, are computed at half of it."""

    @property
    def prediction_order(self) -> int:
        """Order of the polynomial that stands for tokens that are not computed."""
        return 0 if self.inactive == "last value" else 1

    @property
    def requirements(self) -> Requirements:
        """Some tokens or, where a mask or small errors leave none to compute, no model call."""
        by_error = bool(self.error_threshold)
        advice = ReasonCode.ADVISE_THRESHOLD if by_error else ReasonCode.ADVISE_SHARE
        return Requirements(
            modes=frozenset((Mode.RUN, Mode.SKIP)),
            prediction_order=self.prediction_order,
            tokens=TokenRequirements(
                kv=self.kv,
                memory_limit=self.memory_limit,
                reach=self.reach,
                error_threshold=self.error_threshold,
                max_age=MAX_AGE if by_error else 0,
                focus=self.focus,
                interpolate=self.inactive == "interpolate",
                attention_mass=self.metric == "attention" and not by_error,
            ),
            aim=self.aim,
            no_savings_advice=Reason(advice),
        )

    @override
    def start(self, window: Window, image: int = 0) -> RegionActor:
        """An actor for one image. Shares are of the whole run: the window has no say."""
        return RegionActor(self)

    def to_record(self) -> dict[str, Any]:
        """Its settings, without those that have no effect."""
        dead = ("focus", "kv", *(ONLY_BY_METRIC if self.error_threshold else ()))
        settings = {name: value for name, value in vars(self).items() if name not in dead}
        return {
            "technique": self.technique,
            **settings,
            "aim": None if self.aim is None else self.aim.value,
            "kv_cache": self.kv.value,
            "mask": self.focus is not None,
        }

    def smallest_share(self, state: TokenState) -> float:
        """Smallest share of the tokens that may be chosen which an evaluation of the run
        computes."""
        if not self.slope or not state.selectable:
            return self.keep_ratio
        lowest = self.keep_ratio * (1 - abs(self.slope))
        return min(1.0, max(lowest, block_size(state.number) / state.selectable))


class RegionActor(Actor):
    """Answers from what it is shown of one image; the only state is the settings."""

    def __init__(self, policy: RegionPolicy):
        self.policy = policy

    def act(self, observation: Observation) -> Action:
        """All tokens, some, or none."""
        state = observation.tokens
        if state is None or observation.since_full < 0:
            return FULL
        if self._must_compute_all(observation):
            return COMPUTE_ALL
        if self.policy.error_threshold:
            return self._by_error(observation, state)
        return self._by_metric(observation, state)

    def _must_compute_all(self, observation: Observation) -> bool:
        """Whether the settings that are about whole evaluations ask for all tokens."""
        policy = self.policy
        step = observation.step
        steps = observation.steps
        if step < math.ceil(policy.warm_up * steps):
            return True
        if step >= steps - math.ceil(policy.tail * steps):
            return True
        if policy.refresh_interval and observation.since_full >= policy.refresh_interval:
            return True
        # A reset belongs to a step; a second evaluation in it (heun) need not be full again.
        if any(step == round(r * steps) for r in policy.resets) and observation.since_full > 0:
            return True
        measured = observation.measured_error
        drifted = measured is not None and measured > policy.drift_threshold
        return bool(policy.drift_threshold) and drifted

    def _by_metric(self, observation: Observation, state: TokenState) -> Action:
        """The share of tokens with the highest priority."""
        share = self._share(observation)
        count = round_to_blocks(share * state.selectable, state.number)
        count = min(count, state.selectable)
        if count >= state.number:
            return FULL
        if not count:
            return SKIP
        order = self._priority(observation, state)
        if state.grid[0] > 1:
            tokens = first_per_frame(order, state, count)
        else:
            tokens = order.topk(count).indices
        return Action(Mode.RUN, tokens.sort().values)

    def _by_error(self, observation: Observation, state: TokenState) -> Action:
        """All tokens whose error or age is over its limit, and with them those that are near it,
        rounded up to whole blocks; few wait, but not for long."""
        over = state.over_threshold
        near = state.near_threshold
        if over is None or near is None or state.error is None:
            return FULL
        many = near > self.policy.keep_ratio * state.selectable
        block = block_size(state.number)
        few = over < max(block, FEW * state.selectable)
        waits = over == 0 or (few and observation.since_computed < MAX_WAIT)
        if state.selectable < state.number:  # what a mask keeps is never over its limit
            if observation.since_full >= MAX_MASKED_AGE:
                return COMPUTE_ALL
        elif many and not waits:
            return FULL
        if waits:
            return SKIP
        if many:
            count = state.selectable
        else:
            count = min(math.ceil(near / block) * block, state.selectable)
        if count >= state.number:
            return FULL
        order = torch.where(state.age >= MAX_AGE, FIRST + state.error, state.error)
        tokens = selectable_only(order, state).topk(count).indices
        return Action(Mode.RUN, tokens.sort().values)

    def _share(self, observation: Observation) -> float:
        """Share of tokens at this step, on the line that `slope` gives."""
        policy = self.policy
        steps = observation.steps
        first = math.ceil(policy.warm_up * steps)
        last = steps - math.ceil(policy.tail * steps) - 1
        place = 0.5 if last <= first else (observation.step - first) / (last - first)
        return min(1.0, max(0.0, policy.keep_ratio * (1 + policy.slope * (1 - 2 * place))))

    def _priority(self, observation: Observation, state: TokenState) -> Tensor:
        """Priority (N,) of the tokens, float32."""
        policy = self.policy
        if policy.metric == "random":
            order = random(state, observation.index, observation.image)
        else:
            if policy.metric == "rounds":
                order = round_robin(state)
            else:
                order = ranked(policy.metric, policy.direction, policy.starvation, state)
            starving = state.age >= starving_age(policy.smallest_share(state))
            order = torch.where(starving, FIRST + state.age.float(), order)
        if state.focus is not None:
            order = order + FOCUS * state.focus
        return selectable_only(order, state)
