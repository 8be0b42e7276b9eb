"""What RAPID learns of a model: how near pictures come after so many that were watched, and after
RAPID Calibrate; and whether it holds on other sizes, guidance and schedulers.

    python3 dev.py bench learn [--suites learned transfer] [--models flux sd3 lumina]
                               [--priors flux sd3 lumina] [--pictures 0 1 2 4 8]
                               [--efforts few normal long] [--speedups 2 3 4]
                               [--prompts 200] [--size PIXELS] [--out DIR] [--share 1/2] [--quick]

*learned*: RAPID Accelerate draws development prompts with `learn` on, in full, and keeps what they
show; RAPID Calibrate calibrates on four of them. Test prompts are drawn by what the first 1, 2, ...
pictures have shown ("learned_1"; "fours_2" to "fours_4": from four others each), by the calibrations,
by what the other models' pictures have shown ("prior_<model>"), with evenly spaced steps ("even"), and
by the formula alone ("learned_0").
*transfer*: by what eight pictures have shown, on other sizes, another cfg and another scheduler.

`<out>/learn.json` has the rows, `<out>/learn_differences.json` paired differences to "learned_0", and
`<out>/learn.md` both."""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks.command import run_suite, suite_flags
from benchmarks.equal_cost import COLUMNS
from benchmarks.learn import learned, transfer
from devkit.comfy_process import Comfy
from evaluation.files import write_text
from evaluation.rows import markdown, write
from evaluation.subjects import ALL_FAMILIES
from rapid_core.calibration.plans import EFFORTS

SUITES = ("learned", "transfer")
SPEEDUPS = (2.0, 3.0, 4.0)
PICTURES = (0, 1, 2, 4, 8)


def run(comfy: Comfy, args: argparse.Namespace) -> str:
    """The bench on all models; the whole of `<out>/learn.md`."""
    rows, differences = [], []
    cost: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        kinds = dict.fromkeys([*args.models, *args.priors])
        lessons = {kind: learned.Lesson.of(comfy, kind, args) for kind in kinds}
        for lesson in (lessons[kind] for kind in args.models):
            if "learned" in args.suites:
                drawn = learned.drawn(lesson, lessons, args)
                rows += drawn.rows()
                differences += drawn.differences()
                cost[lesson.suite.kind] = lesson.full_pictures(args.efforts)
            if "transfer" in args.suites:
                differences += transfer.differences(lesson, args)
    machine = {"torch": torch.__version__, "full_pictures": cost}
    write(args.out / "learn.json", rows, machine)
    texts = ",\n".join(json.dumps(row) for row in differences)
    content = f'{{"format": "rapid-differences", "version": 1, "rows": [\n{texts}\n]}}\n'
    write_text(args.out / "learn_differences.json", content)
    lines = "".join(f"- {words(row)}\n" for row in differences)
    text = f"# learn\n\n{markdown(rows, COLUMNS)}\n\n{lines}"
    write_text(args.out / "learn.md", text)
    return text


def words(row: dict) -> str:
    """A difference in a line."""
    low, high = row["ci"]
    return (
        f"{row['suite']} {row['model']}: {row['method']}/{row['target']} - {row['against']}, to the "
        f"{row['to']} picture: {row['difference']:+.2f} dB ({low:+.2f} .. {high:+.2f})"
    )


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = suite_flags(__doc__)
    models = sorted(ALL_FAMILIES)
    flags.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    flags.add_argument("--models", nargs="+", choices=models, default=["flux", "sd3", "lumina"])
    flags.add_argument("--priors", nargs="*", choices=models, default=["flux", "sd3", "lumina"])
    flags.add_argument("--pictures", nargs="+", type=int, default=list(PICTURES))
    flags.add_argument("--efforts", nargs="*", choices=list(EFFORTS), default=list(EFFORTS))
    flags.add_argument("--speedups", nargs="+", type=float, default=list(SPEEDUPS))
    flags.add_argument("--prompts", type=int, default=200)
    flags.add_argument("--size", type=int, default=256, help="of the pictures, in pixels")
    return flags


def main() -> None:
    """What `dev.py bench learn` runs."""
    run_suite(parser(), run)
