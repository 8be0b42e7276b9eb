"""Several policies on one model: one decision out of theirs, and each is told what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..types import FULL, Action, Actor, HeadInput, Mode, Must, Observation, Reason

ORDER = (Mode.SKIP, Mode.REUSE, Mode.RUN)  # from least to most


def merge_actions(actions: Sequence[Action]) -> Action:
    """The least that any of them asks for, but no less than any of them insists on."""
    if not actions:  # none of the policies can work on this model
        return FULL
    must = max(action.must for action in actions)
    mode = min((action.mode for action in actions), key=ORDER.index)
    if must is Must.NOTHING and mode is not Mode.RUN:
        weights = (action.prediction_weights for action in actions)
        return Action(mode, prediction_weights=next(filter(None, weights), None))
    density = min(action.density for action in actions)
    chosen = (action.tokens for action in actions if action.tokens is not None)
    tokens = None if must is Must.ALL else next(chosen, None)
    measured = (action.measured_density for action in actions if action.measured_density)
    if tokens is not None or density < 1.0:
        return Action(tokens=tokens, density=density)
    return Action(measured_density=next(measured, None))


class CompositeActor(Actor):
    """The actors of all policies for one image.

    safe: of each, whether it asks for everything once skipping is not safe; none where not given."""

    def __init__(self, actors: Sequence[Actor], safe: Sequence[bool] = ()):
        self.actors = tuple(actors)
        self.safe = tuple(safe) or (False,) * len(self.actors)
        self._numbers = [0] * len(self.actors)  # logits that each asked for

    @property
    def notes(self) -> tuple[Reason, ...]:
        """What the policies have to say about the run."""
        return tuple(note for actor in self.actors for note in actor.notes)

    @property
    def wants_logits(self) -> bool:
        """Whether any policy looks at latents."""
        return any(actor.needs_logits for actor in self.actors)

    def logits(self, seen: HeadInput | None, sigma: Tensor) -> Tensor | None:
        """The numbers of all actors, one after another."""
        parts = []
        for k, actor in enumerate(self.actors):
            numbers = actor.logits(seen, sigma) if actor.needs_logits else None
            self._numbers[k] = 0 if numbers is None else numbers.numel()
            if numbers is not None:
                parts.append(numbers.float())
        return torch.cat(parts) if parts else None

    def act(self, observation: Observation, no_skip: bool = False) -> Action:
        """One action out of all actors', each with its own logits. no_skip: the safe ones are not
        asked, and stand for everything."""
        actions = []
        start = 0
        for actor, number, safe in zip(self.actors, self._numbers, self.safe, strict=True):
            own = observation.logits[start : start + number]
            start += number
            seen = observation if own == observation.logits else replace(observation, logits=own)
            actions.append(FULL if no_skip and safe else actor.act(seen))
        return merge_actions(actions)

    def executed(self, action: Action) -> None:
        """Tell every actor."""
        for actor in self.actors:
            actor.executed(action)
