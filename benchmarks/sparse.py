"""The sparse suite: what sparse attention keeps, how long it takes, and what it does to pictures.

    python3 dev.py bench sparse [--parts mass clock quality] [--models flux sd3] [--prompts 64] [--out DIR]
                                [--methods sparse cache_reuse ...] [--cost-of demo|flux-dev|sd3-medium] [--quick]

mass: on attention inputs recorded from the demo models, the attention mass that this selection
keeps, beside a local window, random tiles and the best possible. clock: attention with selection
against the host's own and PyTorch's, one thread, interleaved. quality: pictures at densities,
beside Cache Reuse, Region Adaptive and fewer steps at equal cost.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention import clock, masses, ship
from benchmarks.costs import PUBLISHED, published
from benchmarks.region import ALL, COLUMNS, at_cost, cost_on_dev, own_cost
from benchmarks.rows import markdown, write
from benchmarks.subject import Subject
from benchmarks.suite import Method, Scale, Suite, picked
from demo.measure import prompts
from devkit.comfy_process import load_everything
from rapid_core.techniques.sparse_attention.policy import LEVELS_FILE
from rapid_core.types import LEFT_OUT, Sparsity

LEVELS = (0.5, 0.25, 0.125)  # of the quality part, and of learned policies
NODE: dict[str, Any] = dict(
    start_percent=0.0,
    end_percent=1.0,
    dense_first=1,
    dense_last=0,
    backend="gather",
    left_out="forecast",
    refresh_interval=2,
    memory_limit=0.0,
)


# What it does to pictures.
def sparse(comfy: Any, density: float, **settings: Any) -> Callable[[Any], Any]:
    """The node's patch."""
    inputs = {**NODE, "tile": "16", **settings}  # 256 px are 16 x 16 tokens: 16 tiles of 16
    return lambda model: comfy.run_node(
        "RAPID_SparseAttention", model=model, density=density, **inputs
    )[0]


def methods(
    comfy: Any, suite: Suite, number: int, levels: Sequence[float] = LEVELS
) -> list[Method]:
    """Sparse attention, with and without what stands in for what is left out, and the others at its
    cost."""
    out = [Method("dense", "1.0")]
    for density in levels:
        target, own = f"{density:g}", sparse(comfy, density)
        out.append(Method("sparse", target, own))
        out += [
            Method(f"sparse_{kind}", target, sparse(comfy, density, left_out=kind))
            for kind in LEFT_OUT[1:]
        ]
        goal = suite.once(f"cost/{target}", partial(cost_on_dev, suite, own, min(2, number), cost))
        out += at_cost(comfy, suite, target, goal, number)
    return out


def cost(subject: Subject, size: int) -> Callable[[list], float]:
    """Cost on the demo model itself."""
    return own_cost(subject, size, Sparsity("gather", dense_first=NODE["dense_first"], tile=16))


def quality(comfy: Any, kinds: list[str], args: argparse.Namespace) -> str:
    """`<out>/sparse.json` and its table."""
    rows, found, scale = [], [], Scale(128, 10) if args.quick else Scale()
    for kind in kinds:
        suite = Suite(
            "sparse",
            Subject(comfy, ALL[kind]),
            prompts(2 if args.quick else args.prompts),
            args.out,
            scale,
        )
        suite.run(
            picked(methods(comfy, suite, *((2, LEVELS[1:2]) if args.quick else (8,))), args.methods)
        )
        own = cost(suite.subject, scale.size)
        rows += suite.rows(own if args.cost_of == "demo" else published(args.cost_of))
        found += levels(suite, own)
    if args.ship:
        ship_levels(found)
    write(args.out / "sparse.json", rows, {"torch": torch.__version__, "cost_of": args.cost_of})
    return markdown(rows, COLUMNS)


def levels(suite: Suite, own: Callable[[list], float]) -> list[dict]:
    """Cost and error of every level, with differences kept ("forecast") and without ("means")."""
    kinds = {"sparse": "forecast", "sparse_means": "means"}
    costs = {
        "demo": suite.rows(own),
        **{name: suite.rows(published(name)) for name in ("flux-dev", "sd3-medium")},
    }
    return [
        dict(
            density=float(row.target),
            left_out=kinds[row.method],
            model=row.model,
            prompts=row.prompts,
            psnr=round(row.psnr or 0.0, 1),
            cost={name: round(of[i].cost or 0.0, 3) for name, of in costs.items()},
        )
        for i, row in enumerate(costs["demo"])
        if row.method in kinds
    ]


def ship_levels(rows: list[dict]) -> None:
    """Write the levels that learned policies choose from."""
    lines, refresh = ",\n ".join(json.dumps(row) for row in rows), NODE["refresh_interval"]
    head = f'"densities": {list(LEVELS)}, "refresh_interval": {refresh}'
    LEVELS_FILE.write_text(f'{{{head}, "measured": [\n {lines}]}}\n', encoding="utf-8")


def run(comfy: Any, args: argparse.Namespace) -> None:
    """The chosen parts; each writes a JSON file."""
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with torch.inference_mode():
        if "mass" in args.parts:
            sizes = ((256, 1, 16),) if args.quick else ((512, 4, 64), (512, 4, 16), (1024, 1, 64))
            found = [
                row
                for kind in args.models
                for size, number, tile in sizes
                for row in masses(Subject(comfy, ALL[kind]), size, number, tile)
            ]
            save(args.out / "sparse_mass.json", found)
        if "clock" in args.parts:
            sizes = (256,) if args.quick else (256, 1024, 4096)
            found = [
                row
                for tokens in sizes
                for head_size in (64, 128)
                for row in clock(
                    tokens, head_size, 77, 1 if args.quick else 9, tuple(args.backends)
                )
            ]
            save(args.out / "sparse_clock.json", found)
            if args.ship:
                ship(found)
        if "quality" in args.parts:
            print(quality(comfy, args.models, args))


def save(path: Path, rows: list[dict]) -> None:
    """Rows as JSON, and on the screen."""
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps(row), flush=True)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--parts",
        nargs="+",
        choices=("mass", "clock", "quality"),
        default=["mass", "clock", "quality"],
    )
    found.add_argument("--models", nargs="+", choices=sorted(ALL), default=["flux", "sd3"])
    found.add_argument("--backends", nargs="+", default=["gather"], help="of the clock")
    found.add_argument("--methods", nargs="+", help="draw these only, beside dense")
    found.add_argument("--prompts", type=int, default=64)
    found.add_argument("--out", type=Path, default=Path("bench_output"))
    found.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    found.add_argument(
        "--ship", action="store_true", help="write what the pack ships: clocks for `auto`, levels"
    )
    found.add_argument(
        "--quick", action="store_true", help="in small: whether it runs, not how well"
    )
    return found


def main() -> None:
    command = parser()
    command.add_argument("--base", type=Path, required=True)
    args = command.parse_args()
    run(load_everything(args.base), args)


if __name__ == "__main__":
    main()
