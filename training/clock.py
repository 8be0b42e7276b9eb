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
from training.processes import broadcast_from_rank0, rank
from training.state import JsonCache

ROUNDS = 3


def measured_speedups(
    graph: Graph, policies: Mapping[str, Any], prompt: str, seed: int, path: Path
) -> list[float]:
    """How many times as fast as the full run each policy samples one picture on this machine: the
    sampling loop's seconds, medians of ROUNDS in which all take turns. Measured by one process
    while the others wait.

    policies: by a name each, under which rounds are kept in the file `path`."""
    return broadcast_from_rank0(lambda: _measured(graph, policies, prompt, seed, path))


def _measured(
    graph: Graph, policies: Mapping[str, Any], prompt: str, seed: int, path: Path
) -> list[float]:
    full = SchedulePolicy(speedup=1.0)
    models = [attach(graph.model, policy) for policy in (full, *policies.values())]

    def one_round() -> list[float]:
        for model in models:
            graph.sample(prompt, seed, model)
        return [last_record(model).seconds for model in models]

    cache = JsonCache(path, alone=True)
    bar = tqdm(range(ROUNDS), desc="by the clock", unit="round", disable=rank() > 0)
    rounds = [cache.get(f"{', '.join(policies)}: {i}", one_round) for i in bar]
    full_seconds, *seconds = map(median, zip(*rounds, strict=True))
    return [round(full_seconds / max(own, 1e-9), 2) for own in seconds]
