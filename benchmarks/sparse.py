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
from benchmarks.equal_cost import COLUMNS, cost_on_dev, own_cost
from benchmarks.region import at_cost
from demo.scene_judge import SceneJudge
from devkit.comfy_process import load_everything
from evaluation.rows import markdown, write
from evaluation.subjects import ALL_FAMILIES, Subject
from evaluation.suites import QUICK, CostOf, Method, Scale, Suite, picked
from rapid_core.types import COMPENSATIONS, Sparsity

PARTS = ("mass", "clock", "quality")
DENSITIES = (0.5, 0.25, 0.125)  # of the quality part
NODE: dict[str, Any] = dict(
    start_percent=0.0,
    end_percent=1.0,
    dense_first=1,
    dense_last=0,
    backend="gather",
    left_out="predict",
    refresh_interval=2,
    memory_limit=0.0,
)


# What it does to pictures.
def sparse(comfy: Any, density: float, **settings: Any) -> Callable[[Any], Any]:
    """The node's patch."""
    inputs = {**NODE, "tile": "16", **settings}  # 256 px are 16 x 16 tokens: 16 tiles of 16

    def patch(model: Any) -> Any:
        return comfy.run_node("RAPID_SparseAttention", model=model, density=density, **inputs)[0]

    return patch


def methods(
    comfy: Any,
    suite: Suite,
    number: int,
    densities: Sequence[float] = DENSITIES,
    names: Sequence[str] | None = None,
) -> list[Method]:
    """Sparse attention, with all that may stand in for what is not attended to, and the others at
    its cost. names: of methods that are to be drawn, see `at_cost`."""
    chosen = [Method("full", "1.0")]
    others = [kind for kind in COMPENSATIONS if kind != NODE["left_out"]]
    for density in densities:
        target = f"{density:g}"
        own = sparse(comfy, density)
        chosen.append(Method("sparse", target, own))
        for kind in others:
            name = f"sparse_{kind.replace(' ', '_')}"
            chosen.append(Method(name, target, sparse(comfy, density, left_out=kind)))
        goal = suite.once(f"cost/{target}", partial(cost_on_dev, suite, own, min(2, number), cost))
        chosen += at_cost(comfy, suite, target, goal, number, names)
    return chosen


def cost(subject: Subject, size: int) -> CostOf:
    """Cost on the demo model itself."""
    return own_cost(subject, size, Sparsity("gather", dense_first=NODE["dense_first"], tile=16))


def quality(comfy: Any, args: argparse.Namespace) -> str:
    """`<out>/sparse.json` and its table."""
    rows = []
    scale = QUICK if args.quick else Scale()
    number = 2 if args.quick else args.prompts
    dev = 2 if args.quick else 8  # development prompts
    densities = DENSITIES[1:2] if args.quick else DENSITIES
    for kind in args.models:
        subject = Subject(comfy, ALL_FAMILIES[kind])
        suite = Suite("sparse", subject, SceneJudge.of(subject.weights, number), args.out, scale)
        suite.run(picked(methods(comfy, suite, dev, densities, args.methods), args.methods))
        own = cost(suite.subject, scale.size)
        rows += suite.rows(own if args.cost_of == "demo" else published(args.cost_of))
    write(args.out / "sparse.json", rows, {"torch": torch.__version__, "cost_of": args.cost_of})
    return markdown(rows, COLUMNS)


def run(comfy: Any, args: argparse.Namespace) -> None:
    """The chosen parts; each writes a JSON file."""
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with torch.inference_mode():
        if "mass" in args.parts:
            save(args.out / "sparse_mass.json", all_masses(comfy, args))
        if "clock" in args.parts:
            rows = all_clocks(args)
            save(args.out / "sparse_clock.json", rows)
            if args.ship:
                ship(rows)
        if "quality" in args.parts:
            print(quality(comfy, args))


def all_masses(comfy: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the mass part."""
    # Pixels, prompts, tokens of a tile.
    sizes = ((256, 1, 16),) if args.quick else ((512, 4, 64), (512, 4, 16), (1024, 1, 64))
    rows = []
    for kind in args.models:
        for size, number, tile in sizes:
            rows += masses(Subject(comfy, ALL_FAMILIES[kind]), size, number, tile)
    return rows


def all_clocks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the clock part."""
    rows = []
    for tokens in (256,) if args.quick else (256, 1024, 4096):
        for head_size in (64, 128):
            repetitions = 1 if args.quick else 9
            rows += clock(tokens, head_size, 77, repetitions, tuple(args.backends))
    return rows


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON, and on the screen."""
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps(row), flush=True)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    flags.add_argument("--models", nargs="+", choices=sorted(ALL_FAMILIES), default=["flux", "sd3"])
    flags.add_argument("--backends", nargs="+", default=["gather"], help="of the clock")
    flags.add_argument("--methods", nargs="+", help="draw these only, beside the full run")
    flags.add_argument("--prompts", type=int, default=64)
    flags.add_argument("--out", type=Path, default=Path("bench_output"))
    flags.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    flags.add_argument(
        "--ship", action="store_true", help="write what the pack ships: the clocks for `auto`"
    )
    flags.add_argument(
        "--quick", action="store_true", help="in small: whether it runs, not how well"
    )
    return flags


def main() -> None:
    command = parser()
    command.add_argument("--base", type=Path, required=True)
    args = command.parse_args()
    run(load_everything(args.base), args)


if __name__ == "__main__":
    main()
