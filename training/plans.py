"""Phases 1 and 2 of training: dense references, and a plan for every speed-up, measured on prompts
it was not searched on."""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from rapid_core.policy_file.format import PolicyFile, read, write
from rapid_core.policy_file.policies import check_family, check_model, nearest_plan, plan_tensors
from rapid_core.quadrature.gram import Gram
from rapid_core.techniques.step_skip.schedule import Plan, SchedulePolicy, max_evaluations
from training.card import Panel, write_card
from training.clock import clocked
from training.graph import Graph
from training.host import family_of, size_of
from training.plan_search import Rollouts, default_plan, filled_up, key_of, oracle, search
from training.processes import from_first, rank
from training.references import Reference, references
from training.scalars import Board
from training.state import claim

REFINE = 8  # Euler steps in each of the workflow's, for references near the solution
TARGETS = {
    "dense": "the dense run of the same seed",
    "solution": f"the run of the same seed with {REFINE} times the steps",
}


@dataclass(frozen=True)
class Found:
    """A searched plan, and PSNR of latents to the target on held-out prompts: searched; even
    spacing with fitted weights, and Adams-Bashforth's (default); course: the best mean on
    calibration prompts after each plan tried; headroom: the plan on a few of them, and plans
    searched for each of these alone."""

    speedup: float
    plan: Plan
    searched: list[float]
    evenly_spaced: list[float]
    default: list[float]
    course: list[float]
    headroom: tuple[float, float] | None


def train_plans(
    graph: Graph, prompts: Sequence[str], args: Namespace, state: Path, path: Path, command: str
) -> tuple[PolicyFile, str]:
    """Search plans and write them; returns the file and its card's table."""
    family_of(graph.model)  # said before anything is drawn
    settings = {name: getattr(args, name) for name in ("target", "calibration", "held_out", "seed")}
    claim(
        state,
        graph.own_nodes(),
        prompts[: args.calibration + args.held_out],
        {"kind": "schedule", **settings},
    )
    number = args.calibration + args.held_out
    refine = REFINE if args.target == "solution" else 1
    whole = references(graph, prompts[:number], args.seed, state / "references", refine)
    calibration, held_out = whole[: args.calibration], whole[args.calibration :]
    schedule = calibration[0].schedule
    gram = Gram.of(torch.stack([r.products for r in calibration]).mean(0), len(schedule) - 1)
    board = Board(state / "tensorboard")
    begin = {
        s: Plan(plan.computed, schedule, gram) for s, plan in begun(graph, args, schedule).items()
    }
    found = [
        plan_for(graph, s, calibration, held_out, gram, args, state, board, begin.get(s))
        for s in args.speedups
    ]
    board.close()
    policies = {
        f"{f.speedup:g} {key_of(f.plan)}": SchedulePolicy(f.speedup, plan=f.plan, source="search")
        for f in found
    }
    speed = clocked(graph, policies, held_out[0].prompt, held_out[0].seed, state / "clock.json")
    about = {**metadata(graph, found, args, command), "measured_speedup": speed}
    tensors = plan_tensors([f.plan for f in found])
    file = from_first(lambda: write(path, "schedule", about, tensors))
    text = table(found, len(held_out))
    if refine > 1:
        dense = Plan((True,) * (len(schedule) - 1), schedule)
        near = mean(Rollouts(graph, held_out, 1.0, state / "held_out-dense.json")(dense))
        text += f"\n\nDense sampling itself, with every evaluation computed, is at {near:.2f} dB."
    if rank() == 0:
        about = (
            "Which evaluations are computed, and the weights with which they fill the gaps (`#` computed, `.` "
            f"forecast). PSNR of latents to {TARGETS[args.target]}, on prompts that plans were not searched on:"
        )
        write_card(file, about, text, panels(found), alone(found))
    return file, text


def schedule_file(path: Path, graph: Graph) -> PolicyFile:
    """A schedule that a training begins with. Raises PolicyError."""
    file = read(path)
    if file.kind != "schedule":
        raise file.field_error("kind", f"= {file.kind!r}; --start is a schedule")
    check_family(file, family_of(graph.model).family)
    check_model(file, None, size_of(graph.model)["hidden"])
    return file


def begun(graph: Graph, args: Namespace, schedule: Sequence[float]) -> dict[float, Plan]:
    """Plans of an earlier search to begin with, by speed-up: where it had none for it, the nearest
    one thinned or filled up. Raises ValueError for those of another workflow."""
    if args.start is None:
        return {}
    file, steps = schedule_file(args.start, graph), len(schedule) - 1
    out = {}
    for speedup in args.speedups:
        plan, count = nearest_plan(file, speedup), max_evaluations(speedup, steps)
        if not plan.fits(schedule):
            raise ValueError(
                f"{file.name} (--start) was searched on other noise levels than this workflow's"
            )
        out[speedup] = Plan(filled_up(plan.on(count, schedule), count), plan.schedule)
    return out


def plan_for(
    graph: Graph,
    speedup: float,
    calibration: list[Reference],
    held_out: list[Reference],
    gram: Gram,
    args: Namespace,
    state: Path,
    board: Board,
    start: Plan | None = None,
) -> Found:
    """The best plan of one speed-up, and what it is worth. start: where the search begins; even
    spacing for None."""
    schedule = calibration[0].schedule
    score = Rollouts(graph, calibration, speedup, state / f"plans-{speedup:g}.json")
    name = f"plans/best_psnr_{speedup:g}x"
    search(
        score,
        schedule,
        gram,
        speedup,
        args.plans,
        args.seed,
        start,
        report=lambda tried, best: board.add(tried, {name: best}),
    )
    plan = Plan(score.best(), schedule, gram)
    judge = Rollouts(graph, held_out, speedup, state / f"held_out-{speedup:g}.json")
    plain = default_plan(schedule, speedup)

    def alone(reference: Reference) -> Rollouts:
        return Rollouts(
            graph,
            [reference],
            speedup,
            state / f"oracle-{speedup:g}-{reference.seed}.json",
            alone=True,
        )

    some = held_out[: args.oracle]
    headroom = oracle(alone, some, plan, gram, speedup, max(2, args.plans // 3)) if some else None
    if headroom and rank() == 0:
        print(
            f"{speedup:g}x: plans for each image alone {headroom[1]:.2f} dB, the static plan {headroom[0]:.2f} dB"
        )
    evenly_spaced = Plan(plain.computed, schedule, gram)
    course = list(itertools.accumulate(map(mean, score.kept.known.values()), max))
    rows = [
        judge(p)
        for p in tqdm(
            (plan, evenly_spaced, plain),
            desc=f"held out at {speedup:g}x",
            unit="plan",
            disable=rank() > 0,
        )
    ]
    ends = {"psnr": mean(rows[0]), "psnr_default": mean(rows[2])}
    if headroom:
        ends["headroom"] = headroom[1] - headroom[0]
    board.add(0, {f"held_out/{key}_{speedup:g}x": value for key, value in ends.items()})
    return Found(speedup, plan, *rows, course, headroom)


def metadata(graph: Graph, found: list[Found], args: Namespace, command: str) -> dict[str, Any]:
    """What the file says of itself."""
    return {
        **size_of(graph.model),
        "base_model": graph.model_name,
        "budgets": [f.speedup for f in found],
        "reward": f"PSNR of the latent to {TARGETS[args.target]}",
        "training_command": command,
        "licence": args.licence,
        "torch": torch.__version__,
        "measured_psnr": [round(mean(f.searched), 2) for f in found],
        "measured_psnr_default": [round(mean(f.default), 2) for f in found],
        "measured_headroom": [
            None if f.headroom is None else round(f.headroom[1] - f.headroom[0], 2) for f in found
        ],
        "measured_prompts": args.held_out,
    }


def table(found: list[Found], prompts: int) -> str:
    """PSNR of latents on held-out prompts as Markdown."""
    head = (
        f"| speed-up | computed | searched plan, dB ({prompts} prompts) | even, fitted weights | "
        "even, Adams-Bashforth | worst: searched | worst: even, Adams-Bashforth | plan |"
    )
    lines = [head, "|" + "---|" * 8]
    for f in found:
        plan, on = key_of(f.plan), f"{sum(f.plan.computed)} of {len(f.plan.computed)}"
        lines.append(
            f"| {f.speedup:g} | {on} | {mean(f.searched):.2f} | {mean(f.even):.2f} | {mean(f.default):.2f} | "
            f"{min(f.searched):.2f} | {min(f.default):.2f} | `{plan}` |"
        )
    return "\n".join(lines)


def panels(found: list[Found]) -> list[Panel]:
    """Plots of the card: the search, and what came of it."""
    speedups = [f.speedup for f in found]
    tried = {f"{f.speedup:g}x": (list(range(1, len(f.course) + 1)), f.course) for f in found}
    kinds = {
        "searched": "searched",
        "even, fitted weights": "even",
        "even, Adams-Bashforth": "default",
    }
    held_out = {
        name: (speedups, [mean(getattr(f, field)) for f in found]) for name, field in kinds.items()
    }
    return [
        Panel("best plan so far", "plans tried", "PSNR, dB (calibration)", tried),
        Panel("held-out prompts", "speed-up", "PSNR, dB", held_out),
    ]


def alone(found: list[Found]) -> str:
    """What the oracle found, as Markdown."""
    lines = "\n".join(
        f"- {f.speedup:g}x: {f.headroom[1] - f.headroom[0]:+.2f} dB" for f in found if f.headroom
    )
    return (
        "What plans searched for each image alone gained on top, an estimate of what looking at the image can "
        f"give:\n\n{lines or '- not measured'}"
    )
