"""References: what the workflow draws for each prompt and seed when everything is computed, kept on
disk.

On the workflow's own sigmas (refined 1 time) that is the full run; with every step cut into several
equal ones it is near the solution of the model's ODE."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.files import replaced
from rapid_core.quadrature.sigmas import refine
from training.graph import Graph
from training.processes import all_gather, rank, shard

KEY = "rapid_training"  # of wrappers


@dataclass(frozen=True)
class Reference:
    """One run."""

    prompt: str
    seed: int
    latent: Tensor
    """(1, ...) what came out."""
    sigmas: tuple[float, ...]
    """(N + 1,) the workflow's own."""
    sampler: str
    refined: int
    """Into how many equal ones each of the N steps was cut."""


class Recorder:
    """A patch of a model that notes sampler and sigmas, counts evaluations, and cuts every step into
    `parts` equal ones."""

    def __init__(self, parts: int = 1) -> None:
        self.parts = parts
        self.evaluations = 0
        self.sigmas: tuple[float, ...] = ()
        self.sampler = ""

    def __call__(self, model: Any) -> Any:
        from comfy.patcher_extension import WrappersMP

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self._predict_noise)
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self._outer_sample)
        return clone

    def _outer_sample(
        self,
        executor: Any,
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **named: Any,
    ) -> Tensor:
        function = getattr(sampler, "sampler_function", sampler)
        name = getattr(function, "__name__", type(function).__name__)
        self.sampler = name.removeprefix("sample_")
        self.sigmas = tuple(sigmas.tolist())
        return executor(noise, latent, sampler, refine(sigmas, self.parts), *args, **named)

    def _predict_noise(self, executor: Any, *args: Any, **named: Any) -> Tensor:
        self.evaluations += 1
        return executor(*args, **named)


def file_name(prompt: str, seed: int, parts: int = 1) -> str:
    """What a reference's files are called, without ending."""
    return hashlib.blake2b(f"{seed}\n{parts}\n{prompt}".encode(), digest_size=10).hexdigest()


def reference(
    graph: Graph, prompt: str, seed: int, folder: Path, parts: int = 1, euler: bool = True
) -> Reference:
    """The reference of a prompt and seed, every step cut into `parts`; drawn once. euler: raise
    ValueError for any other sampler. Raises ValueError for one that overflowed, too."""
    path = folder / f"{file_name(prompt, seed, parts)}.pt"
    if path.is_file():
        return Reference(**torch.load(path, weights_only=True))
    recorder = Recorder(parts)
    latent = graph.sample(prompt, seed, patch=recorder)
    steps = len(recorder.sigmas) - 1
    if euler and (recorder.sampler != "euler" or recorder.evaluations != steps * parts):
        raise ValueError(
            "the sampler euler is needed (thresholds with --target full work with all); this "
            f"workflow samples with {recorder.sampler}"
        )
    if not torch.isfinite(latent).all():
        raise ValueError(
            f"the full run of prompt {prompt!r} (seed {seed}) ends in values that are not finite, and "
            "nothing can be near them; run the model at a higher precision "
            '(--host-arguments="--force-fp32"), or take the prompt out'
        )
    drawn = Reference(
        prompt,
        seed,
        latent.cpu(),
        recorder.sigmas,
        recorder.sampler,
        parts,
    )
    replaced(path, lambda part: torch.save(vars(drawn), part))
    return drawn


def references(
    graph: Graph,
    prompts: Sequence[str],
    first_seed: int,
    folder: Path,
    parts: int = 1,
    euler: bool = True,
) -> list[Reference]:
    """References of all prompts, seeds counted up from `first_seed`; see `reference`. Raises
    ValueError where their sigmas differ."""
    numbered = shard(list(enumerate(prompts)))
    bar = tqdm(numbered, desc="references", unit="picture", disable=rank() > 0)
    own = [
        vars(reference(graph, prompt, first_seed + i, folder, parts, euler)) for i, prompt in bar
    ]
    drawn = [Reference(**fields) for fields in all_gather(own)]
    if any(one.sigmas != drawn[0].sigmas for one in drawn):
        raise ValueError(
            "the workflow's sigmas differ from prompt to prompt; schedules need the same for all"
        )
    return drawn
