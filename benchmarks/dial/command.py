"""The dial suites: RAPID Accelerate, its rivals, and whether the dial tells the truth.

    python3 dev.py bench dial [--suites speed samplers few curve quality] [--models flux sd3]
                              [--steps 28 50] [--speedups 1.2 1.5 2 2.5 3 4 5] [--prompts N]
                              [--methods full_picture spectrum ...] [--samplers euler lcm ...]
                              [--asked 34 40 45] [--size PIXELS] [--out DIR] [--share 1/2]
                              [--quick]

speed     the node with both aims ("full_picture", "best_picture") and with the shipped policy file
          ("full_picture_policy", ...), at the number of evaluations of each speed-up beside RAPID
          Cache Reuse, published methods as policies of this engine (`benchmarks.rivals`), the host's
          caches and fewer steps of other samplers. What has settings has those that are best on
          development prompts.
samplers  every sampler of the host with the node as it comes: skips or full, how close, and beside
          as many evaluations of the same sampler; `<out>/samplers.json` is for docs/results.
few       4, 6, 8 and 12 steps: what one and two skipped evaluations cost beside fewer steps.
curve     every speed-up from 1.1 to 6, to the sampler's own full picture; a plot, and where a lower
          speed-up is farther from it.
quality   the node's mode "quality": whether pictures are as close as was asked, what that takes, and
          whether the closeness that runs predict ranks pictures as the true one.

`<out>/dial.json` has the rows of all suites, `<out>/dial.md` tables and verdicts,
`<out>/differences-dial_speed-<model>.json` the paired differences. What was drawn before is kept and
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from benchmarks.command import run_suite, suite_flags
from benchmarks.dial import curve, few, quality, samplers, speed
from benchmarks.dial.bench import Bench
from benchmarks.equal_cost import COLUMNS
from devkit.comfy_process import Comfy
from evaluation.files import write_text
from evaluation.rows import Row, markdown, write
from evaluation.subjects import ALL_FAMILIES

SUITES = ("speed", "samplers", "few", "curve", "quality")
SPEEDUPS = (1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


def run(comfy: Comfy, args: argparse.Namespace) -> str:
    """The suites that were asked for; the whole of `<out>/dial.md`."""
    bench = Bench(comfy, args)
    with torch.inference_mode():
        for suite in args.suites:
            for kind in args.models:
                for steps in args.steps if suite == "speed" else (None,):
                    draw(bench, suite, kind, steps)
    return (args.out / "dial.md").read_text(encoding="utf-8")


def draw(bench: Bench, suite: str, kind: str, steps: int | None) -> None:
    """One suite on one model, and its part of the files."""
    if suite == "speed":
        assert steps is not None
        rows, lines = speed.draw(bench, kind, steps)
    else:
        kinds = {"samplers": samplers, "few": few, "curve": curve, "quality": quality}
        rows, lines = kinds[suite].draw(bench, kind)
    title = f"{suite}-{kind}" + ("" if steps is None else f"-{steps}")
    write_rows(bench.args.out / "dial.json", rows)
    write_part(bench.args.out, title, rows, lines)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows in place of those of the same suite and model; the others stay."""
    kept: list[Row] = []
    if path.exists():
        names = {field.name for field in fields(Row)}
        found = json.loads(path.read_text(encoding="utf-8"))["rows"]
        before = [Row(**{n: v for n, v in row.items() if n in names}) for row in found]
        now = {(row.suite, row.model) for row in rows}
        kept = [row for row in before if (row.suite, row.model) not in now]
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    write(path, [*kept, *rows], machine)


def write_part(out: Path, title: str, rows: Sequence[Row], lines: Sequence[str]) -> None:
    """A part of `dial.md`, which is made of all parts that are there."""
    parts = out / "dial"
    table = markdown(rows, ("suite", *COLUMNS)) + "\n\n" if rows else ""
    text = f"# {title}\n\n{table}" + "".join(f"- {line}\n" for line in lines)
    write_text(parts / f"{title}.md", text)
    whole = [path.read_text(encoding="utf-8") for path in sorted(parts.glob("*.md"))]
    write_text(out / "dial.md", "\n".join(whole))


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = suite_flags(__doc__)
    flags.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    flags.add_argument("--models", nargs="+", choices=sorted(ALL_FAMILIES), default=["flux", "sd3"])
    flags.add_argument("--steps", nargs="+", type=int, default=[28], help="of suite speed")
    flags.add_argument("--speedups", nargs="+", type=float, default=list(SPEEDUPS), help="of speed")
    flags.add_argument(
        "--prompts",
        type=int,
        help="default: 200 for speed and quality, 64 for few, 32 for curve, 16 for samplers",
    )
    flags.add_argument("--methods", nargs="+", help="draw these only, beside the full run")
    flags.add_argument("--asked", nargs="+", type=int, default=[34, 40, 45], help="dB, in quality")
    flags.add_argument("--samplers", nargs="+", help="of suites samplers, curve and quality")
    flags.add_argument("--size", type=int, default=256, help="of the pictures, in pixels")
    return flags


def main() -> None:
    """What `dev.py bench dial` runs."""
    run_suite(parser(), run)
