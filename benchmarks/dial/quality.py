"""Suite quality: the node's mode of the same name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from benchmarks.dial.bench import Bench, close, computed, of_method, on_sampler, predicted
from evaluation.files import write_text
from evaluation.rows import Row, Spread
from evaluation.suites import Method, Picture, Suite

SAMPLERS = ("euler", "dpmpp_2m")
SHORT = 2  # dB that a picture may be below what was asked
PRESETS = ("faithful", "balanced", "draft")


def draw(bench: Bench, kind: str) -> tuple[list[Row], list[str]]:
    """The suite on a model: rows, and whether it gives what was asked."""
    if "mode" not in bench.node_inputs():
        return [], [f"{kind}: this node has no mode, so that no quality can be asked for"]
    suite = bench.suite("dial_quality", kind, 200)
    share = bench.args.share
    samplers = bench.args.samplers or SAMPLERS
    asked = (40,) if bench.args.quick else bench.args.asked
    given = [quality(bench, sampler, decibels) for sampler in samplers for decibels in asked]
    suite.run(given, share)
    drawn = of_method(suite)
    rivals = {}
    for method in given:
        pictures = drawn.get(method.key, [])
        if len(pictures) == len(suite.prompts):  # else of a process that draws a share
            rivals |= {m.key: m for m in as_many(bench, suite, method.sampler, computed(pictures))}
    suite.run(list(rivals.values()), share)
    found = [
        row
        for sampler in samplers
        for decibels in asked
        if (row := figures(suite, sampler, decibels)) is not None
    ]
    body = {"model": kind, "size": bench.scale.size, "rows": found}
    write_text(bench.args.out / f"quality-{kind}.json", json.dumps(body, indent=1) + "\n")
    lines = [f"{kind}: {line}" for row in found for line in words(row)]
    return bench.rows(suite), [*lines, *predicted(suite)]


def inputs(bench: Bench, decibels: float) -> dict[str, Any]:
    """What the node is given to be asked for so many dB: the number, and of the named ones that
    which says that there is a number."""
    given: dict[str, Any] = {"mode": "quality", "decibels": float(decibels)}
    named = getattr(bench.node_inputs().get("closeness"), "options", None) or ()
    own = [option for option in named if not str(option).lower().startswith(PRESETS)]
    return {**given, "closeness": own[0]} if own else given


def quality(bench: Bench, sampler: str, decibels: float) -> Method:
    """The node asked for so many dB."""
    patch = bench.node(**inputs(bench, decibels))
    return on_sampler(f"quality_{sampler}", f"{decibels} dB", patch, sampler)


def as_many(bench: Bench, suite: Suite, sampler: str, evaluations: float) -> Iterator[Method]:
    """The node's mode speed at the whole numbers of evaluations around a mean."""
    for count in around(evaluations):
        patch = bench.node(mode="speed", speedup=suite.steps / count, aim="full picture")
        yield on_sampler(f"speed_{sampler}", f"{count} computed", patch, sampler)


def around(evaluations: float) -> list[int]:
    """The whole numbers below and above, one where it is whole."""
    return sorted({math.floor(evaluations + 1e-9), math.ceil(evaluations - 1e-9)})


def spread(pictures: Sequence[Picture]) -> Spread:
    """dB to the full picture; an equal one counts as 100."""
    return Spread.of([value for value in map(close, pictures) if value is not None])


def figures(suite: Suite, sampler: str, decibels: float) -> dict[str, Any] | None:
    """What was given of what was asked, and at equal mean evaluations by speed alone."""
    drawn = of_method(suite)
    pictures = drawn.get(f"quality_{sampler}/{decibels} dB", [])
    if not pictures:
        return None
    own = spread(pictures)
    values = [value for value in map(close, pictures) if value is not None]
    each = [computed([picture]) for picture in pictures]
    row = {
        "sampler": sampler,
        "asked": decibels,
        "prompts": len(pictures),
        "psnr": own.mean,
        "psnr_p5": own.p5,
        "psnr_worst": own.worst,
        "kept": mean(value >= decibels - SHORT for value in values),
        "computed": computed(pictures),
        "computed_range": [min(each), max(each)],
        "speed_p5": None,
    }
    rivals = [drawn.get(f"speed_{sampler}/{count} computed", []) for count in around(mean(each))]
    if all(rivals):
        counts = [computed(rival) for rival in rivals]
        fifths = [spread(rival).p5 or 0.0 for rival in rivals]
        row["speed_p5"] = between(mean(each), counts, fifths)
    return row


def words(row: dict[str, Any]) -> list[str]:
    """The same in lines."""
    sampler, asked, spent = row["sampler"], row["asked"], row["computed"]
    low, high = row["computed_range"]
    lines = [
        f"{sampler}, asked for {asked} dB: {row['psnr']:.1f} dB in the mean, 5th percentile "
        f"{row['psnr_p5']:.1f}, worst {row['psnr_worst']:.1f}; {row['kept']:.0%} at "
        f"{asked - SHORT} dB or more; {spent:.2f} evaluations ({low:.0f} to {high:.0f} a picture)"
    ]
    if row["speed_p5"] is not None:
        lines.append(
            f"{sampler}, speed alone at {spent:.2f} evaluations: 5th percentile "
            f"{row['speed_p5']:.1f}"
        )
    return lines


def between(at: float, places: Sequence[float], values: Sequence[float]) -> float:
    """The value of the line through one or two points."""
    if len(set(places)) < 2:
        return values[0]
    share = (at - places[0]) / (places[1] - places[0])
    return values[0] + share * (values[1] - values[0])
