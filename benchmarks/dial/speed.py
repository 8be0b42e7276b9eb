"""Suite speed: the node beside everything else at the same number of evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import policy
from benchmarks.dial.bench import Bench, predicted
from benchmarks.equal_cost import SAMPLERS, fewer_steps
from benchmarks.rivals.tuning import NAMES, Development
from evaluation.files import write_text
from evaluation.rows import Row
from evaluation.suites import Method, Suite, picked
from rapid_core.policy_file.format import read
from rapid_core.quadrature.spacing import max_evaluations

AIMS = {"full": "full picture", "best": "best picture"}
OURS = tuple(f"{aim}_picture{end}" for aim in AIMS for end in ("", "_policy"))
WITH_POLICY = (2.0, 3.0, 4.0)  # where the plans of the shipped files are other ones
FEWER = {**SAMPLERS, "deis": 1, "ipndm": 1}


def worth_telling(row: dict[str, Any]) -> bool:
    """Whether a difference is towards what its method aims at; with a policy file only those to
    the method without one."""
    method = row["method"]
    goal = "full" if method.startswith("full") else "converged"
    plain = method.removesuffix("_policy")
    return row["to"] == goal and (plain == method or row["against"] == plain)


def draw(bench: Bench, kind: str, steps: int) -> tuple[list[Row], list[str]]:
    """The suite on a model: its rows, and verdicts."""
    args = bench.args
    suite = bench.suite("dial_speed", kind, 200, steps)
    suite.run(picked(list(methods(bench, suite)), args.methods), args.share)
    targets = [f"{speedup:g}x" for speedup in args.speedups]
    pairs = [row for row in suite.paired(OURS, targets) if worth_telling(row)]
    differences = {"rows": pairs}
    path = args.out / f"differences-{suite.name}-{kind}.json"
    write_text(path, json.dumps(differences, indent=1) + "\n")
    return bench.rows(suite), [*suite.verdicts(OURS, targets), *predicted(suite)]


def methods(bench: Bench, suite: Suite) -> Iterator[Method]:
    """Everything that is compared; what has settings is tuned only where it is asked for."""
    names = bench.args.methods
    development = Development(suite, bench.effort)
    caches = [c for c in policy.CACHES if not names or c in names or f"{c}_unguarded" in names]
    rivals = [name for name in NAMES if not names or name in names]
    file = policy.SHIPPED / f"demo-{suite.kind}-gaps.safetensors"
    yield Method("full", "1.0")
    for speedup in bench.args.speedups:
        target = f"{speedup:g}x"
        count = max_evaluations(speedup, suite.steps)
        yield from ours(bench, speedup, file)
        for cache in caches:
            found = policy.at_cost(bench.comfy, suite, cache, speedup, bench.effort.prompts)
            if found is not None:
                yield found
        yield from development.methods(rivals, target, count)
        yield from fewer_steps(target, count, FEWER)


def ours(bench: Bench, speedup: float, file: Path) -> Iterator[Method]:
    """The node with both aims, and with a policy file where there is one."""
    target = f"{speedup:g}x"
    for name, aim in AIMS.items():
        patch = bench.node(speedup=speedup, aim=aim)
        yield Method(f"{name}_picture", target, patch)
        if speedup in WITH_POLICY and file.is_file():
            patch = bench.node(speedup=speedup, aim=aim, policy=read(file))
            yield Method(f"{name}_picture_policy", target, patch)
