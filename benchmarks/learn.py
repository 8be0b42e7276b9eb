"""What RAPID Accelerate learns of a model from its first pictures: closeness after so many of them.

    python3 dev.py bench learn [--models flux sd3 lumina] [--pictures 0 1 4 8] [--speedups 2 3 4]
                               [--prompts 200] [--size PIXELS] [--out DIR] [--share 1/2] [--quick]

The node draws development prompts with `learn` on, in full, and keeps what they show. Test prompts
are drawn by what the first 1, 4, ... of them have shown ("learned_1"; "again": from each of the first
four alone), and with nothing learned ("learned_0"), towards the full and the converged picture.
`<out>/learn.json` has the rows, `<out>/learn.md` them and paired differences to "learned_0".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.command import run_suite, suite_flags
from benchmarks.dial.bench import judge
from benchmarks.equal_cost import COLUMNS, FIRST_SEED, own_cost
from demo.prompts import prompts
from devkit.comfy_process import Comfy
from evaluation.files import write_text
from evaluation.rows import Row, interval, markdown, write
from evaluation.subjects import ALL_FAMILIES, Subject
from evaluation.suites import QUICK, Method, Scale, Suite
from rapid_core.quadrature.gap_costs import Gap, GapCosts
from rapid_core.techniques.step_skip.schedule import SchedulePolicy
from rapid_core.types import Aim

LESSONS = 8  # development prompts that are drawn in full
ALONE = 4  # of which each is also learned from alone
SPEEDUPS = (2.0, 2.5, 3.0, 4.0)
PICTURES = (0, 1, 4, 8)
AIMS = {"full": Aim.FULL_PICTURE, "best": Aim.BEST_PICTURE}


def run(comfy: Comfy, args: argparse.Namespace) -> str:
    """The bench on all models; the whole of `<out>/learn.md`."""
    rows: list[Row] = []
    lines: list[str] = []
    scale = QUICK if args.quick else Scale(args.size)
    with torch.inference_mode():
        for kind in args.models:
            subject = Subject(comfy, ALL_FAMILIES[kind])
            suite = Suite(
                "learn", subject, judge(2 if args.quick else args.prompts), args.out, scale
            )
            suite.run(list(methods(comfy, suite, args)), args.share)
            rows += suite.rows(own_cost(subject, scale.size))
            lines += verdicts(suite, args)
    write(args.out / "learn.json", rows, {"torch": torch.__version__})
    text = f"# learn\n\n{markdown(rows, COLUMNS)}\n\n" + "".join(f"- {line}\n" for line in lines)
    write_text(args.out / "learn.md", text)
    return text


def tables(comfy: Comfy, suite: Suite) -> tuple[list[float], list[dict[Gap, float]]]:
    """Sigmas of the model's runs, and what each of the first pictures shows, as the node keeps it."""
    from comfy.samplers import calculate_sigmas  # the host is there by now

    subject = suite.subject
    sampling = subject.model.get_model_object("model_sampling")
    sigmas = calculate_sigmas(sampling, "simple", suite.steps).tolist()

    def drawn() -> list[list[tuple[int, int, float]]]:
        from rapid_core.comfy.learning import library

        kept = library()
        before = {entry.name for entry in kept.entries()}
        given = {"speedup": 2.0, "learn": True, "policy_file": "none"}
        model = comfy.run_node("RAPID_Accelerate", model=subject.model, **given)[0]
        texts = prompts(LESSONS, "dev").prompts()
        seeds = [FIRST_SEED + i for i in range(LESSONS)]
        subject.sample_many(model, texts, seeds, suite.scale.size, suite.steps)
        (entry,) = (entry for entry in kept.entries() if entry.name not in before)
        assert entry.key is not None
        learned = kept.find(entry.key)
        assert learned is not None
        return [[(*gap, error) for gap, error in t.items()] for t in learned.tables]

    seen = suite.once("tables", drawn)
    return sigmas, [{(a, b): error for a, b, error in table} for table in seen]


def methods(comfy: Comfy, suite: Suite, args: argparse.Namespace) -> Iterator[Method]:
    """The node's policy by what was learned, and the full run."""
    sigmas, seen = tables(comfy, suite)
    yield Method("full", "1.0")
    lessons = {f"learned_{n}": seen[:n] for n in args.pictures}
    lessons |= {f"again_{i}": [seen[i]] for i in range(1, ALONE if 1 in args.pictures else 0)}
    for name, some in lessons.items():
        costs = GapCosts.seen(some, sigmas) if some else None
        for speedup in args.speedups:
            for short, aim in AIMS.items():
                target = f"{speedup:g}x {short}"
                policy = SchedulePolicy(speedup=speedup, aim=aim, costs=costs)
                yield Method(name, target, patch(policy))


def patch(policy: SchedulePolicy) -> Callable[[Any], Any]:
    """The patch of a policy."""
    from rapid_core.comfy.chain import attach

    return lambda model: attach(model, policy)


def verdicts(suite: Suite, args: argparse.Namespace) -> Iterator[str]:
    """How much nearer pictures are than with nothing learned, pair by pair."""
    names = dict.fromkeys(p.method.split("/")[0] for p in suite.done())
    for speedup in args.speedups:
        for short, figure in (("full", "psnr"), ("best", "psnr_ode")):
            target = f"{speedup:g}x {short}"
            for name in names:
                if name in ("full", "learned_0"):
                    continue
                found = suite.differences(f"{name}/{target}", f"learned_0/{target}", figure)
                span = interval(found)
                if span is not None:
                    mean = sum(found) / len(found)
                    yield (
                        f"{suite.kind}, {target} picture, {name}: {mean:+.2f} dB "
                        f"({span[0]:+.2f} to {span[1]:+.2f})"
                    )


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = suite_flags(__doc__)
    flags.add_argument("--models", nargs="+", choices=sorted(ALL_FAMILIES), default=["flux", "sd3"])
    flags.add_argument("--pictures", nargs="+", type=int, default=list(PICTURES))
    flags.add_argument("--speedups", nargs="+", type=float, default=list(SPEEDUPS))
    flags.add_argument("--prompts", type=int, default=200)
    flags.add_argument("--size", type=int, default=256, help="of the pictures, in pixels")
    return flags


def main() -> None:
    """What `dev.py bench learn` runs."""
    run_suite(parser(), run)


if __name__ == "__main__":
    main()
