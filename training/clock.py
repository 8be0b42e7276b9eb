"""What policies are worth by the clock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from rapid_core.techniques.step_skip.schedule import SchedulePolicy
from training.graph import Graph
from training.host import attach, last_record
from training.processes import from_first, rank
from training.state import Kept

ROUNDS = 3


def clocked(
    graph: Graph, policies: Mapping[str, Any], prompt: str, seed: int, path: Path
) -> list[float]:
    """How many times as fast as the whole model each policy samples one picture on this machine:
    the sampling loop's seconds, medians of ROUNDS in which all take turns. Measured by one process
    while the others wait.

    policies: by a name each, under which rounds are kept in the file `path`."""
    return from_first(lambda: _clocked(graph, policies, prompt, seed, path))


def _clocked(
    graph: Graph, policies: Mapping[str, Any], prompt: str, seed: int, path: Path
) -> list[float]:
    models = [attach(graph.model, policy) for policy in (SchedulePolicy(1.0), *policies.values())]

    def once() -> list[float]:
        for model in models:
            graph.sample(prompt, seed, model)
        return [last_record(model).seconds for model in models]

    kept = Kept(path, alone=True)
    rounds = [
        kept.get(f"{', '.join(policies)}: {i}", once)
        for i in tqdm(range(ROUNDS), desc="by the clock", unit="round", disable=rank() > 0)
    ]
    whole, *own = map(median, zip(*rounds, strict=True))
    return [round(whole / max(seconds, 1e-9), 2) for seconds in own]
