"""The table of a model's gaps, measured on a workflow: one gap at a time in an otherwise full run,
through the engine as it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rapid_core.calibration.gaps import costs_of, latent_error, with_gap
from rapid_core.quadrature.gap_costs import Gap, gaps_of
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from training.graph import Graph
from training.host import attach
from training.job import Job
from training.processes import all_gather, rank, shard
from training.references import KEY
from training.state import JsonCache


class Beginning:
    """A patch of a model that remembers the first run's calls, and answers those of later runs from
    it as long as they are the same: of a run with one gap, all before the gap."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []  # x, sigma, and what came out
        # Of the run in progress: whether it is remembered, and the calls that it may still repeat.
        self.remembers = False
        self.left: Iterator[tuple[Tensor, Tensor, Tensor]] = iter(())

    def __call__(self, model: Any) -> Any:
        from comfy.patcher_extension import WrappersMP

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self._outer_sample)
        # Within the engine's, which is in the run's own options.
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self._apply_model)
        return clone

    def _outer_sample(self, executor: Any, *args: Any, **named: Any) -> Tensor:
        self.remembers = not self.calls
        self.left = iter(self.calls)
        return executor(*args, **named)

    def _apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **named: Any) -> Tensor:
        known = None if self.remembers else next(self.left, None)
        if known is not None:
            known_x, known_t, out = known
            if torch.equal(known_x, x.cpu()) and torch.equal(known_t, t.cpu()):
                return out.to(x.device, copy=True)
            self.left = iter(())  # from here on it is another run
        out = executor(x, t, *args, **named)
        if self.remembers:
            x, t, kept = (one.to("cpu", copy=True) for one in (x, t, out))
            self.calls.append((x, t, kept))
        return out


class Deviations:
    """How far runs of one prompt and seed with one gap end from the full run, kept in a file."""

    def __init__(self, graph: Graph, prompt: str, seed: int, sigmas: Sequence[float], path: Path):
        self.graph = graph
        self.prompt = prompt
        self.seed = seed
        self.sigmas = tuple(sigmas)
        self.cache = JsonCache(path, alone=True)
        self._beginning = Beginning()
        self._full: Tensor | None = None

    def __call__(self, gap: Gap) -> float:
        before, after = gap
        return self.cache.get(f"{before},{after}", lambda: self._measured(gap))

    def _measured(self, gap: Gap) -> float:
        steps = len(self.sigmas) - 1
        if self._full is None:
            self._full = self._sampled((True,) * steps)
        return latent_error(self._sampled(with_gap(gap, steps)), self._full)

    def _sampled(self, computed: tuple[bool, ...]) -> Tensor:
        policy = SchedulePolicy(schedule=Schedule(computed, self.sigmas), source="gaps", safe=False)
        model = attach(self.graph.model, policy)
        return self.graph.sample(self.prompt, self.seed, model, patch=self._beginning).cpu()


def measured_costs(job: Job, prompts: Sequence[str], sigmas: Sequence[float]) -> dict[Gap, float]:
    """The table of a model on prompts, whose seeds follow from their numbers. sigmas (N + 1,): of
    the workflow. Raises ValueError where the model gives numbers that are not finite."""
    gaps = gaps_of(len(sigmas) - 1, job.config.longest_gap)
    own = []
    numbered = shard(list(enumerate(prompts)))
    with tqdm(total=len(gaps) * len(numbered), desc="gaps", unit="run", disable=rank() > 0) as bar:
        for i, prompt in numbered:
            seed = job.config.seed + i
            path = job.state / "gaps" / f"{seed}.json"
            deviation = Deviations(job.graph, prompt, seed, sigmas, path)
            found = []
            for gap in gaps:
                found.append(deviation(gap))
                bar.update()
            own.append(found)
    return costs_of((dict(zip(gaps, found, strict=True)) for found in all_gather(own)), sigmas)
