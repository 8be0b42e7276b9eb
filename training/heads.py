"""Heads from beginning to end: what they begin with, phase 4, and what they are worth on prompts
they have not seen."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from rapid_core.policy_file.format import PolicyFile, write
from training.card import Panel, write_card
from training.clock import clocked
from training.files import write_text
from training.graph import Graph
from training.host import size_of
from training.methods import Planned, Published, acting
from training.plan_search import latent_psnr
from training.plans import TARGETS, schedule_file, train_plans
from training.policy_gradient import Trainer
from training.processes import from_first, rank, share, together
from training.scorer import scorer_for


def train_heads(
    graph: Graph, prompts: Sequence[str], args: Namespace, state: Path, path: Path, command: str
) -> tuple[PolicyFile, str]:
    """Train heads on the first prompts, measure them on the last `args.held_out`, and write
    them."""
    split, scorer = len(prompts) - args.held_out, scorer_for(graph, prompts, args, state)
    args.heads = from_first(lambda: acting(graph, prompts[0], args))
    method = method_of(graph, prompts[:split], args, state, path, command)
    trainer = Trainer(
        graph, prompts[:split][: args.train_prompts], args, state, method, scorer, prompts[split:]
    )
    trainer.train()
    rows = [measured(trainer, budget, split) for budget in method.speedups]
    policies = {
        f"{budget:g}": method.policy(trainer.heads, budget, None, 0) for budget in method.speedups
    }
    speed = clocked(
        graph,
        policies,
        prompts[split],
        args.seed + split,
        state / f"clock-{trainer.iteration}.json",
    )
    said = {
        **size_of(graph.model),
        "base_model": graph.model_name,
        "method": args.kind,
        "licence": args.licence,
        "training_command": command,
        "torch": torch.__version__,
        "measured": rows,
        "measured_prompts": args.held_out,
        "measured_speedup": speed,
        "target": TARGETS[args.target],
        **method.about(trainer.heads, scorer.about),
    }
    file = from_first(lambda: write(path, "heads", said, method.tensors(trainer.heads)))
    ends = {
        f"held_out/{key}_{r['budget']:g}x": r[key]
        for r in rows
        for key in ("psnr", "equivalent_steps")
    }
    trainer.board.add(trainer.iteration, ends)
    trainer.board.close()
    text = table(rows)
    if rank() == 0:
        about = f"Heads of kind {args.kind}. PSNR of latents to {TARGETS[args.target]}, on prompts not learned on:"
        write_card(file, about, text, panels(trainer.log, rows))
    return file, text


def method_of(
    graph: Graph, prompts: Sequence[str], args: Namespace, state: Path, path: Path, command: str
) -> Published | Planned:
    """What `args.kind` names. rapid+ begins with the schedule file `args.start`, or with one that
    is searched now on these prompts. Raises ValueError for a file that does not go with the
    workflow or the flags."""
    if args.kind == "rapid3":
        return Published(args)
    if args.start is not None:
        return Planned(args, schedule_file(args.start, graph))
    plan = path.with_stem(f"{path.stem}-plan")
    return Planned(args, train_plans(graph, prompts, args, state / "plan", plan, command)[0])


def measured(trainer: Trainer, budget: float, first: int) -> dict[str, float]:
    """The heads' most likely choices on prompts they have not seen, the first of that number, and
    those of fresh heads: of rapid+, the plan."""
    found, numbered = [], share(list(enumerate(trainer.held_out)))
    for i, prompt in tqdm(
        numbered, desc=f"held out at {budget:g}x", unit="picture", disable=rank() > 0
    ):
        path = (
            trainer.state / f"held_out-{trainer.iteration}" / f"{budget:g}-{i}.json"
        )  # goes on where it was
        if not path.is_file():
            wanted = trainer.wanted(prompt, first + i)
            latents, steps = trainer.draw(wanted, budget, 1, 0, None)
            before = trainer.draw(wanted, budget, 1, 0, None, trainer.fresh)[0]
            near = latent_psnr(latents, wanted.latent), steps[0], latent_psnr(before, wanted.latent)
            write_text(path, json.dumps(near))
        found.append(json.loads(path.read_text(encoding="utf-8")))
    near, steps, before = zip(*together(found), strict=True)
    return {
        "budget": budget,
        "psnr": mean(near),
        "worst": min(near),
        "equivalent_steps": mean(steps),
        "least_steps": min(steps),
        "most_steps": max(steps),
        "psnr_untrained": mean(before),
    }


def table(rows: Sequence[dict[str, float]]) -> str:
    """What was measured on held-out prompts, as Markdown."""
    head = "| budget | equivalent steps (least, most) | PSNR of the latent, dB | worst | before training |"
    lines = [
        f"| {r['budget']:g} | {r['equivalent_steps']:.2f} ({r['least_steps']:.2f}, {r['most_steps']:.2f}) | "
        f"{r['psnr']:.2f} | {r['worst']:.2f} | {r['psnr_untrained']:.2f} |"
        for r in rows
    ]
    return "\n".join([head, "|" + "---|" * 5, *lines])


def panels(log: Sequence[dict], rows: Sequence[dict[str, float]]) -> list[Panel]:
    """Plots of the card: the course of training, and held-out prompts."""
    updates, steps = [line["iteration"] for line in log], [r["equivalent_steps"] for r in rows]
    course = {"rollouts": (updates, [line["psnr"] for line in log])}
    ends = {
        "heads": (steps, [r["psnr"] for r in rows]),
        "worst": (steps, [r["worst"] for r in rows]),
    }
    return [
        Panel("quality while learning", "update", "PSNR, dB", course),
        Panel(
            "rewards",
            "update",
            "mean reward",
            {"reward": (updates, [line["reward"] for line in log])},
        ),
        Panel("held-out prompts", "equivalent steps", "PSNR, dB", ends),
    ]
