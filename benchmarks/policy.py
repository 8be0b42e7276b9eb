"""The policy suite: schedules that were trained, beside even spacing, Cache Reuse, host caches and fewer steps at equal
cost.

    python3 dev.py bench policy [--models flux sd3] [--prompts 200] [--speedups 2 3 4] [--policies DIR]
                                [--methods plan_dense cache_reuse ...] [--out DIR] [--cost-of flux-dev] [--quick]

"plan_solution" and "plan_dense" are the policy files demo-<model>-solution and demo-<model>-dense; thresholds of caches
are the smallest that cost no more on 8 development prompts.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.costs import PUBLISHED, published
from benchmarks.region import ALL, COLUMNS, SAMPLERS, own_cost, threshold_at
from benchmarks.rows import markdown, write
from benchmarks.subject import Subject, patcher
from benchmarks.suite import Method, Scale, Suite, picked
from demo.measure import prompts
from devkit.comfy_process import load_everything
from rapid_core.policy_file import read

SHIPPED = Path(__file__).parent.parent / "policies"
FILES = {"plan_solution": "demo-{}-solution", "plan_dense": "demo-{}-dense"}


def accelerate(comfy: Any, speedup: float, file: Path | None = None) -> Callable[[Any], Any]:
    """The node's patch, with a policy file or without."""
    policy = {} if file is None else {"policy": read(file)}
    return lambda model: comfy.run_node("RAPID_Accelerate", model=model, speedup=speedup, **policy)[0]


def methods(comfy: Any, suite: Suite, number: int, speedups: list[float], folder: Path) -> list[Method]:
    """Everything the suite compares, at the cost of each speed-up. number: development prompts of the thresholds."""
    out = [Method("dense", "1.0")]
    for speedup in speedups:
        target, goal = f"{speedup:g}x", math.floor(suite.steps / speedup + 1e-9) / suite.steps
        for name, pattern in FILES.items():
            path = folder / f"{pattern.format(suite.kind)}.safetensors"
            if path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if suite.once(f"{name}/file", partial(str, digest)) != digest:
                    raise SystemExit(f"{suite.out} holds pictures of an older {path.name}; use another --out")
                out.append(Method(name, target, accelerate(comfy, speedup, path)))
        out.append(Method("default_plan", target, accelerate(comfy, speedup)))
        patch = partial(patcher, comfy, "cache_reuse")
        found = suite.once(f"cache_reuse/{target}", partial(threshold_at, suite, goal, number, patch))
        out.append(Method("cache_reuse", target, patch(found)))
        for sampler, evaluations in SAMPLERS.items():
            steps = max(2, math.floor(goal * suite.steps / evaluations + 1e-9))
            out.append(Method(f"fewer_{sampler}", target, steps=steps, sampler=sampler))
    return out


def run(comfy: Any, args: argparse.Namespace) -> str:
    """The suite: `<out>/policy.json`, and the table and verdicts as Markdown."""
    rows, lines, scale = [], [], Scale(128, 10) if args.quick else Scale()
    with torch.inference_mode():
        for kind in args.models:
            number = 2 if args.quick else args.prompts
            suite = Suite("policy", Subject(comfy, ALL[kind]), prompts(number), args.out, scale)
            suite.run(picked(methods(comfy, suite, 2 if args.quick else 8, args.speedups, args.policies), args.methods))
            own = own_cost(suite.subject, scale.size)
            rows += suite.rows(own if args.cost_of == "demo" else published(args.cost_of))
            lines += suite.verdicts((*FILES, "default_plan"), [f"{s:g}x" for s in args.speedups])
    write(args.out / "policy.json", rows, {"torch": torch.__version__, "cost_of": args.cost_of})
    text = markdown(rows, COLUMNS) + "\n\n" + "\n".join(lines) + "\n"
    (args.out / "policy.md").write_text(text, encoding="utf-8")
    return text


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--models", nargs="+", choices=sorted(ALL), default=["flux", "sd3"])
    found.add_argument("--prompts", type=int, default=200)
    found.add_argument("--speedups", nargs="+", type=float, default=[2.0, 3.0, 4.0])
    found.add_argument("--policies", type=Path, default=SHIPPED)
    found.add_argument("--methods", nargs="+", help="draw these only, beside dense")
    found.add_argument("--out", type=Path, default=Path("bench_output"))
    found.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    found.add_argument("--quick", action="store_true", help="two small pictures: whether it runs, not how well")
    return found


def main() -> None:
    command = parser()
    command.add_argument("--base", type=Path, required=True)
    args = command.parse_args()
    print(run(load_everything(args.base), args))


if __name__ == "__main__":
    main()
