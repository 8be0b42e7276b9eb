"""What a policy that looks at the picture could gain at most: plans and budgets chosen for each picture,
known afterwards, beside the same for all.

    python3 dev.py bench headroom [--models flux] [--prompts 48] [--counts 7 9 11 14] [--plans 8]
                                  [--out DIR] [--share 1/2] [--quick]

For every number of evaluations there are as many plans: RAPID Accelerate's own, and others that compute one
or two steps a step earlier or later. Every test prompt is drawn by all of them.

*plans*: the best plan of each picture beside the best one for all, at as many evaluations.
*budgets*: each picture's number of evaluations, by the best plan for all, such that the mean of the pictures'
closeness is highest at a mean number of evaluations, beside the line between numbers for all.

`<out>/headroom.json` has the figures, `<out>/headroom.md` the most of them in lines."""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.command import run_suite, suite_flags
from benchmarks.dial.bench import Bench, close
from benchmarks.learn.learned import sigmas_of
from devkit.comfy_process import Comfy
from evaluation.files import write_text
from evaluation.subjects import FAMILIES, attached
from evaluation.suites import GOALS, Method, Picture
from rapid_core.quadrature.spacing import best_spaced
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy

Plan = tuple[bool, ...]
PRICES = [2.0 ** (n / 4) for n in range(-40, 24)]
"""dB an evaluation, by which budgets are found."""


def neighbours(plan: Plan, number: int, seed: int = 0) -> list[Plan]:
    """The plan and `number - 1` others, or as many as there are, that compute one or two of its steps a step
    earlier or later; the first step always is."""
    steps = [i for i, on in enumerate(plan) if on]
    found = {plan: None}
    moves = [(at, by) for at in steps[1:] for by in (-1, 1)]
    choices = [(move,) for move in moves] + list(itertools.combinations(moves, 2))
    random.Random(seed).shuffle(choices)
    for chosen in choices:
        if len(found) >= number:
            break
        moved = {*steps} - {at for at, _ in chosen} | {at + by for at, by in chosen}
        if len(moved) == len(steps) and 0 in moved and max(moved) < len(plan):
            found.setdefault(tuple(i in moved for i in range(len(plan))))
    return list(found)


def of_plans(closeness: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Of plans of as many evaluations, each with the closeness of every picture in dB: the first one's mean,
    that of the best for all, and that of the best for each picture."""
    means = {name: mean(values) for name, values in closeness.items()}
    best = max(means, key=lambda name: means[name])
    each = [max(values) for values in zip(*closeness.values(), strict=True)]
    first = next(iter(means))
    return {
        "own": round(means[first], 2),
        "best_for_all": round(means[best], 2),
        "best_for_each": round(mean(each), 2),
        "deviation": round(stdev(closeness[best]), 2) if len(each) > 1 else None,
        "best": best,
    }


def of_budgets(closeness: Mapping[int, Sequence[float]]) -> list[dict[str, float]]:
    """By number of evaluations the closeness of every picture in dB: for mean numbers of evaluations, the
    closeness of the best budgets of the pictures, and that of the line between numbers for all."""
    counts = sorted(closeness)
    means = [mean(closeness[count]) for count in counts]
    rows: dict[float, dict[str, float]] = {}
    for price in PRICES:
        chosen = [
            max(zip(counts, values, strict=True), key=lambda pair: pair[1] - price * pair[0])
            for values in zip(*(closeness[count] for count in counts), strict=True)
        ]
        spent = mean(count for count, _ in chosen)
        line = next(
            a + (b - a) * (spent - low) / (high - low)
            for (low, a), (high, b) in itertools.pairwise(zip(counts, means, strict=True))
            if low <= spent <= high
        )
        gained = mean(value for _, value in chosen)
        rows[spent] = {
            "evaluations": round(spent, 2),
            "for_each": round(gained, 2),
            "for_all": round(line, 2),
            "gain": round(gained - line, 2),
        }
    return [rows[spent] for spent in sorted(rows)]


def nearness(picture: Picture, name: str) -> float:
    """A picture's figure of `GOALS` in dB; 100 where it equals the full one."""
    value = close(picture) if name == "psnr" else picture.psnr_ode
    assert value is not None  # euler's are compared with both
    return value


def figures(pictures: Sequence[Picture], counts: Sequence[int]) -> dict[str, Any]:
    """All figures of a model's pictures, to the full and to the converged one, of the prompts that were drawn
    by every plan."""
    drawn: dict[str, dict[int, Picture]] = {}
    for p in pictures:
        if not p.method.startswith("full/"):
            drawn.setdefault(p.method, {})[p.seed] = p
    seeds = sorted(set.intersection(*(set(of) for of in drawn.values())))
    result: dict[str, Any] = {"prompts": len(seeds)}
    for goal, name in GOALS.items():
        closeness = {method: [nearness(of[n], name) for n in seeds] for method, of in drawn.items()}
        plans, budgets = {}, {}
        for count in counts:
            of_count = {m: v for m, v in closeness.items() if m.endswith(f"/{count}")}
            plans[str(count)] = of_plans(of_count)
            budgets[count] = closeness[plans[str(count)]["best"]]
        result[goal] = {"plans": plans, "budgets": of_budgets(budgets)}
    return result


def run(comfy: Comfy, args: argparse.Namespace) -> str:
    """The bench on all models; the whole of `<out>/headroom.md`."""
    bench = Bench(comfy, args)
    found = {}
    with torch.inference_mode():
        for kind in args.models:
            suite = bench.suite("headroom", kind, args.prompts)
            sigmas = tuple(sigmas_of(suite.subject))
            methods = [Method("full", "1.0")]
            for count in args.counts:
                plans = neighbours(best_spaced(count, sigmas), args.plans)
                for i, plan in enumerate(plans):
                    policy = SchedulePolicy(schedule=Schedule(plan, sigmas), source=f"plan {i}")
                    methods.append(Method(f"plan_{i}", str(count), attached(policy)))
            suite.run(methods, args.share)
            found[kind] = figures(suite.done(), args.counts)
    content = {"format": "rapid-headroom", "version": 1, "models": found}
    write_text(args.out / "headroom.json", json.dumps(content, indent=1) + "\n")
    text = "# headroom\n\n" + "\n".join(words(kind, found[kind]) for kind in found)
    write_text(args.out / "headroom.md", text)
    return text


def words(kind: str, of: dict[str, Any]) -> str:
    """A model's figures in lines."""
    lines = []
    for goal in GOALS:
        for count, row in of[goal]["plans"].items():
            lines.append(
                f"- {kind}, {count} evaluations, to the {goal} picture: {row['best_for_all']} dB by the best "
                f"plan for all, {row['best_for_each']} by the best for each"
            )
        best = max(of[goal]["budgets"], key=lambda row: row["gain"])
        lines.append(
            f"- {kind}, budgets, to the {goal} picture: at most {best['gain']} dB, at "
            f"{best['evaluations']} evaluations"
        )
    return "".join(line + "\n" for line in lines)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = suite_flags(__doc__)
    flags.add_argument("--models", nargs="+", choices=sorted(FAMILIES), default=["flux"])
    flags.add_argument("--counts", nargs="+", type=int, default=[7, 9, 11, 14])
    flags.add_argument("--plans", type=int, default=8)
    flags.add_argument("--prompts", type=int, default=48)
    flags.add_argument("--size", type=int, default=256, help="of the pictures, in pixels")
    return flags


def main() -> None:
    """What `dev.py bench headroom` runs."""
    run_suite(parser(), run)


if __name__ == "__main__":
    main()
