"""The region suite: region-adaptive sampling beside its published form, blind selections, Cache
Reuse and fewer steps.

    python3 dev.py bench region [--models flux sd3 lumina] [--prompts 200] [--targets 0.5 0.25 headline]
                                [--methods region cache_reuse ...] [--out DIR] [--cost-of flux-dev] [--quick]

Everything is compared at the cost of this pack's Region Adaptive at half and a quarter of the
tokens, and at about the published headline speed-ups ("headline": 6 evaluations of 28 dense, 3/16
of the tokens in the others). Cache Reuse's threshold is the smallest that costs no more on 8
development prompts, and so is that of tokens with clocks of their own ("region_error"); fewer steps
are rounded up. The published preset is drawn with the same share of tokens ("region_paper") and
with the one that costs as much as ours ("region_paper_equal").
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.costs import PUBLISHED, SPARSITY, Decision, cost_function, decisions, published
from benchmarks.parts import add_share
from benchmarks.rows import markdown, write
from benchmarks.subject import FAMILIES, LUMINA, Subject, patcher
from benchmarks.suite import MODELS, CostOf, Method, Scale, Suite, picked
from demo.measure import prompts
from demo.pack.words import TOKENS
from devkit.comfy_process import load_everything
from rapid_core.architectures import describe
from rapid_core.cost import CostModel
from rapid_core.techniques.region.policy import paper
from rapid_core.types import ImageState, Observation, Sparsity, TokenState, Window

ALL = {**FAMILIES, "lumina": LUMINA}
NODE = dict(
    preset="custom",
    error_threshold=0.0,
    warm_up=0.15,
    tail=0.05,
    refresh_interval=3,
    drift_threshold=0.0,
    metric="change",
    direction="high",
    starvation=0.3,
    inactive="forecast",
    slope=0.0,
    kv_cache="forecast",
)
# About the published schedule: 6 evaluations of 28 compute all tokens, with few of them in between.
SIX_DENSE = dict(warm_up=0.13, tail=0.0, refresh_interval=8)
TARGETS: dict[str, tuple[float, dict]] = {
    "0.5": (0.5, {}),
    "0.25": (0.25, {}),
    "headline": (0.1875, SIX_DENSE),
}
COLUMNS = (
    "model",
    "target",
    "method",
    "prompts",
    "cost",
    "computed",
    "held",
    "psnr",
    "ci",
    "psnr_p5",
    "psnr_worst",
    "psnr_ode",
    "ssim",
    "accuracy",
    "fid",
)
SAMPLERS = {
    "euler": 1,
    "dpmpp_2m": 1,
    "res_multistep": 1,
    "uni_pc": 1,
    "heun": 2,
}  # evaluations a step
SECOND = "dpmpp_2m"  # a second-order sampler: what is saved on it adds to what it saves by itself
TEXT = TOKENS  # of a demo prompt


def has_weights(kind: str) -> bool:
    """Whether a demo model's weights are in the repository."""
    return (MODELS / f"{kind}.safetensors").is_file()


def region(comfy: Any, share: float, **settings: Any) -> Callable[[Any], Any]:
    """The node's patch."""
    inputs = {**NODE, **settings}
    return lambda model: comfy.run_node(
        "RAPID_RegionAdaptive", model=model, keep_ratio=share, **inputs
    )[0]


def own_cost(subject: Subject, size: int, sparsity: Sparsity = SPARSITY) -> CostOf:
    """Cost on the demo model itself, of pictures of `size` pixels."""
    model = subject.model.model.diffusion_model
    architecture = describe(model)
    assert architecture is not None
    return cost_function(CostModel(model, architecture), (size // 16) ** 2, TEXT, sparsity)


def cost_on_dev(
    suite: Suite,
    patch: Callable[[Any], Any],
    number: int,
    cost: Callable[[Subject, int], CostOf] = own_cost,
    alone: bool = False,
) -> float:
    """Mean cost of a patch over development prompts, as a share of dense. alone: every picture in a
    run of its own."""
    texts, model, steps = prompts(number, "dev").prompts(), patch(suite.subject.model), suite.steps
    of, found, size = cost(suite.subject, suite.scale.size), [], 1 if alone else number
    for start in range(0, number, size):
        seeds = list(range(3000 + start, 3000 + start + size))
        chosen = texts[start : start + size]
        drawn = suite.subject.sample_many(model, chosen, seeds, suite.scale.size, steps)
        found += [of(decisions(model, i, round(drawn.computed / size))) for i in range(size)]
    return mean(found) / steps


def threshold_at(
    suite: Suite,
    goal: float,
    number: int,
    patch: Callable[[float], Callable[[Any], Any]],
    alone: bool = False,
    high: float = 1.0,
) -> float | None:
    """Smallest threshold at which `patch` costs at most `goal` on development prompts, within 3 %;
    None where even that of `high` costs more."""
    low = 0.001
    if cost_on_dev(suite, patch(high), number, alone=alone) > goal:
        return None
    for _ in range(8):
        middle = (low * high) ** 0.5
        if cost_on_dev(suite, patch(middle), number, alone=alone) <= goal:
            high = middle
        else:
            low = middle
    return high


def paper_cost(subject: Subject, size: int, share: float) -> float:
    """Cost of the published preset at a share of tokens, as a share of dense, from its schedule and
    the cost model."""
    steps, (model, side) = subject.family.steps, (subject.model.model.diffusion_model, size // 16)
    found = describe(model)
    assert found is not None
    actor, made, since, number = (
        paper(found.family, share).start(Window(1.0, 0.0)),
        [],
        -1,
        side * side,
    )
    state = TokenState(
        (1, side, side), torch.zeros(number), torch.rand(2, side, side), torch.ones(number), number
    )
    for step in range(steps):
        image = ImageState(step, 0, math.inf, None, since, state)
        (action,) = actor.act(Observation(step, 1 - step / steps, (image,), step, steps))
        since = 0 if action.dense else since + 1
        made.append(Decision("run", 1.0 if action.tokens is None else len(action.tokens) / number))
    return own_cost(subject, size)(made) / steps


def paper_share(subject: Subject, size: int, goal: float) -> float:
    """The keep_ratio, in hundredths, where the published preset's cost is nearest to `goal`; of
    equals the largest."""
    shares = [hundredth / 100 for hundredth in range(99, 0, -1)]
    return min(shares, key=lambda share: abs(paper_cost(subject, size, share) - goal))


def at_cost(comfy: Any, suite: Suite, target: str, goal: float, number: int) -> list[Method]:
    """Tokens with clocks of their own, Cache Reuse and fewer steps at the cost `goal`, a share of
    dense; thresholds are fitted on `number` development prompts. The first two on the second-order
    sampler, too, with the same thresholds and so at a cost of their own."""

    def clocks(threshold: float) -> Callable[[Any], Any]:
        return region(comfy, 0.75, preset="clocks", error_threshold=threshold)

    out = []
    for name, patch in (
        ("region_error", clocks),
        ("cache_reuse", partial(patcher, comfy, "cache_reuse")),
    ):
        found = suite.once(f"{name}/{target}", partial(threshold_at, suite, goal, number, patch))
        if found is None:
            print(f"{suite.kind}: {name} cannot be had at {target}")
            continue
        out += [
            Method(name, target, patch(found)),
            Method(f"{name}_{SECOND}", target, patch(found), sampler=SECOND),
        ]
    for sampler, evaluations in SAMPLERS.items():
        steps = max(2, math.ceil(goal * suite.steps / evaluations))
        out.append(Method(f"fewer_{sampler}", target, steps=steps, sampler=sampler))
    return out


def methods(comfy: Any, suite: Suite, number: int, targets: Sequence[str]) -> list[Method]:
    """Everything the suite compares. number: development prompts that thresholds are fitted on."""
    out = [Method("dense", "1.0"), Method(f"dense_{SECOND}", "1.0", sampler=SECOND)]
    for target in targets:
        share, settings = TARGETS[target]
        own = region(comfy, share, **settings)
        out += [
            Method("region", target, own),
            Method("region_paper", target, region(comfy, share, preset="paper")),
            Method(
                "region_random", target, region(comfy, share, **{**settings, "metric": "random"})
            ),
            Method(
                "region_rounds", target, region(comfy, share, **{**settings, "metric": "rounds"})
            ),
            Method(
                "region_attention",
                target,
                region(comfy, share, **{**settings, "metric": "attention"}),
            ),
        ]
        # The cost follows from the settings alone, so two prompts are enough.
        goal = suite.once(f"cost/{target}", partial(cost_on_dev, suite, own, min(2, number)))
        equal = paper_share(suite.subject, suite.scale.size, goal)
        out.append(Method("region_paper_equal", target, region(comfy, equal, preset="paper")))
        out += at_cost(comfy, suite, target, goal, number)
    return out


def run(
    comfy: Any,
    kinds: list[str],
    number: int,
    out: Path,
    cost_of: str = "demo",
    quick: bool = False,
    targets: Sequence[str] = tuple(TARGETS),
    names: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
) -> str:
    """The suite on some demo models: `<out>/region.json`, and the table and verdicts as Markdown.
    names: of the methods that are drawn (None: all); what was drawn before is in the table all the
    same. share: see `Suite.run`."""
    rows, lines, scale = [], [], Scale(128, 10) if quick else Scale()
    targets, dev = (("0.25",), 2) if quick else (targets, 8)
    with torch.inference_mode():
        for kind in kinds:
            suite = Suite("region", Subject(comfy, ALL[kind]), prompts(number), out, scale)
            chosen = methods(comfy, suite, dev, targets)
            suite.run(picked(chosen, names), share)
            rows += suite.rows(
                own_cost(suite.subject, scale.size) if cost_of == "demo" else published(cost_of)
            )
            lines += suite.verdicts(("region", "region_error"), TARGETS)
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cost_of": cost_of}
    write(out / "region.json", rows, machine)
    text = markdown(rows, COLUMNS) + "\n\n" + "\n".join(lines) + "\n"
    (out / "region.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=sorted(ALL),
        default=[k for k in sorted(ALL) if has_weights(k)],
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("bench_output"))
    parser.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", help="draw these only, beside dense")
    add_share(parser)
    parser.add_argument(
        "--quick", action="store_true", help="two small pictures: whether it runs, not how well"
    )
    parser.add_argument("--base", type=Path, required=True)
    args = parser.parse_args()
    number = 2 if args.quick else args.prompts
    comfy = load_everything(args.base)
    print(
        run(
            comfy,
            args.models,
            number,
            args.out,
            args.cost_of,
            args.quick,
            args.targets,
            args.methods,
            args.share,
        )
    )


if __name__ == "__main__":
    main()
