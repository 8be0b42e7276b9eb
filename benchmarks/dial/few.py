"""Suite few: what one and two skipped evaluations cost in runs of few steps."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.dial.bench import Bench
from evaluation.rows import Row
from evaluation.suites import Method, picked

STEPS = (4, 6, 8, 12)
SKIPPED = (1, 2)
OURS = ("full_picture", "best_picture", "as_it_comes")


def draw(bench: Bench, kind: str) -> tuple[list[Row], list[str]]:
    """The suite on a model, every number of steps being one by itself: rows, and verdicts."""
    rows, lines = [], []
    for steps in (8,) if bench.args.quick else STEPS:
        suite = bench.suite("dial_few", kind, 64, steps)
        suite.run(picked(list(methods(bench, steps)), bench.args.methods), bench.args.share)
        rows += bench.rows(suite)
        verdicts = suite.verdicts(OURS, [skipped(number) for number in SKIPPED])
        lines += [f"{steps} steps, {line}" for line in verdicts]
    return rows, lines


def skipped(number: int) -> str:
    """The target of so many skipped evaluations."""
    return f"{number} skipped"


def methods(bench: Bench, steps: int) -> Iterator[Method]:
    """The node with so many skips, whether it holds them safe or not, and as it comes; as many
    evaluations of Euler."""
    yield Method("full", "1.0")
    yield Method("as_it_comes", "2x", bench.node(speedup=2.0))
    for number in SKIPPED:
        left = steps - number
        given = {"speedup": steps / left, "even_so": True}
        target = skipped(number)
        yield Method("full_picture", target, bench.node(**given, aim="full picture"))
        yield Method("best_picture", target, bench.node(**given, aim="best picture"))
        yield Method("fewer_euler", target, steps=left)
