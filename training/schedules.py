"""Kind `schedule`: full references, and a schedule for every speed-up, measured on prompts that it
was not searched on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

from evaluation.plots import Panel
from rapid_core.calibration.gram import mean_gram
from rapid_core.calibration.search import (
    Score,
    best_marks,
    default_schedule,
    fill_up,
    key_of,
    latent_psnr,
    search,
)
from rapid_core.policy_file.format import PolicyFile, read
from rapid_core.policy_file.policies import check_family, check_model
from rapid_core.policy_file.schedules import nearest_schedule, schedule_tensors
from rapid_core.quadrature.gram import Gram
from rapid_core.quadrature.spacing import max_evaluations
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from training.graph import Graph
from training.host import attach, family_of, size_of
from training.job import Job, Result
from training.processes import all_gather, rank, shard
from training.references import Reference
from training.scalars import TensorBoardLog
from training.state import JsonCache


class Rollouts:
    """Scores of schedules: PSNR of each reference's latent under a schedule, kept in a file. alone:
    by this process, not by each its shard."""

    def __init__(
        self,
        graph: Graph,
        references: Sequence[Reference],
        speedup: float,
        path: Path,
        alone: bool = False,
    ):
        self.graph = graph
        self.references = references
        self.speedup = speedup
        self.alone = alone
        self.cache = JsonCache(path, alone)

    def __call__(self, schedule: Schedule) -> list[float]:
        return self.cache.get(key_of(schedule), lambda: self._scores(schedule))

    def _scores(self, schedule: Schedule) -> list[float]:
        model = attach(self.graph.model, policy_of(self.speedup, schedule))
        scores = [
            latent_psnr(self.graph.sample(r.prompt, r.seed, model).cpu(), r.latent)
            for r in (self.references if self.alone else shard(self.references))
        ]
        return scores if self.alone else all_gather(scores)


def policy_of(speedup: float, schedule: Schedule) -> SchedulePolicy:
    """A schedule that the search tries, as a policy."""
    return SchedulePolicy(speedup=speedup, schedule=schedule, source="search")


@dataclass(frozen=True)
class Searched:
    """The schedule of one speed-up, and PSNR of latents to the target on each held-out prompt."""

    speedup: float
    schedule: Schedule
    psnr: list[float]
    psnr_even: list[float]
    """With even spacing and fitted weights."""
    psnr_default: list[float]
    """With even spacing and Adams-Bashforth's weights: without a policy file."""
    course: list[float]
    """The best mean on calibration prompts after each schedule that was tried."""
    headroom: tuple[float, float] | None
    """Mean PSNR of the schedule on a few held-out prompts, and of schedules that were searched for
    each of these alone; None where that was not measured."""


def train_schedules(job: Job) -> tuple[PolicyFile, str]:
    """Search schedules and write them; returns the file and its card's table."""
    config = job.config
    family_of(job.graph.model)  # raises before anything is drawn
    number = config.calibration + config.held_out
    job.open_state(job.prompts[:number])
    drawn = job.references(0, number)
    calibration = drawn[: config.calibration]
    held_out = drawn[config.calibration :]
    sigmas = calibration[0].sigmas
    gram = mean_gram([r.products for r in calibration], len(sigmas) - 1)
    starts = {
        speedup: Schedule(schedule.computed, sigmas, gram)
        for speedup, schedule in starting_schedules(job, sigmas).items()
    }
    board = TensorBoardLog(job.state / "tensorboard")
    results = [
        search_one(job, speedup, calibration, held_out, gram, board, starts.get(speedup))
        for speedup in config.speedups
    ]
    board.close()
    text = table(results, len(held_out))
    if config.refined > 1:
        full = Schedule((True,) * (len(sigmas) - 1), sigmas)
        psnr = mean(Rollouts(job.graph, held_out, 1.0, job.state / "held_out-full.json")(full))
        text += f"\n\nThe full run itself, with every evaluation computed, is at {psnr:.2f} dB."
    file = job.finish(
        Result(
            kind="schedule",
            metadata=metadata(config.target_in_words, results),
            tensors=schedule_tensors([r.schedule for r in results]),
            policies={
                f"{r.speedup:g} {key_of(r.schedule)}": policy_of(r.speedup, r.schedule)
                for r in results
            },
            clock_prompt=held_out[0].prompt,
            clock_seed=held_out[0].seed,
            clock_file="clock.json",
            about="Which evaluations are computed, and the weights with which they fill the gaps "
            f"(`#` computed, `.` predicted). PSNR of latents to {config.target_in_words}, on prompts "
            "that schedules were not searched on:",
            table=text,
            panels=panels(results),
            remarks=headroom_text(results),
        )
    )
    return file, text


def read_schedules(path: Path, graph: Graph) -> PolicyFile:
    """A schedule file that a training begins with. Raises PolicyError."""
    file = read(path)
    if file.kind != "schedule":
        raise file.field_error("kind", f"= {file.kind!r}; --start is a schedule")
    check_family(file, family_of(graph.model).family)
    check_model(file, None, size_of(graph.model)["hidden"])
    return file


def starting_schedules(job: Job, sigmas: Sequence[float]) -> dict[float, Schedule]:
    """Schedules of an earlier search to begin with, by speed-up: where it had none for it, the
    nearest one thinned or filled up. Raises ValueError for those of another workflow."""
    if job.config.start is None:
        return {}
    file = read_schedules(job.config.start, job.graph)
    starts = {}
    for speedup in job.config.speedups:
        nearest = nearest_schedule(file, speedup)
        count = max_evaluations(speedup, len(sigmas) - 1)
        if not nearest.fits(sigmas):
            raise ValueError(
                f"{file.name} (--start) was searched on other sigmas than this workflow's"
            )
        marks = fill_up(nearest.computed_on(count, sigmas), count)
        starts[speedup] = Schedule(marks, nearest.sigmas)
    return starts


def search_one(
    job: Job,
    speedup: float,
    calibration: list[Reference],
    held_out: list[Reference],
    gram: Gram,
    board: TensorBoardLog,
    start: Schedule | None = None,
) -> Searched:
    """The best schedule of one speed-up, and what it is worth. start: where the search begins; even
    spacing for None."""
    config = job.config
    graph = job.graph
    sigmas = calibration[0].sigmas
    name = f"{speedup:g}"
    score = Rollouts(graph, calibration, speedup, job.state / f"schedules-{name}.json")
    with tqdm(
        total=config.plans, desc=f"schedules at {name}x", unit="schedule", disable=rank() > 0
    ) as bar:

        def report(tried: int, best: float) -> None:
            bar.update(tried - bar.n)
            bar.set_postfix(psnr=f"{best:.2f}")
            board.add(tried, {f"schedules/best_psnr_{name}x": best})

        search(score, sigmas, gram, speedup, config.plans, config.seed, start, report)
    schedule = Schedule(best_marks(score.cache.values), sigmas, gram)

    def score_alone(reference: Reference) -> Rollouts:
        path = job.state / f"oracle-{name}-{reference.seed}.json"
        return Rollouts(graph, [reference], speedup, path, alone=True)

    headroom = None
    if held_out[: config.oracle]:
        some = held_out[: config.oracle]
        headroom = oracle(score_alone, some, schedule, gram, speedup, max(2, config.plans // 3))
        if rank() == 0:
            print(
                f"{name}x: schedules for each image alone {headroom[1]:.2f} dB, one for all "
                f"{headroom[0]:.2f} dB"
            )
    measure = Rollouts(graph, held_out, speedup, job.state / f"held_out-{name}.json")
    default = default_schedule(sigmas, speedup)
    even = Schedule(default.computed, sigmas, gram)
    bar = tqdm(
        (schedule, even, default), desc=f"held out at {name}x", unit="schedule", disable=rank() > 0
    )
    psnr, psnr_even, psnr_default = (measure(one) for one in bar)
    ends = {"psnr": mean(psnr), "psnr_default": mean(psnr_default)}
    if headroom:
        ends["headroom"] = headroom[1] - headroom[0]
    board.add(0, {f"held_out/{key}_{name}x": value for key, value in ends.items()})
    course = list(itertools.accumulate(map(mean, score.cache.values.values()), max))
    return Searched(speedup, schedule, psnr, psnr_even, psnr_default, course, headroom)


def oracle(
    score_of: Callable[[Reference], Score],
    references: Sequence[Reference],
    schedule: Schedule,
    gram: Gram,
    speedup: float,
    max_tried: int,
) -> tuple[float, float]:
    """Mean score of one schedule for all, and of schedules that are searched for each image by
    itself: what looking at the image can give at most, as far as the search goes."""
    own = []
    for reference in shard(references):
        score = score_of(reference)
        before = score(schedule)[0]
        _, after = search(score, schedule.sigmas, gram, speedup, max_tried, start=schedule)
        own.append((before, after[0]))
    before, after = zip(*all_gather(own), strict=True)
    return mean(before), mean(after)


def metadata(target: str, results: Sequence[Searched]) -> dict[str, Any]:
    """What the file says of itself, beside what all policies do."""
    return {
        "budgets": [r.speedup for r in results],
        "reward": f"PSNR of the latent to {target}",
        "measured_psnr": [round(mean(r.psnr), 2) for r in results],
        "measured_psnr_default": [round(mean(r.psnr_default), 2) for r in results],
        "measured_headroom": [
            None if r.headroom is None else round(r.headroom[1] - r.headroom[0], 2) for r in results
        ],
    }


def table(results: Sequence[Searched], prompts: int) -> str:
    """PSNR of latents on held-out prompts as Markdown."""
    head = (
        f"| speed-up | computed | searched schedule, dB ({prompts} prompts) | even, fitted weights | "
        "even, Adams-Bashforth | worst: searched | worst: even, Adams-Bashforth | schedule |"
    )
    lines = [head, "|" + "---|" * 8]
    for r in results:
        computed = r.schedule.computed
        lines.append(
            f"| {r.speedup:g} | {sum(computed)} of {len(computed)} | {mean(r.psnr):.2f} | "
            f"{mean(r.psnr_even):.2f} | {mean(r.psnr_default):.2f} | {min(r.psnr):.2f} | "
            f"{min(r.psnr_default):.2f} | `{key_of(r.schedule)}` |"
        )
    return "\n".join(lines)


def panels(results: Sequence[Searched]) -> list[Panel]:
    """Plots of the card: the search, and what came of it."""
    speedups = [r.speedup for r in results]
    course = {f"{r.speedup:g}x": (list(range(1, len(r.course) + 1)), r.course) for r in results}
    held_out = {
        "searched": (speedups, [mean(r.psnr) for r in results]),
        "even, fitted weights": (speedups, [mean(r.psnr_even) for r in results]),
        "even, Adams-Bashforth": (speedups, [mean(r.psnr_default) for r in results]),
    }
    return [
        Panel("best schedule so far", "schedules tried", "PSNR, dB (calibration)", course),
        Panel("held-out prompts", "speed-up", "PSNR, dB", held_out),
    ]


def headroom_text(results: Sequence[Searched]) -> str:
    """What the oracle came to, as Markdown."""
    lines = [
        f"- {r.speedup:g}x: {r.headroom[1] - r.headroom[0]:+.2f} dB" for r in results if r.headroom
    ]
    return (
        "What schedules searched for each image alone gained on top, an estimate of what looking at "
        "the image can give:\n\n" + ("\n".join(lines) or "- not measured")
    )
