"""Kind `threshold`: Cache Reuse's threshold for every speed-up, found on the workflow itself.

The cost of a run falls as the threshold rises, so halving an interval of logarithms finds it;
nothing is judged by quality, which is only measured, on other prompts. Any sampler will do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from evaluation.plots import Panel
from rapid_core.calibration.search import latent_psnr
from rapid_core.policy_file.format import PolicyFile
from rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from training.graph import Graph
from training.host import attach, cost_share, family_of, last_record
from training.job import Job, Result
from training.processes import all_gather, rank, shard
from training.references import Reference
from training.scalars import TensorBoardLog
from training.state import JsonCache

MAX_CONSECUTIVE = 8  # evaluations that may be skipped in a row
LOWEST = 1e-3  # threshold that is tried
HIGHEST = 100.0  # at which as many evaluations are skipped as may be in a row
HALVINGS = 12
NEAR = 0.02  # of the goal: near enough below it


class Costs:
    """Mean cost of runs at a threshold over prompts, as a share of full ones; kept in a file."""

    def __init__(self, graph: Graph, prompts: Sequence[str], first_seed: int, path: Path):
        self.graph = graph
        self.prompts = list(prompts)
        self.first_seed = first_seed
        self.cache = JsonCache(path)

    def __call__(self, threshold: float) -> float:
        return self.cache.get(f"{threshold:.6g}", lambda: self._cost(threshold))

    def _cost(self, threshold: float) -> float:
        model = attach(self.graph.model, policy_of(threshold))
        costs = []
        for i, prompt in shard(list(enumerate(self.prompts))):
            self.graph.sample(prompt, self.first_seed + i, model)
            costs.append(cost_share(last_record(model)))
        return mean(all_gather(costs))


def policy_of(threshold: float) -> ThresholdPolicy:
    """Cache Reuse as a file of thresholds has it at one of its budgets."""
    return ThresholdPolicy(threshold=threshold, max_consecutive=MAX_CONSECUTIVE)


def threshold_for(cost: Costs, speedup: float) -> float:
    """A threshold whose cost is at most 1 / speedup, and as near to that as whole steps allow.
    Raises ValueError where there is none."""
    goal = 1 / speedup
    low = LOWEST
    high = HIGHEST
    if cost(high) > goal:
        raise ValueError(
            f"--speedups {speedup:g}: with this workflow's steps Cache Reuse can be "
            f"{1 / cost(high):.2f} times as fast at most"
        )
    bar = tqdm(range(HALVINGS), desc=f"threshold for {speedup:g}x", unit="try", disable=rank() > 0)
    for _ in bar:
        middle = (low * high) ** 0.5
        at_middle = cost(middle)
        if at_middle > goal:
            low = middle
        else:
            high = middle
            if at_middle > goal * (1 - NEAR):
                break
    return high


def train_thresholds(job: Job) -> tuple[PolicyFile, str]:
    """Find thresholds and write them; returns the file and its card's table."""
    config = job.config
    family_of(job.graph.model)  # raises before anything is drawn
    number = config.calibration + config.held_out
    job.open_state(job.prompts[:number])
    held_out = job.references(config.calibration, number, euler=config.refined > 1)
    costs = Costs(
        job.graph, job.prompts[: config.calibration], config.seed, job.state / "costs.json"
    )
    board = TensorBoardLog(job.state / "tensorboard")
    thresholds = []
    for i, speedup in enumerate(config.speedups):
        threshold = threshold_for(costs, speedup)
        thresholds.append(threshold)
        scalars = {"thresholds/threshold": threshold, "thresholds/cost": costs(threshold)}
        board.add(i, scalars)
    board.close()
    cache = JsonCache(job.state / "held_out.json")
    pairs = list(zip(config.speedups, thresholds, strict=True))
    rows = [
        cache.get(
            f"{speedup:g}/{threshold:.6g}",
            partial(measure, job.graph, held_out, speedup, threshold),
        )
        for speedup, threshold in pairs
    ]
    text = table(rows)
    file = job.finish(
        Result(
            kind="threshold",
            metadata={
                "budgets": config.speedups,
                "max_consecutive": MAX_CONSECUTIVE,
                "reward": "none: thresholds follow from what runs cost",
                "measured": rows,
            },
            tensors={"thresholds": torch.tensor(thresholds, dtype=torch.float32)},
            policies={
                f"{speedup:g} {threshold:.6g}": policy_of(threshold) for speedup, threshold in pairs
            },
            clock_prompt=held_out[0].prompt,
            clock_seed=held_out[0].seed,
            clock_file="clock.json",
            about="Cache Reuse's thresholds for speed-ups, found by what runs cost. PSNR of latents "
            f"to {config.target_in_words}, on prompts that thresholds were not found on:",
            table=text,
            panels=panels(rows),
        )
    )
    return file, text


def measure(
    graph: Graph, held_out: Sequence[Reference], speedup: float, threshold: float
) -> dict[str, float]:
    """Cost and PSNR of latents at a threshold, on held-out prompts."""
    model = attach(graph.model, policy_of(threshold))
    own = []
    bar = tqdm(
        shard(held_out), desc=f"held out at {speedup:g}x", unit="picture", disable=rank() > 0
    )
    for r in bar:
        latent = graph.sample(r.prompt, r.seed, model).cpu()
        own.append((latent_psnr(latent, r.latent), cost_share(last_record(model))))
    psnr, cost = zip(*all_gather(own), strict=True)
    return {
        "budget": speedup,
        "threshold": threshold,
        "psnr": mean(psnr),
        "worst": min(psnr),
        "cost": mean(cost),
        "least": min(cost),
        "most": max(cost),
    }


def table(rows: Sequence[dict[str, float]]) -> str:
    """What was measured on held-out prompts, as Markdown."""
    head = (
        "| speed-up | threshold | cost (least, most), share of the full run | "
        "PSNR of the latent, dB | worst |"
    )
    lines = [
        f"| {r['budget']:g} | {r['threshold']:.4g} | "
        f"{r['cost']:.3f} ({r['least']:.3f}, {r['most']:.3f}) | "
        f"{r['psnr']:.2f} | {r['worst']:.2f} |"
        for r in rows
    ]
    return "\n".join([head, "|" + "---|" * 5, *lines])


def panels(rows: Sequence[dict[str, float]]) -> list[Panel]:
    """Plot of the card."""
    cost = [r["cost"] for r in rows]
    lines = {name: (cost, [r[name] for r in rows]) for name in ("psnr", "worst")}
    return [Panel("held-out prompts", "cost, share of the full run", "PSNR, dB", lines)]
