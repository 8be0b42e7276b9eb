"""Runs whose computed steps are settled beforehand, and a search of them at random.

Every rival here is one of these: it differs in which steps it computes and in the weights that its
predictions have."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rapid_core.types import (
    FULL,
    Action,
    Actor,
    Mode,
    Observation,
    Policy,
    Requirements,
    Window,
)

FLIPS = 0.2  # share of tries that change the order of the predictions and not the mask


def growing(count: int, steps: int, warm_up: int = 1, growth: float = 0.0) -> tuple[bool, ...]:
    """Exactly `count` of `steps` evaluations: `warm_up` in a row, then one in every window of steps,
    which are rounded down and grow by `growth` steps from one to the next (Spectrum's schedule;
    TaylorSeer's with no growth). The first window is the smallest whole one that does not compute
    too many; what is left then goes to the warm-up."""
    count = min(max(count, 1), steps)
    window = 1.0
    while (chosen := _windows(min(warm_up, count), window, growth, steps)) and len(chosen) > count:
        window += 1.0
    while len(chosen) < count:  # one or none more each time: no window is empty
        warm_up += 1
        chosen = _windows(warm_up, window, growth, steps)
    return tuple(step in chosen for step in range(steps))


def _windows(warm_up: int, window: float, growth: float, steps: int) -> list[int]:
    chosen = list(range(warm_up))
    while (following := chosen[-1] + int(window)) < steps:
        chosen.append(following)
        window += growth
    return chosen


@dataclass(frozen=True, kw_only=True)
class MaskPolicy(Policy):
    """Computes the steps of a mask."""

    technique: ClassVar[str] = "mask"

    computed: tuple[bool, ...]
    """(N,) whether each step of a run of N is computed; the first always is."""

    @property
    def requirements(self) -> Requirements:
        """Whole evaluations are skipped, by weights of as many derivatives as are computed."""
        return Requirements(
            modes=frozenset((Mode.SKIP, Mode.RUN)),
            history=sum(self.computed),
            decides_schedule=True,
        )

    def start(self, window: Window, image: int = 0) -> MaskActor:  # noqa: ARG002
        """An actor for one image; a mask is about whole runs, so the window has no say."""
        return MaskActor(self)

    @abstractmethod
    def skip(self, nodes: Sequence[int], observation: Observation) -> Action:
        """What stands for a step that is not computed. nodes: the steps that were, oldest first, as
        many as the observation's history."""

    def to_record(self) -> dict[str, Any]:
        """Its settings."""
        return {"technique": self.technique, **vars(self), "computed": sum(self.computed)}


class MaskActor(Actor):
    """The mask for one image."""

    def __init__(self, policy: MaskPolicy):
        self.policy = policy

    def act(self, observation: Observation) -> Action:
        """Full or skip, as the mask says. Raises ValueError for a run of another length."""
        if observation.steps != len(self.policy.computed):
            raise ValueError(
                f"a mask of {len(self.policy.computed)} steps was given a run of {observation.steps}"
            )
        if self.policy.computed[observation.step] or not observation.history:
            return FULL
        nodes = [observation.sigmas.index(sigma) for sigma in observation.history]
        return self.policy.skip(nodes, observation)


@dataclass(frozen=True, kw_only=True)
class WeightedPolicy(MaskPolicy):
    """A mask whose predictions are weighted sums, with the step's number as the variable; under
    Euler they are the derivative at the skipped sigma, as published, and not its mean over the
    step."""

    def skip(self, nodes: Sequence[int], observation: Observation) -> Action:
        """The weights at this step."""
        weights = self.weights(nodes, observation.step)
        pairs = zip(observation.history, map(float, weights), strict=True)
        return Action(Mode.SKIP, prediction_weights=tuple(pairs))

    @abstractmethod
    def weights(self, nodes: Sequence[int], step: int) -> Sequence[float]:
        """Weights of the values computed at `nodes`, for the value at `step`."""


@dataclass(frozen=True, kw_only=True)
class StaticPolicy(MaskPolicy):
    """A mask with the simplest predictions: the last value, or the line over sigma."""

    technique: ClassVar[str] = "static_mask"

    order: int = 0
    """0: the last value; 1: the line through the latest two."""

    @property
    def requirements(self) -> Requirements:
        """The engine's own polynomial predicts."""
        return Requirements(
            modes=frozenset((Mode.SKIP, Mode.RUN)),
            prediction_order=self.order,
            decides_schedule=True,
        )

    def skip(self, nodes: Sequence[int], observation: Observation) -> Action:  # noqa: ARG002
        """The engine's polynomial."""
        return Action(Mode.SKIP)


def searched(
    count: int, steps: int, score: Callable[[StaticPolicy], float], tries: int, seed: str
) -> StaticPolicy:
    """The best of `tries` masks of `count` of `steps` evaluations, more `score` being better: one
    evenly spaced, then half of them anywhere, then the best so far with one evaluation moved."""
    chance = random.Random(seed)
    best = StaticPolicy(computed=growing(count, steps), order=1)
    top = score(best)
    for number in range(1, tries):
        mask, order = best.computed, chance.randrange(2)
        if number <= tries // 2:
            mask = _of(chance.sample(range(1, steps), count - 1), steps)
        elif chance.random() < FLIPS:
            order = 1 - best.order
        else:
            mask, order = _moved(mask, chance), best.order
        tried = StaticPolicy(computed=mask, order=order)
        value = score(tried)
        if value > top:
            best, top = tried, value
    return best


def _of(chosen: Collection[int], steps: int) -> tuple[bool, ...]:
    """The mask of these steps and the first."""
    return tuple(i == 0 or i in chosen for i in range(steps))


def _moved(mask: tuple[bool, ...], chance: random.Random) -> tuple[bool, ...]:
    """A mask with one of its steps elsewhere, where there is room."""
    chosen = [i for i, computed in enumerate(mask) if computed and i]
    free = [i for i, computed in enumerate(mask) if not computed]
    if not chosen or not free:
        return mask
    gone = chance.choice(chosen)
    return _of([*(i for i in chosen if i != gone), chance.choice(free)], len(mask))
