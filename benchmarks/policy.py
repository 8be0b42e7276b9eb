"""The policy suite: trained policies beside even spacing, Cache Reuse, host caches and fewer steps
at equal cost.

    python3 dev.py bench policy [--models flux sd3] [--prompts 200] [--speedups 2 3 4] [--policies DIR]
                                [--methods plan_dense cache_reuse ...] [--out DIR] [--cost-of flux-dev] [--quick]

Every policy file demo-<model>-<name> of the folder is a method: "plan_<name>" of a schedule,
"<name>" of heads. Of heads there is "<name>_shuffled", too: each picture is drawn with the
decisions that were made for another one. "random" are as many evaluations as the budget allows,
anywhere; "dense_noise<k>" are dense pictures from other noise. Thresholds of caches are the
smallest that cost no more on 8 development prompts; "cache_reuse_unguarded" stands for
"cache_reuse" where its guard computes more than that.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.costs import PUBLISHED, Decision, published
from benchmarks.parts import BATCH, add_share
from benchmarks.region import ALL, COLUMNS, SAMPLERS, own_cost, threshold_at
from benchmarks.replay import at_random, forecasts_of, replayed
from benchmarks.rows import markdown, write
from benchmarks.subject import Subject, patcher
from benchmarks.suite import Method, Scale, Suite, picked
from demo.measure import prompts
from devkit.comfy_process import load_everything
from rapid_core.policy_file.format import PolicyFile, read
from rapid_core.techniques.step_skip.schedule import SchedulePolicy, max_evaluations
from training.files import write_text

SHIPPED = Path(__file__).parent.parent / "policies"
CACHES = ("cache_reuse", "easycache", "lazycache")
OTHERS = (
    1,
    2,
    3,
)  # sets of dense pictures from other noise: how much FID and accuracy vary by themselves


def accelerate(comfy: Any, speedup: float, file: Path | None = None) -> Callable[[Any], Any]:
    """The node's patch, with a policy file or without."""
    policy = {} if file is None else {"policy": read(file)}
    return lambda model: comfy.run_node("RAPID_Accelerate", model=model, speedup=speedup, **policy)[
        0
    ]


def trained(comfy: Any, suite: Suite, speedup: float, folder: Path) -> list[Method]:
    """Policy files of a model at a speed-up, and heads with other pictures' decisions."""
    out, target = [], f"{speedup:g}x"
    for path in sorted(folder.glob(f"demo-{suite.kind}-*.safetensors")):
        file, short = read(path), path.stem.removeprefix(f"demo-{suite.kind}-")
        name = f"plan_{short}" if file.kind == "schedule" else short.replace("-", "_")
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
    return out


def shuffled(
    suite: Suite, key: str, file: PolicyFile, speedup: float
) -> Callable[[Any, list[int]], Any]:
    """The decisions that a method made for the next picture."""

    def lists_of(number: int) -> list[Decision]:
        found, other = (
            {p.seed: p.decisions for p in suite.done() if p.method == key},
            (number + 1) % len(suite.texts),
        )
        if other == number:
            raise SystemExit(f"{key}: decisions of another picture need two prompts at least")
        if other not in found:
            raise SystemExit(
                f"{key} has to be drawn before its decisions are given to other pictures: name it, too"
            )
        return [Decision(*d) for d in found[other]]

    return replayed(forecasts_of(file, speedup), lists_of)


def at_cost(comfy: Any, suite: Suite, cache: str, speedup: float, number: int) -> Method | None:
    """A cache at the smallest threshold that costs no more than a speed-up allows, on so many
    development prompts; Cache Reuse "_unguarded" and for longer in a row where it cannot be had
    otherwise."""
    target, goal = f"{speedup:g}x", max_evaluations(speedup, suite.steps) / suite.steps
    alone = cache != "cache_reuse"  # the host's decide for a whole batch
    # Of 28 evaluations 3 in a row left out are too few for a quarter of the cost; where guidance
    # makes forecasts rough, the guard computes more than a third.
    longer = {"max_consecutive": 2 * round(speedup)}
    tries = [
        ("", longer if speedup >= 4 else {}, 1.0),
        ("_unguarded", longer | {"guard": 0.0}, 10.0),
    ]
    for more_of_name, more, high in [("", {}, 1.0), ("", {}, 3.0)] if alone else tries:
        patch = partial(patcher, comfy, cache, **more)
        search = partial(threshold_at, suite, goal, number, patch, alone, high)
        found = suite.once(f"{cache}/{target}" + (f"/{high:g}" if high > 1 else ""), search)
        if found is not None:
            return Method(cache + more_of_name, target, patch(found), batch=1 if alone else BATCH)
    print(f"{suite.kind}: {cache} cannot be had at {target}")
    return None


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
    out = [
        Method("dense", "1.0"),
        *(Method(f"dense_noise{k}", "1.0", noise=1000 * k) for k in OTHERS),
    ]
    for speedup in speedups:
        target = f"{speedup:g}x"
        out += [
            *trained(comfy, suite, speedup, folder),
            Method("default_plan", target, accelerate(comfy, speedup)),
        ]
        caches = [
            cache
            for cache in CACHES
            if not names or cache in names or f"{cache}_unguarded" in names
        ]
        out += [
            m
            for m in (at_cost(comfy, suite, cache, speedup, number) for cache in caches)
            if m is not None
        ]
        anywhere = replayed(SchedulePolicy(speedup), partial(at_random, suite.steps, speedup))
        out.append(Method("random", target, each=anywhere))
        for (
            sampler,
            evaluations,
        ) in SAMPLERS.items():  # of those with two evaluations a step, one in the last
            steps = max(2, math.ceil(max_evaluations(speedup, suite.steps) / evaluations))
            out.append(Method(f"fewer_{sampler}", target, steps=steps, sampler=sampler))
    return out


def spent(suite: Suite) -> list[str]:
    """Evaluations that methods compute, by the number of objects in the scene, where that
    differs."""
    counts, found = suite.chosen.count.tolist(), dict[str, dict[int, list[int]]]()
    for picture in suite.done():
        if picture.seed >= len(counts):  # of a run with more prompts
            continue
        computed = sum(level == "run" for level, *_ in picture.decisions)
        found.setdefault(picture.method, {}).setdefault(counts[picture.seed], []).append(computed)
    out = []
    for key, by_count in sorted(found.items()):
        if len({n for some in by_count.values() for n in some}) > 1:
            each = ", ".join(
                f"{mean(some):.1f} with {count}" for count, some in sorted(by_count.items())
            )
            out.append(f"{suite.kind}: {key} computes by objects in the scene: {each}")
    return out


def run(comfy: Any, args: argparse.Namespace) -> str:
    """The suite: `<out>/policy_<model>.json`, and the table and verdicts as Markdown."""
    texts, scale = [], Scale(128, 10) if args.quick else Scale()
    with torch.inference_mode():
        for kind in args.models:
            number = 2 if args.quick else args.prompts
            suite = Suite("policy", Subject(comfy, ALL[kind]), prompts(number), args.out, scale)
            dev = 2 if args.quick else 8
            found = methods(comfy, suite, dev, args.speedups, args.policies, args.methods)
            suite.run(picked(found, args.methods), args.share)
            own = own_cost(suite.subject, scale.size)
            rows = suite.rows(own if args.cost_of == "demo" else published(args.cost_of))
            ours = sorted({p.method.split("/")[0] for p in suite.done()} - {"dense", "random"})
            ours = [
                n
                for n in ours
                if not n.startswith(("fewer_", "dense_", *CACHES)) and not n.endswith("_shuffled")
            ]
            lines = suite.verdicts(ours, [f"{s:g}x" for s in args.speedups]) + spent(suite)
            write(
                args.out / f"policy_{kind}.json",
                rows,
                {"torch": torch.__version__, "cost_of": args.cost_of},
            )
            texts.append(markdown(rows, COLUMNS) + "\n\n" + "\n".join(lines) + "\n")
            write_text(args.out / f"policy_{kind}.md", texts[-1])
    return "\n".join(texts)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--models", nargs="+", choices=sorted(ALL), default=["flux", "sd3"])
    found.add_argument("--prompts", type=int, default=200)
    found.add_argument("--speedups", nargs="+", type=float, default=[2.0, 3.0, 4.0])
    found.add_argument("--policies", type=Path, default=SHIPPED)
    found.add_argument("--methods", nargs="+", help="draw these only, beside dense")
    found.add_argument("--out", type=Path, default=Path("bench_output"))
    found.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    add_share(found)
    found.add_argument(
        "--quick", action="store_true", help="two small pictures: whether it runs, not how well"
    )
    return found


def main() -> None:
    command = parser()
    command.add_argument("--base", type=Path, required=True)
    args = command.parse_args()
    print(run(load_everything(args.base), args))


if __name__ == "__main__":
    main()
