"""References: what the workflow draws for each prompt and seed when everything is computed, kept on
disk.

On the workflow's own noise levels (refine 1) that is the dense picture; with every step cut into
`refine` equal ones it is near the solution of the model's ODE."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from training.files import replaced
from training.graph import Graph
from training.processes import rank, share, together


@dataclass(frozen=True)
class Reference:
    """One run. latent (1, ...): what came out; schedule: the workflow's noise levels (N + 1);
    sampler: its name; products (N * refine, N * refine): Gram matrix of the guided derivatives of
    all evaluations, scaled to a trace of one, float64."""

    prompt: str
    seed: int
    latent: Tensor
    schedule: tuple[float, ...]
    sampler: str
    refine: int
    products: Tensor


class Recorder:
    """A patch of a model that keeps the guided derivative of every evaluation, (x - denoised) /
    sigma, and cuts every step into `refine` equal ones."""

    def __init__(self, refine: int = 1) -> None:
        self.refine = refine
        self.derivatives: list[Tensor] = []
        self.schedule: tuple[float, ...] = ()
        self.sampler = ""

    def __call__(self, model: Any) -> Any:
        from comfy.patcher_extension import WrappersMP

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "rapid_training", self._look)
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "rapid_training", self._begin)
        return clone

    def _begin(
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
        self.sampler = getattr(function, "__name__", type(function).__name__).removeprefix(
            "sample_"
        )
        self.schedule = tuple(sigmas.tolist())
        return executor(noise, latent, sampler, refined(sigmas, self.refine), *args, **named)

    def _look(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **named: Any) -> Tensor:
        denoised = executor(x, timestep, *args, **named)
        self.derivatives.append(((x - denoised) / timestep.flatten()[0])[0].float().cpu().flatten())
        return denoised

    def products(self) -> Tensor:
        """Gram matrix of the derivatives, scaled to a trace of one."""
        flat = torch.stack(self.derivatives)
        found = (flat @ flat.T).double()
        return found / found.trace()


def refined(sigmas: Tensor, parts: int) -> Tensor:
    """Noise levels with every step cut into equal parts."""
    if parts == 1:
        return sigmas
    places = torch.arange(parts, device=sigmas.device) / parts
    inner = sigmas[:-1, None] + (sigmas[1:] - sigmas[:-1])[:, None] * places
    return torch.cat((inner.flatten(), sigmas[-1:]))


def file_name(prompt: str, seed: int, refine: int = 1) -> str:
    """What a reference's files are called, without ending."""
    return hashlib.blake2b(f"{seed}\n{refine}\n{prompt}".encode(), digest_size=10).hexdigest()


def reference(
    graph: Graph, prompt: str, seed: int, folder: Path, refine: int = 1, euler: bool = True
) -> Reference:
    """The reference of a prompt and seed; drawn once. euler: raise ValueError for any other
    sampler."""
    path = folder / f"{file_name(prompt, seed, refine)}.pt"
    if path.is_file():
        return Reference(**torch.load(path, weights_only=True))
    recorder = Recorder(refine)
    latent = graph.sample(prompt, seed, patch=recorder)
    steps = len(recorder.schedule) - 1
    if euler and (recorder.sampler != "euler" or len(recorder.derivatives) != steps * refine):
        raise ValueError(
            f"the sampler euler is needed (thresholds with --target dense work with all); this workflow "
            f"samples with {recorder.sampler}"
        )
    found = Reference(
        prompt, seed, latent.cpu(), recorder.schedule, recorder.sampler, refine, recorder.products()
    )
    replaced(path, lambda part: torch.save(vars(found), part))
    return found


def references(
    graph: Graph,
    prompts: Sequence[str],
    first_seed: int,
    folder: Path,
    refine: int = 1,
    euler: bool = True,
) -> list[Reference]:
    """References of all prompts, seeds counted up from `first_seed`; euler: see `reference`. Raises
    ValueError where their noise levels differ."""
    jobs = tqdm(
        share(list(enumerate(prompts))), desc="references", unit="picture", disable=rank() > 0
    )
    found = together(
        [reference(graph, prompt, first_seed + i, folder, refine, euler) for i, prompt in jobs]
    )
    if any(r.schedule != found[0].schedule for r in found):
        raise ValueError(
            "the workflow's noise levels differ from prompt to prompt; plans need the same for all"
        )
    return found
