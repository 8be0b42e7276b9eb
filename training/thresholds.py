"""Kind `threshold`: Cache Reuse's threshold for every speed-up, found on the workflow itself.

The cost of a run falls as the threshold rises, so halving an interval of logarithms finds it;
nothing is judged by quality, which is only measured, on other prompts. Any sampler will do."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from rapid_core.policy_file.format import PolicyFile, write
from rapid_core.policy_file.policies import LONGEST
from rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from training.card import Panel, write_card
from training.clock import clocked
from training.graph import Graph
from training.host import attach, last_record, size_of
from training.plan_search import latent_psnr
from training.plans import REFINE, TARGETS
from training.processes import from_first, rank, share, together
from training.references import Reference, references
from training.scalars import Board
from training.state import Kept, claim

LOWEST, HIGHEST = (
    1e-3,
    100.0,
)  # thresholds that are tried; the highest leaves out as many as may be in a row
HALVINGS = 12
NEAR = 0.02  # of the goal: near enough below it


class Costs:
    """Mean cost of runs at a threshold over prompts, as a share of dense ones; kept in a file."""

    def __init__(self, graph: Graph, prompts: Sequence[str], first_seed: int, path: Path):
        self.graph, self.prompts, self.first_seed, self.kept = (
            graph,
            list(prompts),
            first_seed,
            Kept(path),
        )

    def __call__(self, threshold: float) -> float:
        return self.kept.get(f"{threshold:.6g}", lambda: self._cost(threshold))

    def _cost(self, threshold: float) -> float:
        model, found = attach(self.graph.model, fixed(threshold)), []
        for i, prompt in share(list(enumerate(self.prompts))):
            self.graph.sample(prompt, self.first_seed + i, model)
            found.append(cost_of_last(model))
        return mean(together(found))


def fixed(threshold: float) -> ThresholdPolicy:
    """Cache Reuse as a file of thresholds has it at one of its budgets."""
    return ThresholdPolicy(threshold, max_consecutive=LONGEST)


def cost_of_last(model: Any) -> float:
    """Cost of the latest run's first image, as a share of the dense run's."""
    evaluations = last_record(model).evaluations
    return sum(e.cost[0] for e in evaluations) / max(1.0, sum(e.dense_cost[0] for e in evaluations))


def threshold_for(cost: Costs, speedup: float) -> float:
    """A threshold whose cost is at most 1 / speedup, and as near to that as whole steps allow.
    Raises ValueError where there is none."""
    goal, low, high = 1 / speedup, LOWEST, HIGHEST
    if cost(high) > goal:
        raise ValueError(
            f"--speedups {speedup:g}: with this workflow's steps Cache Reuse can be {1 / cost(high):.2f} "
            "times as fast at most"
        )
    for _ in tqdm(
        range(HALVINGS), desc=f"threshold for {speedup:g}x", unit="try", disable=rank() > 0
    ):
        middle = (low * high) ** 0.5
        found = cost(middle)
        if found <= goal:
            high = middle
            if found > goal * (1 - NEAR):
                break
        else:
            low = middle
    return high


def train_thresholds(
    graph: Graph, prompts: Sequence[str], args: Namespace, state: Path, path: Path, command: str
) -> tuple[PolicyFile, str]:
    """Find thresholds and write them; returns the file and its card's table."""
    size = size_of(graph.model)
    number = args.calibration + args.held_out
    settings = {name: getattr(args, name) for name in ("target", "calibration", "held_out", "seed")}
    claim(state, graph.own_nodes(), prompts[:number], {"kind": "threshold", **settings})
    refine = REFINE if args.target == "solution" else 1
    whole = references(
        graph,
        prompts[args.calibration : number],
        args.seed + args.calibration,
        state / "references",
        refine,
        euler=refine > 1,
    )
    costs = Costs(graph, prompts[: args.calibration], args.seed, state / "costs.json")
    board = Board(state / "tensorboard")
    found = []
    for i, speedup in enumerate(args.speedups):
        found.append(threshold_for(costs, speedup))
        board.add(i, {"thresholds/threshold": found[-1], "thresholds/cost": costs(found[-1])})
    board.close()
    kept = Kept(state / "held_out.json")
    rows = [
        kept.get(f"{s:g}/{t:.6g}", lambda t=t, s=s: measured(graph, whole, s, t))
        for s, t in zip(args.speedups, found, strict=True)
    ]
    policies = {
        f"{s:g} {threshold:.6g}": fixed(threshold)
        for s, threshold in zip(args.speedups, found, strict=True)
    }
    speed = clocked(graph, policies, whole[0].prompt, whole[0].seed, state / "clock.json")
    about = {
        **size,
        "base_model": graph.model_name,
        "budgets": args.speedups,
        "max_consecutive": LONGEST,
        "reward": "none: thresholds follow from what runs cost",
        "training_command": command,
        "licence": args.licence,
        "torch": torch.__version__,
        "measured": rows,
        "measured_prompts": args.held_out,
        "measured_speedup": speed,
        "target": TARGETS[args.target],
    }
    tensors = {"thresholds": torch.tensor(found, dtype=torch.float32)}
    file = from_first(lambda: write(path, "threshold", about, tensors))
    text = table(rows)
    if rank() == 0:
        what = (
            "Cache Reuse's thresholds for speed-ups, found by what runs cost. PSNR of latents to "
            f"{TARGETS[args.target]}, on prompts that thresholds were not found on:"
        )
        write_card(file, what, text, panels(rows))
    return file, text


def measured(
    graph: Graph, held_out: Sequence[Reference], speedup: float, threshold: float
) -> dict[str, float]:
    """Cost and PSNR of latents at a threshold, on held-out prompts."""
    model, found = attach(graph.model, fixed(threshold)), []
    for r in tqdm(
        share(held_out), desc=f"held out at {speedup:g}x", unit="picture", disable=rank() > 0
    ):
        near = latent_psnr(graph.sample(r.prompt, r.seed, model).cpu(), r.latent)
        found.append((near, cost_of_last(model)))
    near, cost = zip(*together(found), strict=True)
    return {
        "budget": speedup,
        "threshold": threshold,
        "psnr": mean(near),
        "worst": min(near),
        "cost": mean(cost),
        "least": min(cost),
        "most": max(cost),
    }


def table(rows: Sequence[dict[str, float]]) -> str:
    """What was measured on held-out prompts, as Markdown."""
    head = "| speed-up | threshold | cost (least, most), share of dense | PSNR of the latent, dB | worst |"
    lines = [
        f"| {r['budget']:g} | {r['threshold']:.4g} | {r['cost']:.3f} ({r['least']:.3f}, {r['most']:.3f}) | "
        f"{r['psnr']:.2f} | {r['worst']:.2f} |"
        for r in rows
    ]
    return "\n".join([head, "|" + "---|" * 5, *lines])


def panels(rows: Sequence[dict[str, float]]) -> list[Panel]:
    """Plot of the card."""
    cost = [r["cost"] for r in rows]
    lines = {name: (cost, [r[name] for r in rows]) for name in ("psnr", "worst")}
    return [Panel("held-out prompts", "cost, share of dense", "PSNR, dB", lines)]
