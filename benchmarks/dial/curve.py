"""Suite curve: whether a lower speed-up is ever farther from the full picture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.dial.bench import Bench, close, of_method, on_sampler
from evaluation.files import write_text
from evaluation.plots import Panel
from evaluation.plots import draw as draw_panels
from evaluation.rows import Row, Spread
from evaluation.suites import Method, Suite
from rapid_core.quadrature.spacing import max_evaluations

SAMPLERS = ("euler", "dpmpp_2m", "res_multistep", "uni_pc", "er_sde")
SPEEDUPS = tuple(tenths / 10 for tenths in range(11, 61))
TOLERANCE = 0.3  # dB
FIGURES = ("mean", "p5", "worst")


@dataclass(frozen=True)
class Point:
    """A speed-up on a sampler; dB to the sampler's own full picture."""

    sampler: str
    speedup: float
    computed: int
    mean: float
    p5: float
    worst: float


def draw(bench: Bench, kind: str) -> tuple[list[Row], list[str]]:
    """The suite on a model: rows, and what is not monotone; `<out>/curve-<model>.png` and .json."""
    suite = bench.suite("dial_curve", kind, 32)
    speedups = (1.5, 4.0) if bench.args.quick else SPEEDUPS
    samplers = bench.args.samplers or (SAMPLERS[:2] if bench.args.quick else SAMPLERS)
    by_count = shared(speedups, suite.steps)
    chosen = [
        method(bench, sampler, count, those[0])
        for count, those in by_count.items()
        for sampler in samplers
    ]
    suite.run(chosen, bench.args.share)
    found = points(suite, samplers, by_count)
    lines = violations(found)
    path = bench.args.out / f"curve-{kind}"
    body = {"points": [asdict(point) for point in found], "violations": lines}
    write_text(path.with_suffix(".json"), json.dumps(body, indent=1) + "\n")
    draw_panels(path.with_suffix(".png"), panels(found))
    return bench.rows(suite), [f"{kind}: {line}" for line in lines]


def shared(speedups: Sequence[float], steps: int) -> dict[int, list[float]]:
    """Speed-ups by the evaluations that they compute, which is all that tells them apart."""
    return {
        count: list(those)
        for count, those in itertools.groupby(
            sorted(speedups), lambda speedup: max_evaluations(speedup, steps)
        )
    }


def method(bench: Bench, sampler: str, count: int, speedup: float) -> Method:
    """The node at a speed-up on a sampler."""
    patch = bench.node(speedup=speedup, aim="full picture")
    return on_sampler(f"full_picture_{sampler}", f"{count} computed", patch, sampler)


def points(suite: Suite, samplers: Sequence[str], by_count: dict[int, list[float]]) -> list[Point]:
    """The curve as far as it is drawn; an equal picture counts as 100 dB."""
    drawn = of_method(suite)
    out = []
    for sampler, (count, speedups) in itertools.product(samplers, by_count.items()):
        pictures = drawn.get(f"full_picture_{sampler}/{count} computed", [])
        near = Spread.of([value for value in map(close, pictures) if value is not None])
        if near.mean is None or near.p5 is None or near.worst is None:
            continue
        out += [
            Point(sampler, speedup, count, near.mean, near.p5, near.worst) for speedup in speedups
        ]
    return out


def violations(found: Sequence[Point]) -> list[str]:
    """Where a speed-up is farther from the full picture than a higher one, in the mean or in the
    worst picture, by more than the tolerance; the higher one that is the nearest is named."""
    lines = []
    for low, figure in itertools.product(found, ("mean", "worst")):
        higher = [p for p in found if p.sampler == low.sampler and p.computed < low.computed]
        if not higher:
            continue
        best = max(higher, key=lambda point: getattr(point, figure))
        lost = getattr(best, figure) - getattr(low, figure)
        if lost > TOLERANCE:
            lines.append(
                f"{low.sampler}, {figure}: {low.speedup:g}x is {lost:.1f} dB farther than "
                f"{best.speedup:g}x"
            )
    return lines


def panels(found: Sequence[Point]) -> list[Panel]:
    """One panel a sampler."""
    out = []
    for sampler in dict.fromkeys(point.sampler for point in found):
        own = [point for point in found if point.sampler == sampler]
        speedups = [point.speedup for point in own]
        lines = {name: (speedups, [getattr(p, name) for p in own]) for name in FIGURES}
        out.append(Panel(sampler, "speed-up", "dB to the full picture", lines))
    return out
