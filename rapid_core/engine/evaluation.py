"""One evaluation of the guided model while it goes on: its decision, what it cost, and why anything
was computed that need not have been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from ..types import FULL, Action, Mode, Reason


@dataclass
class Evaluation:
    """One evaluation of the guided model in progress; lists have an entry an image."""

    index: int
    sigmas: list[float]
    """As the schedule has them, see `quadrature.sigmas.snap_to_schedule`."""
    actions: list[Action]
    error_estimates: list[float]
    steps: list[int] = field(default_factory=list)
    occurrence: int = 0
    """n-th evaluation in a row at the first image's sigma, from 0."""
    told_sigma: float = 0.0
    """The first image's sigma as the sampler gave it, by which the host begins and ends
    conditionings."""
    reasons: list[Reason] = field(default_factory=list)
    cond_lists: Counter[Hashable] = field(default_factory=Counter)
    """Times each list of conditionings was evaluated."""
    cond_calls: Counter[Hashable] = field(default_factory=Counter)
    """Times each conditioning passed the model."""
    cond_keys: set[Hashable] = field(default_factory=set)
    """Keys of the conditionings' histories that were asked for."""
    cost: list[float] = field(default_factory=list)
    """FLOPs that were spent."""
    full_cost: list[float] = field(default_factory=list)
    """FLOPs of the same evaluation in full."""
    obeyed: set[int] = field(default_factory=set)
    """Images of which a model call passed the blocks over, or ran them on some tokens."""
    sparse_images: set[int] = field(default_factory=set)
    """Images with sparse attention, or measured against dense attention."""

    def __post_init__(self) -> None:
        images = len(self.actions)
        self.cost = self.cost or [0.0] * images
        self.full_cost = self.full_cost or [0.0] * images

    @property
    def sigma(self) -> float:
        """Sigma of the first image."""
        return self.sigmas[0]

    @property
    def own_sigmas(self) -> tuple[float, ...]:
        """Each image's sigma where they differ; else empty."""
        return tuple(self.sigmas) if len(set(self.sigmas)) > 1 else ()

    def images(self, mode: Mode) -> list[int]:
        """Images decided for a mode."""
        return [i for i, action in enumerate(self.actions) if action.mode is mode]

    def partial(self) -> list[int]:
        """Images of which only some tokens run."""
        return [i for i, action in enumerate(self.actions) if action.tokens is not None]

    def in_part(self) -> list[int]:
        """Images of which the model computes a part: blocks are reused, or only some tokens run."""
        return [*self.images(Mode.REUSE), *self.partial()]

    def sparse(self) -> list[int]:
        """Images that were decided to have sparse attention."""
        return [i for i, action in enumerate(self.actions) if action.density < 1.0]

    def add_reason(self, reason: Reason) -> None:
        """Note why something was computed that need not have been; once each."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    def force_full(
        self, reason: Reason, images: Iterable[int] | None = None, attention: bool = False
    ) -> None:
        """Compute all tokens of these images (default: of all, with dense attention), and say why.
        attention: their attention, too, is dense."""
        attention = attention or images is None
        changed = False
        for i in range(len(self.actions)) if images is None else images:
            action = self.actions[i]
            if action.full if attention else action.all_tokens:
                continue
            self.actions[i] = FULL if attention else Action(density=action.density)
            changed = True
        if changed:
            self.add_reason(reason)
