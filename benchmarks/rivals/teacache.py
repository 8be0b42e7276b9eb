"""TeaCache (Liu et al. 2024, arXiv:2411.19108) on changes that were measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from benchmarks.rivals.mask import MaskPolicy
from rapid_core.types import FULL, Action, Actor, Mode, Observation, Policy, Requirements, Window


@dataclass(frozen=True, kw_only=True)
class TeaCachePolicy(MaskPolicy):
    """What the blocks add is used again while the relative L1 change of the model's output, summed
    up since it was computed, is below a threshold.

    The paper estimates that change: the change of the first block's input, modulated by the
    timestep, through a polynomial fitted once a model. A policy does not see that input, and the
    published polynomials are of other models. Here each step's change is the mean that was measured
    on full runs of development prompts (`Changes`), so the mask is settled beforehand: what is
    missing is how pictures differ, which the modulated input shows little of."""

    technique: ClassVar[str] = "teacache"

    @property
    def requirements(self) -> Requirements:
        """The last residual of the blocks stands for them."""
        return Requirements(modes=frozenset((Mode.REUSE, Mode.RUN)), decides_schedule=True)

    def skip(self, nodes: Sequence[int], observation: Observation) -> Action:  # noqa: ARG002
        """The last residual."""
        return Action(Mode.REUSE)


def accumulated(changes: Sequence[float], threshold: float) -> tuple[bool, ...]:
    """(N,) which steps are computed: the first, the last, and those where the sum of the changes
    since the last computed one reaches the threshold. changes (N,): of each step's output from that
    of the step before."""
    total = 0.0
    computed = []
    for step, change in enumerate(changes):
        total += change
        runs = total >= threshold or step in (0, len(changes) - 1)
        computed.append(runs)
        total = 0.0 if runs else total
    return tuple(computed)


def within(changes: Sequence[float], count: int) -> tuple[bool, ...]:
    """`accumulated` at the threshold that computes the most steps, but no more than `count`; all
    thresholds that make a difference are sums of changes in a row."""
    sums = {sum(changes[a:b]) for a, b in itertools.combinations(range(len(changes) + 1), 2)}
    masks = [accumulated(changes, total * (1 + 1e-9)) for total in sums]
    fitting = [mask for mask in masks if sum(mask) <= max(count, 2)]
    return max(fitting, key=sum)


@dataclass(frozen=True, kw_only=True)
class Changes(Policy):
    """Computes everything, and notes the relative L1 change of every step's derivative from that of
    the step before."""

    technique: ClassVar[str] = "changes"

    seen: dict[tuple[int, int], float] = field(default_factory=dict, compare=False)
    """By image and step; of the last step it is never known."""

    @property
    def requirements(self) -> Requirements:
        """A history, so that changes are measured."""
        return Requirements(history=2, decides_schedule=True)

    def start(self, window: Window, image: int = 0) -> ChangesActor:  # noqa: ARG002
        """An actor for one image."""
        return ChangesActor(self, image)

    def means(self, steps: int) -> list[float]:
        """(N,) mean over the images, 0 for the first step; the last step's is that of the one
        before."""
        images = {image for image, _ in self.seen}
        known = [
            sum(self.seen[image, step] for image in images) / len(images)
            for step in range(1, steps - 1)
        ]
        return [0.0, *known, *known[-1:]]

    def to_record(self) -> dict[str, Any]:
        """Its technique."""
        return {"technique": self.technique}


class ChangesActor(Actor):
    """The changes of one image."""

    def __init__(self, policy: Changes, image: int):
        self.policy = policy
        self.image = image

    def act(self, observation: Observation) -> Action:
        """Full; what has become known is of the step before."""
        if observation.change is not None and observation.step > 1:
            self.policy.seen[self.image, observation.step - 1] = observation.change
        return FULL
