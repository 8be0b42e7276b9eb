"""Policies whose answers are a function of what they see, for tests that say themselves what is
computed; and what a run of theirs holds."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch


def probe(types: ModuleType, act: Callable[[Any], Any], **needs: Any) -> Any:
    """A policy of the pack's module `types` that answers `act(observation)`; needs: its
    `Requirements`."""

    class ProbeActor(types.Actor):
        def act(self, observation):
            return act(observation)

    class Probe(types.Policy):
        technique = "probe"

        @property
        def requirements(self):
            return types.Requirements(**needs)

        def start(self, window, image=0):
            return ProbeActor()

        def to_record(self):
            return {"technique": self.technique}

    return Probe()


def some_tokens(share: float, seed: int = 0, uneven: int = 0) -> Callable[[Any], Any]:
    """Random tokens (K,) of every second evaluation, None of the others; uneven: how many fewer of
    each further image."""

    def choose(observation):
        if observation.index % 2 == 0 or observation.tokens is None:
            return None
        number = observation.tokens.number
        seeded = seed + 10 * observation.index + observation.image
        generator = torch.Generator().manual_seed(seeded)
        count = max(1, int(share * number) - uneven * observation.image)
        return torch.randperm(number, generator=generator)[:count].sort().values

    return choose


def choosing(
    pack_module: Callable[[str], ModuleType],
    model: Any,
    choose: Callable[[Any], Any],
    kv_cache: str = "last value",
) -> Any:
    """A clone of `model` whose evaluations compute the tokens that `choose(observation)` gives, all
    where that is None."""
    types = pack_module("rapid_core.types")

    def act(observation):
        return types.Action(tokens=choose(observation))

    tokens = types.TokenRequirements(kv=types.KVKind(kv_cache))
    policy = probe(types, act, tokens=tokens)
    return pack_module("rapid_core.comfy.chain").attach(model, policy)


def kept_tensors(store: Any) -> list[torch.Tensor]:
    """Keys and values that a `KVStore` holds."""
    return [tensor for entry in store._entries.values() for tensor in entry.tensors]


def falsifier(pack_module: Callable[[str], ModuleType]) -> Callable[[dict], None]:
    """falsify(model_options): every cached key and value of the run times 1.5."""
    run_of = pack_module("rapid_core.comfy.bind").run_of

    def falsify(options):
        for tensor in kept_tensors(run_of(options).batched.store):
            tensor.mul_(1.5)

    return falsify
