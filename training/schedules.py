"""Kind `schedule`: what gaps cost on the workflow's model, the best schedule for every speed-up by
these costs, and what it is worth on prompts that nothing was measured on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

from evaluation.plots import Panel
from rapid_core.calibration.search import (
    clearly_better,
    default_schedule,
    key_of,
    latent_psnr,
    search,
)
from rapid_core.policy_file.format import PolicyFile, read
from rapid_core.policy_file.policies import check_family, check_model
from rapid_core.policy_file.schedules import schedule_tensors
from rapid_core.quadrature.gap_costs import Gap
from rapid_core.quadrature.spacing import Spacing, max_evaluations
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.types import Aim
from training.gaps import measured_costs
from training.graph import Graph
from training.host import attach, family_of, size_of, weights_of
from training.job import Job, Result
from training.processes import all_gather, rank, shard
from training.references import Reference
from training.scalars import TensorBoardLog
from training.state import JsonCache


class Rollouts:
    """Scores of schedules: PSNR of each reference's latent under a schedule, kept in a file."""

    def __init__(self, graph: Graph, references: Sequence[Reference], aim: Aim, path: Path):
        self.graph = graph
        self.references = references
        self.aim = aim
        self.cache = JsonCache(path)

    def __call__(self, schedule: Schedule) -> list[float]:
        return self.cache.get(key_of(schedule.computed), lambda: self._scores(schedule))

    def _scores(self, schedule: Schedule) -> list[float]:
        model = attach(self.graph.model, policy_of(schedule, self.aim))
        scores = [
            latent_psnr(self.graph.sample(r.prompt, r.seed, model).cpu(), r.latent)
            for r in shard(self.references)
        ]
        return all_gather(scores)


def policy_of(schedule: Schedule, aim: Aim) -> SchedulePolicy:
    """A schedule as a policy that computes its steps and no others."""
    return SchedulePolicy(schedule=schedule, aim=aim, source="search", safe=False)


@dataclass(frozen=True)
class Searched:
    """The schedule of one speed-up, and PSNR of latents to the target on each held-out prompt."""

    speedup: float
    schedule: Schedule
    psnr: list[float]
    psnr_default: list[float]
    """Of the steps that are computed without a policy file."""
    course: list[float]
    """The best mean on calibration prompts after each schedule that was tried; empty where none
    was."""


def train_schedules(job: Job) -> tuple[PolicyFile, str]:
    """Find schedules and write them; returns the file and its card's table."""
    config = job.config
    family_of(job.graph.model)  # raises before anything is drawn
    number = config.calibration + config.held_out
    job.open_state(job.prompts[:number])
    drawn = job.references(0, number)
    calibration = drawn[: config.calibration]
    held_out = drawn[config.calibration :]
    sigmas = held_out[0].sigmas
    costs = measured_costs(job, job.prompts[: config.calibration], sigmas)
    spacing = Spacing(sigmas, costs)
    board = TensorBoardLog(job.state / "tensorboard")
    results = [
        search_one(job, speedup, spacing, calibration, held_out, board)
        for speedup in config.speedups
    ]
    board.close()
    aim = config.aim
    text = table(results, len(held_out))
    if config.refined > 1:
        full = Schedule((True,) * (len(sigmas) - 1), sigmas)
        path = job.state / "held_out-full.json"
        psnr = mean(Rollouts(job.graph, held_out, aim, path)(full))
        text += f"\n\nThe full run itself, with every evaluation computed, is at {psnr:.2f} dB."
    file = job.finish(
        Result(
            kind="schedule",
            metadata=metadata(job, results),
            tensors=schedule_tensors([r.schedule for r in results]),
            policies={
                f"{r.speedup:g} {key_of(r.schedule.computed)}": policy_of(r.schedule, aim)
                for r in results
            },
            clock_prompt=held_out[0].prompt,
            clock_seed=held_out[0].seed,
            clock_file="clock.json",
            about="Which evaluations are computed (`#`) and which are predicted and corrected "
            f"(`.`). PSNR of latents to {config.target_in_words}, on prompts that schedules were not "
            "searched on:",
            table=text,
            panels=panels(results, costs),
        )
    )
    return file, text


def read_schedules(path: Path, graph: Graph) -> PolicyFile:
    """A schedule file that a training begins with; of one for other weights it is said, since their
    schedules may do. Raises PolicyError."""
    file = read(path)
    if file.kind != "schedule":
        raise file.field_error("kind", f"= {file.kind!r}; --start is a schedule")
    check_family(file, family_of(graph.model).family)
    check_model(file, None, size_of(graph.model)["hidden"])
    made_for = file.metadata.get("weights")
    if made_for and made_for != weights_of(graph.model).get("weights", made_for) and rank() == 0:
        print(
            f"--start: {file.name} was made for other weights than this workflow's, where other steps "
            "may be the best; --kind schedule searches anew",
            flush=True,
        )
    return file


def search_one(
    job: Job,
    speedup: float,
    spacing: Spacing,
    calibration: Sequence[Reference],
    held_out: Sequence[Reference],
    board: TensorBoardLog,
) -> Searched:
    """The best schedule of one speed-up, and what it is worth."""
    config = job.config
    aim = config.aim
    sigmas = held_out[0].sigmas
    name = f"{speedup:g}"
    score = Rollouts(job.graph, calibration, aim, job.state / f"schedules-{name}.json")
    path = Schedule(spacing.best(max_evaluations(speedup, spacing.steps)), sigmas)
    default = default_schedule(sigmas, speedup)
    # Costs add up only nearly, and what is known without them may be better.
    schedule = path if clearly_better(score(path), score(default)) else default
    course: list[float] = []
    if config.plans:
        with tqdm(
            total=config.plans, desc=f"schedules at {name}x", unit="schedule", disable=rank() > 0
        ) as bar:

            def report(tried: int, best: float) -> None:
                bar.update(tried - bar.n)
                bar.set_postfix(psnr=f"{best:.2f}")
                board.add(tried, {f"schedules/best_psnr_{name}x": best})
                course.append(best)

            schedule, _ = search(score, schedule, config.plans, config.seed, report)
    measure = Rollouts(job.graph, held_out, aim, job.state / f"held_out-{name}.json")
    bar = tqdm((schedule, default), desc=f"held out at {name}x", disable=rank() > 0)
    psnr, psnr_default = (measure(one) for one in bar)
    ends = {"psnr": mean(psnr), "psnr_default": mean(psnr_default)}
    board.add(0, {f"held_out/{key}_{name}x": value for key, value in ends.items()})
    return Searched(speedup, schedule, psnr, psnr_default, course)


def metadata(job: Job, results: Sequence[Searched]) -> dict[str, Any]:
    """What the file says of itself, beside what all policies do."""
    config = job.config
    reward = f"costs of gaps on {config.calibration} prompts"
    if config.plans:
        reward += f", then PSNR of the latent to {config.target_in_words}"
    return {
        "budgets": [r.speedup for r in results],
        "reward": reward,
        "measured_psnr": [round(mean(r.psnr), 2) for r in results],
        "measured_psnr_default": [round(mean(r.psnr_default), 2) for r in results],
    }


def table(results: Sequence[Searched], prompts: int) -> str:
    """PSNR of latents on held-out prompts as Markdown."""
    head = (
        f"| speed-up | computed | schedule of this file, dB ({prompts} prompts) | "
        "without a policy file | worst: this file | worst: without | schedule |"
    )
    lines = [head, "|" + "---|" * 7]
    for r in results:
        computed = r.schedule.computed
        lines.append(
            f"| {r.speedup:g} | {sum(computed)} of {len(computed)} | {mean(r.psnr):.2f} | "
            f"{mean(r.psnr_default):.2f} | {min(r.psnr):.2f} | {min(r.psnr_default):.2f} | "
            f"`{key_of(computed)}` |"
        )
    return "\n".join(lines)


def panels(results: Sequence[Searched], costs: Mapping[Gap, float]) -> list[Panel]:
    """Plots of the card: what gaps cost, the search where there was one, and what came of it."""
    gaps: dict[str, tuple[list[float], list[float]]] = {}
    for before, after in sorted(costs, key=lambda gap: (gap[1] - gap[0], gap)):
        places, decibels = gaps.setdefault(f"{after - before - 1} skipped", ([], []))
        places.append(before)
        decibels.append(10 * math.log10(costs[before, after]))
    made = [Panel("one gap in a full run", "last step before it", "cost, dB (no unit)", gaps)]
    course = {f"{r.speedup:g}x": (range(1, len(r.course) + 1), r.course) for r in results}
    if any(r.course for r in results):
        made.append(
            Panel("best schedule so far", "schedules tried", "PSNR, dB (calibration)", course)
        )
    speedups = [r.speedup for r in results]
    held_out = {
        "this file": (speedups, [mean(r.psnr) for r in results]),
        "without a policy file": (speedups, [mean(r.psnr_default) for r in results]),
    }
    return [*made, Panel("held-out prompts", "speed-up", "PSNR, dB", held_out)]
