"""One evaluation of the guided model while it goes on: its decision, what it cost, and why anything
was dense."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..types import FULL, Action, Mode


@dataclass
class Evaluation:
    """One evaluation of the guided model in progress."""

    index: int
    sigma: float
    actions: list[Action]
    errors: list[float]
    occurrence: int = 0
    reasons: list[str] = field(default_factory=list)
    conditions: Counter = field(default_factory=Counter)  # times each condition list was evaluated
    streams: Counter = field(
        default_factory=Counter
    )  # times each conditioning stream passed the model
    slots: set = field(default_factory=set)  # keys of the condition histories that were asked for
    spent: list[float] = field(default_factory=list)  # FLOPs per image
    dense: list[float] = field(default_factory=list)
    sparse_images: set[int] = field(
        default_factory=set
    )  # images with sparse attention, or measured against dense
    asked: float = 0.0  # the noise level as the sampler gave it, by which conditions begin and end; `sigma`: as meant

    def images(self, level: Mode) -> list[int]:
        """Images decided for a level."""
        return [i for i, chosen in enumerate(self.actions) if chosen.level is level]

    def partial(self) -> list[int]:
        """Images of which only some tokens run."""
        return [i for i, chosen in enumerate(self.actions) if chosen.tokens is not None]

    def add_reason(self, reason: str) -> None:
        """Note why something was computed that need not have been; once each."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    def sparse(self) -> list[int]:
        """Images whose attention is sparse."""
        return [i for i, chosen in enumerate(self.actions) if chosen.density < 1.0]

    def force_full(
        self, reason: str, images: list[int] | None = None, attention: bool = False
    ) -> None:
        """Compute all tokens of these images (default: of all, with dense attention), and say why.
        attention: their attention, too, is dense."""
        attention = attention or images is None
        images = list(range(len(self.actions))) if images is None else images
        changed = [
            i for i in images if not (self.actions[i].dense if attention else self.actions[i].whole)
        ]
        for i in changed:
            self.actions[i] = FULL if attention else Action(density=self.actions[i].density)
        if changed:
            self.add_reason(reason)
