"""The region suite: region-adaptive sampling beside its published form, blind selections, Cache
Reuse and fewer steps.

    python3 dev.py bench region [--models flux sd3 lumina lumina_next] [--prompts 200] [--targets 0.5 0.25 headline]
                                [--methods region cache_reuse ...] [--out DIR] [--cost-of flux-dev] [--quick]

Everything is compared at the cost of this pack's Region Adaptive at half and a quarter of the
tokens, and at about the published headline speed-ups ("headline": 6 full evaluations of 28, 3/16
of the tokens in the others). Cache Reuse's threshold is the smallest that costs no more on 8
development prompts, and so is that of per-token errors ("region_error"); RAPID Accelerate's steps and
fewer steps are rounded up. The published preset is drawn with the same share of tokens ("region_paper") and
with the one that costs as much as ours ("region_paper_equal").
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.command import run_suite, suite_flags
from benchmarks.costs import PUBLISHED, published
from benchmarks.equal_cost import COLUMNS, cost_on_dev, fewer_steps, own_cost, threshold_at
from demo.scene_judge import SceneJudge
from devkit.base_folder import REPOSITORY
from evaluation.decisions import Decision
from evaluation.rows import markdown, write
from evaluation.subjects import ALL_FAMILIES, Subject, patcher
from evaluation.suites import QUICK, Method, Scale, Suite, picked
from rapid_core.architectures import describe
from rapid_core.techniques.region.presets import paper
from rapid_core.types import Mode, Observation, TokenState, Window

NODE: dict[str, Any] = dict(
    preset="custom",
    error_threshold=0.0,
    warm_up=0.15,
    tail=0.05,
    refresh_interval=3,
    drift_threshold=0.0,
    metric="change",
    direction="high",
    starvation=0.3,
    inactive="predict",
    slope=0.0,
    kv_cache="predict",
)
# About the published schedule: 6 evaluations of 28 compute all tokens, with few of them in between.
SIX_FULL: dict[str, Any] = dict(warm_up=0.13, tail=0.0, refresh_interval=8)
TARGETS: dict[str, tuple[float, dict[str, Any]]] = {
    "0.5": (0.5, {}),
    "0.25": (0.25, {}),
    "headline": (0.1875, SIX_FULL),
}
SECOND = "dpmpp_2m"  # a second-order sampler: what is saved on it adds to what it saves by itself


def has_weights(kind: str) -> bool:
    """Whether a demo model's weights are in the repository."""
    folder = REPOSITORY / "demo" / "models" / "diffusion_models"
    return (folder / f"{kind}.safetensors").is_file()


def region(comfy: Any, share: float, **settings: Any) -> Callable[[Any], Any]:
    """The node's patch."""
    inputs = {**NODE, **settings}

    def patch(model: Any) -> Any:
        return comfy.run_node("RAPID_RegionAdaptive", model=model, keep_ratio=share, **inputs)[0]

    return patch


def paper_cost(subject: Subject, size: int, share: float) -> float:
    """Cost of the published preset at a share of tokens, as a share of the full run's, from its
    schedule and the cost model."""
    steps = subject.family.steps
    side = size // 16
    number = side * side
    architecture = describe(subject.model.model.diffusion_model)
    assert architecture is not None
    actor = paper(architecture.family, share).start(Window(1.0, 0.0))
    state = TokenState(
        grid=(1, side, side),
        age=torch.zeros(number),
        derivative=torch.rand(2, side, side),
        change=torch.ones(number),
        selectable=number,
    )
    made = []
    since = -1
    for step in range(steps):
        action = actor.act(
            Observation(
                index=step,
                sigma=1 - step / steps,
                step=step,
                steps=steps,
                computed=step,
                since_full=since,
                tokens=state,
            )
        )
        actor.executed(action)
        since = 0 if action.full else since + 1
        tokens = number if action.tokens is None else len(action.tokens)
        made.append(Decision(Mode.RUN.value, tokens / number))
    return own_cost(subject, size)(made) / steps


def paper_share(subject: Subject, size: int, goal: float) -> float:
    """The keep_ratio, in hundredths, where the published preset's cost is nearest to `goal`; of
    equals the largest."""
    shares = [hundredth / 100 for hundredth in range(99, 0, -1)]
    return min(shares, key=lambda share: abs(paper_cost(subject, size, share) - goal))


def at_cost(
    comfy: Any,
    suite: Suite,
    target: str,
    goal: float,
    number: int,
    names: Sequence[str] | None = None,
) -> list[Method]:
    """Per-token errors, Cache Reuse and fewer steps at the cost `goal`, a share of the full run's;
    thresholds are fitted on `number` development prompts. The first two on the second-order
    sampler, too, with the same thresholds and so at a cost of their own. names: of methods that are to be
    drawn; a threshold that none of them needs is not fitted, since that takes dozens of pictures."""

    def per_token_error(threshold: float) -> Callable[[Any], Any]:
        return region(comfy, 0.75, preset="per-token error", error_threshold=threshold)

    methods = []
    rivals = {
        "region_error": per_token_error,
        "cache_reuse": partial(patcher, comfy, "cache_reuse"),
    }
    for name, patch in rivals.items():
        if names is not None and not {name, f"{name}_{SECOND}"} & set(names):
            continue
        search = partial(threshold_at, suite, goal, number, patch)
        threshold = suite.once(f"{name}/{target}", search)
        if threshold is None:
            print(f"{suite.kind}: {name} cannot be had at {target}")
            continue
        methods += [
            Method(name, target, patch(threshold)),
            Method(f"{name}_{SECOND}", target, patch(threshold), sampler=SECOND),
        ]
    return [
        *methods,
        accelerated(comfy, target, suite.steps, goal),
        *fewer_steps(target, goal * suite.steps),
    ]


def accelerated(comfy: Any, target: str, steps: int, goal: float) -> Method:
    """RAPID Accelerate at as many of the steps as fewer steps have."""
    speedup = steps / math.ceil(goal * steps)
    given = {"speedup": speedup, "policy_file": "none"}

    def patch(model: Any) -> Any:
        return comfy.run_node("RAPID_Accelerate", model=model, **given)[0]

    return Method("accelerate_equal", target, patch)


def methods(
    comfy: Any,
    suite: Suite,
    number: int,
    targets: Sequence[str],
    names: Sequence[str] | None = None,
) -> list[Method]:
    """Everything the suite compares. number: development prompts that thresholds are fitted on; names: as
    in `at_cost`."""
    chosen = [Method("full", "1.0"), Method(f"full_{SECOND}", "1.0", sampler=SECOND)]
    for target in targets:
        share, settings = TARGETS[target]
        own = region(comfy, share, **settings)
        chosen += [
            Method("region", target, own),
            Method("region_paper", target, region(comfy, share, preset="paper")),
        ]
        for metric in ("random", "rounds", "attention"):
            patch = region(comfy, share, **{**settings, "metric": metric})
            chosen.append(Method(f"region_{metric}", target, patch))
        # The cost follows from the settings alone, so two prompts are enough.
        goal = suite.once(f"cost/{target}", partial(cost_on_dev, suite, own, min(2, number)))
        equal = paper_share(suite.subject, suite.scale.size, goal)
        chosen.append(Method("region_paper_equal", target, region(comfy, equal, preset="paper")))
        chosen += at_cost(comfy, suite, target, goal, number, names)
    return chosen


def run(comfy: Any, args: argparse.Namespace) -> str:
    """The suite on some demo models: `<out>/region.json`, and the table and verdicts as
    Markdown. What was drawn before is in the table, whichever methods are chosen."""
    rows = []
    lines = []
    scale = QUICK if args.quick else Scale()
    targets = ("0.25",) if args.quick else args.targets
    number = 2 if args.quick else args.prompts
    dev = 2 if args.quick else 8  # development prompts
    with torch.inference_mode():
        for kind in args.models:
            subject = Subject(comfy, ALL_FAMILIES[kind])
            judge = SceneJudge.of(subject.weights, number)
            suite = Suite("region", subject, judge, args.out, scale)
            chosen = methods(comfy, suite, dev, targets, args.methods)
            suite.run(picked(chosen, args.methods), args.share)
            own = own_cost(suite.subject, scale.size)
            rows += suite.rows(own if args.cost_of == "demo" else published(args.cost_of))
            lines += suite.verdicts(("region", "region_error"), TARGETS)
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cost_of": args.cost_of,
    }
    write(args.out / "region.json", rows, machine)
    text = markdown(rows, COLUMNS) + "\n\n" + "\n".join(lines) + "\n"
    (args.out / "region.md").write_text(text, encoding="utf-8")
    return text


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = suite_flags(__doc__)
    kinds = sorted(ALL_FAMILIES)
    there = [kind for kind in kinds if has_weights(kind)]
    flags.add_argument("--models", nargs="+", choices=kinds, default=there)
    flags.add_argument("--prompts", type=int, default=200)
    flags.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    flags.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    flags.add_argument("--methods", nargs="+", help="draw these only, beside the full run")
    return flags


def main() -> None:
    run_suite(parser(), run)


if __name__ == "__main__":
    main()
