"""Policies whose answers are a function of what they see, for runs that say themselves what is
computed; what a run of theirs holds; and a run that evaluates the same latent twice."""

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
            del window, image
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


def run_twice(
    model: Any,
    latent: tuple[int, ...],
    positive: Any,
    negative: Any,
    cfg: float,
    falsify: Callable[[dict], None] | None = None,
    sigma: float = 0.7,
    mask: torch.Tensor | None = None,
    others: tuple[tuple[int, ...], ...] = (),
) -> list[torch.Tensor]:
    """The same latent (B, C, ...) and noise level evaluated twice within one run: [first, second].
    falsify: is given the run's model_options between the two; others: shapes (C, ...) of the other
    parts of a latent that has several, which are packed into one."""
    import comfy.nested_tensor
    import comfy.sample
    import comfy.samplers

    zeros: Any = torch.zeros(latent)
    if others:
        parts = [zeros, *(torch.zeros(latent[0], *shape) for shape in others)]
        zeros = comfy.nested_tensor.NestedTensor(parts)
    seen = []

    def function(wrapped, noise, sigmas, extra_args=None, callback=None, disable=None):
        del sigmas, callback, disable
        x = torch.randn(noise.shape, generator=torch.Generator().manual_seed(3))
        s = x.new_ones(x.shape[0]) * sigma
        extra_args = {**(extra_args or {}), "denoise_mask": mask}
        seen.append(wrapped(x, s, **extra_args).clone())
        if falsify is not None:
            falsify(extra_args["model_options"])
        seen.append(wrapped(x, s, **extra_args).clone())
        return seen[-1]

    sigmas = torch.tensor([1.0, sigma, 0.0])
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model,
            zeros,
            cfg,
            comfy.samplers.KSAMPLER(function),
            sigmas,
            positive,
            negative,
            zeros,
            noise_mask=mask,
            disable_pbar=True,
            seed=0,
        )
    return seen
