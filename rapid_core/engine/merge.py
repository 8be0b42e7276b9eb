"""Several techniques on one model: one decision out of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..types import FULL, Action, Actor, HeadInput, Mode, Observation

ORDER = (Mode.SKIP, Mode.REUSE, Mode.RUN)  # from least to most


@dataclass
class CompositeActor:
    """Several techniques on one model: the least that any of them asks for is computed."""

    actors: tuple[Actor, ...]

    @property
    def notes(self) -> list[str]:
        """What the techniques have to say about the run."""
        return [text for actor in self.actors for text in getattr(actor, "notes", ())]

    @property
    def needs_logits(self) -> bool:
        """Whether any technique looks at latents."""
        return any(getattr(actor, "needs_logits", False) for actor in self.actors)

    def ask(self, looks: Sequence[HeadInput | None], sigma: Tensor) -> Tensor | None:
        """What the technique that looks at latents wants fetched; of several the last."""
        asking = [actor for actor in self.actors if getattr(actor, "needs_logits", False)]
        return asking[-1].ask(looks, sigma) if asking else None

    def act(self, observation: Observation) -> tuple[Action, ...]:
        if not self.actors:  # none of the techniques can work on this model
            return (FULL,) * len(observation.images)
        answers = [actor.act(observation) for actor in self.actors]
        return tuple(self._least(choices) for choices in zip(*answers, strict=True))

    def _least(self, choices: tuple[Action, ...]) -> Action:
        level = min((c.level for c in choices), key=ORDER.index)
        if level is not Mode.RUN:
            return Action(level, weights=next((c.weights for c in choices if c.weights), None))
        tokens = next((c.tokens for c in choices if c.tokens is not None), None)
        density = min(c.density for c in choices)
        measures = next((c.measures for c in choices if c.measures), None)
        return Action(
            level, tokens, density, measures if tokens is None and density == 1.0 else None
        )
