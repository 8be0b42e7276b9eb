"""The policy suite: trained policies beside even spacing, Cache Reuse, host caches and fewer steps
at equal cost.

    python3 dev.py bench policy [--models flux sd3] [--prompts 200] [--speedups 2 3 4] [--policies DIR]
                                [--methods schedule_gaps cache_reuse ...] [--out DIR] [--cost-of flux-dev] [--quick]

Every policy file demo-<model>-<name> of the folder is a method: "schedule_<name>" of a schedule,
"<name>" of heads. Of heads there is "<name>_shuffled", too: each picture is drawn with the
decisions that were made for another one. Of heads that begin with a schedule there is
"<name>_untrained", this schedule with the heads' aim, whichever other schedules have. "random" are
as many evaluations as the budget allows, anywhere; "full_noise<k>" are full pictures from other
noise. Thresholds of caches are the smallest that cost no more on 8 development prompts;
"cache_reuse_unguarded" stands for "cache_reuse" where its safety check computes more than that.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.command import run_suite, suite_flags
from benchmarks.costs import PUBLISHED, published
from benchmarks.equal_cost import COLUMNS, fewer_steps, own_cost, threshold_at
from benchmarks.replay import at_random, replayed
from demo.scene_judge import SceneJudge
from devkit.base_folder import REPOSITORY
from evaluation.batches import BATCH
from evaluation.decisions import Decision
from evaluation.files import write_text
from evaluation.rows import markdown, write
from evaluation.subjects import ALL_FAMILIES, Subject, attached, patcher
from evaluation.suites import QUICK, Method, Scale, Suite, picked
from rapid_core.policy_file.format import PolicyFile, read
from rapid_core.policy_file.heads import heads_policy
from rapid_core.quadrature.spacing import max_evaluations
from rapid_core.techniques.heads.rapid_plus import RapidPlusPolicy
from rapid_core.techniques.step_skip.schedule import SchedulePolicy
from rapid_core.types import Mode

SHIPPED = REPOSITORY / "policies"
CACHES = ("cache_reuse", "easycache", "lazycache")
# Sets of full pictures from other noise: how much FID and accuracy vary by themselves.
OTHERS = (1, 2, 3)
RIVALS = ("fewer_", "full_noise", *CACHES)  # what names of methods that are not ours begin with


def accelerate(comfy: Any, speedup: float, file: Path | None = None) -> Callable[[Any], Any]:
    """The node's patch, with a policy file or without any: it would find those of demo models."""
    policy = {"policy_file": "none"} if file is None else {"policy": read(file)}

    def patch(model: Any) -> Any:
        return comfy.run_node("RAPID_Accelerate", model=model, speedup=speedup, **policy)[0]

    return patch


def trained(comfy: Any, suite: Suite, speedup: float, folder: Path) -> list[Method]:
    """Policy files of a model at a speed-up; heads with other pictures' decisions, too, and the
    schedules that they begin with."""
    out = []
    target = f"{speedup:g}x"
    for path in sorted(folder.glob(f"demo-{suite.kind}-*.safetensors")):
        file = read(path)
        short = path.stem.removeprefix(f"demo-{suite.kind}-")
        name = f"schedule_{short}" if file.kind == "schedule" else short.replace("-", "_")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if suite.once(f"{name}/file", partial(str, digest)) != digest:
            raise SystemExit(
                f"{suite.out} holds pictures of an older {path.name}; use another --out"
            )
        out.append(Method(name, target, accelerate(comfy, speedup, path)))
        if file.kind == "heads":
            out.append(
                Method(
                    f"{name}_shuffled",
                    target,
                    each=shuffled(suite, out[-1].key, file, speedup),
                    late=True,
                )
            )
            policy = heads_policy(file, speedup)
            if isinstance(policy, RapidPlusPolicy):
                patch = attached(policy.schedule_policy)
                out.append(Method(f"{name}_untrained", target, patch))
    return out


def shuffled(
    suite: Suite, key: str, file: PolicyFile, speedup: float
) -> Callable[[Any, list[int]], Any]:
    """The decisions that a method made for the next picture."""

    def decisions_of(number: int) -> list[Decision]:
        other = (number + 1) % len(suite.prompts)
        if other == number:
            raise SystemExit(f"{key}: decisions of another picture need two prompts at least")
        made = {p.seed: p.decisions for p in suite.done() if p.method == key}
        if other not in made:
            raise SystemExit(
                f"{key} has to be drawn before its decisions are given to other pictures: "
                "name it, too"
            )
        return made[other]

    return replayed(heads_policy(file, speedup), decisions_of)


def at_cost(comfy: Any, suite: Suite, cache: str, speedup: float, number: int) -> Method | None:
    """A cache at the smallest threshold that costs no more than a speed-up allows, on so many
    development prompts; Cache Reuse "_unguarded" and for longer in a row where it cannot be had
    otherwise."""
    target = f"{speedup:g}x"
    goal = max_evaluations(speedup, suite.steps) / suite.steps
    alone = cache != "cache_reuse"  # the host's decide for a whole batch
    for suffix, settings, high in tries(cache, speedup):
        patch = partial(patcher, comfy, cache, **settings)
        search = partial(threshold_at, suite, goal, number, patch, alone, high)
        name = f"{cache}/{target}" + (f"/{high:g}" if high > 1 else "")
        threshold = suite.once(name, search)
        if threshold is not None:
            batch = 1 if alone else BATCH
            return Method(cache + suffix, target, patch(threshold), batch=batch)
    print(f"{suite.kind}: {cache} cannot be had at {target}")
    return None


def tries(cache: str, speedup: float) -> list[tuple[str, dict[str, Any], float]]:
    """What is tried of a cache, in turn: what is added to its name, settings, and the highest
    threshold."""
    if cache != "cache_reuse":
        return [("", {}, 1.0), ("", {}, 3.0)]
    # Of 28 evaluations 3 skipped in a row are too few for a quarter of the cost; where guidance
    # makes predictions rough, the safety check computes more than a third.
    longer: dict[str, Any] = {"max_consecutive": 2 * round(speedup)}
    return [
        ("", longer if speedup >= 4 else {}, 1.0),
        ("_unguarded", longer | {"guard": 0.0}, 10.0),
    ]


def methods(
    comfy: Any,
    suite: Suite,
    number: int,
    speedups: list[float],
    folder: Path,
    names: list[str] | None,
) -> list[Method]:
    """Everything the suite compares, at the cost of each speed-up. number: development prompts of
    the thresholds; names: of the methods that are drawn (None: all)."""
    chosen = [
        Method("full", "1.0"),
        *(Method(f"full_noise{k}", "1.0", noise=1000 * k) for k in OTHERS),
    ]
    caches = [c for c in CACHES if not names or c in names or f"{c}_unguarded" in names]
    for speedup in speedups:
        target = f"{speedup:g}x"
        chosen += trained(comfy, suite, speedup, folder)
        chosen.append(Method("default_schedule", target, accelerate(comfy, speedup)))
        rivals = [at_cost(comfy, suite, cache, speedup, number) for cache in caches]
        chosen += [method for method in rivals if method is not None]
        even = SchedulePolicy(speedup=speedup)
        anywhere = replayed(even, partial(at_random, suite.steps, speedup))
        chosen.append(Method("random", target, each=anywhere))
        chosen += fewer_steps(target, max_evaluations(speedup, suite.steps))
    return chosen


def spent(suite: Suite, counts: list[int]) -> list[str]:
    """Evaluations that methods compute, by the number of objects in the scene (`counts`), where
    that differs."""
    by_method: dict[str, dict[int, list[int]]] = {}
    for picture in suite.done():
        if picture.seed >= len(counts):  # of a run with more prompts
            continue
        computed = sum(d.mode == Mode.RUN.value for d in picture.decisions)
        by_count = by_method.setdefault(picture.method, {})
        by_count.setdefault(counts[picture.seed], []).append(computed)
    lines = []
    for key, by_count in sorted(by_method.items()):
        if len({n for some in by_count.values() for n in some}) > 1:
            means = ", ".join(f"{mean(by_count[n]):.1f} with {n}" for n in sorted(by_count))
            lines.append(f"{suite.kind}: {key} computes by objects in the scene: {means}")
    return lines


def ours(suite: Suite) -> list[str]:
    """Names of the methods that verdicts are about."""
    names = {p.method.split("/")[0] for p in suite.done()} - {"full", "random"}
    return sorted(n for n in names if not n.startswith(RIVALS) and not n.endswith("_shuffled"))


def run(comfy: Any, args: argparse.Namespace) -> str:
    """The suite: `<out>/policy_<model>.json`, and the table and verdicts as Markdown."""
    texts = []
    scale = QUICK if args.quick else Scale()
    number = 2 if args.quick else args.prompts
    dev = 2 if args.quick else 8  # development prompts
    with torch.inference_mode():
        for kind in args.models:
            subject = Subject(comfy, ALL_FAMILIES[kind])
            judge = SceneJudge.of(subject.weights, number)
            suite = Suite("policy", subject, judge, args.out, scale)
            chosen = methods(comfy, suite, dev, args.speedups, args.policies, args.methods)
            suite.run(picked(chosen, args.methods), args.share)
            own = own_cost(suite.subject, scale.size)
            rows = suite.rows(own if args.cost_of == "demo" else published(args.cost_of))
            lines = suite.verdicts(ours(suite), [f"{s:g}x" for s in args.speedups])
            lines += spent(suite, judge.scenes.count.tolist())
            machine = {"torch": torch.__version__, "cost_of": args.cost_of}
            write(args.out / f"policy_{kind}.json", rows, machine)
            texts.append(markdown(rows, COLUMNS) + "\n\n" + "\n".join(lines) + "\n")
            write_text(args.out / f"policy_{kind}.md", texts[-1])
    return "\n".join(texts)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = suite_flags(__doc__)
    flags.add_argument("--models", nargs="+", choices=sorted(ALL_FAMILIES), default=["flux", "sd3"])
    flags.add_argument("--prompts", type=int, default=200)
    flags.add_argument("--speedups", nargs="+", type=float, default=[2.0, 3.0, 4.0])
    flags.add_argument("--policies", type=Path, default=SHIPPED)
    flags.add_argument("--methods", nargs="+", help="draw these only, beside the full run")
    flags.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    return flags


def main() -> None:
    run_suite(parser(), run)


if __name__ == "__main__":
    main()
