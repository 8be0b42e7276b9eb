"""The region suite: region-adaptive sampling beside its published form, blind selections, Cache Reuse and fewer steps.

    python3 dev.py bench region [--models flux sd3 lumina] [--prompts 200] [--out DIR] [--cost-of flux-dev] [--quick]

Everything is compared at the cost of this pack's Region Adaptive at each share of tokens: Cache Reuse's threshold is
the smallest that costs no more on 8 development prompts, fewer steps are rounded up.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.costs import PUBLISHED, cost_function, published
from benchmarks.rows import Row, interval, markdown, write
from benchmarks.subject import FAMILIES, LUMINA, STEPS, Subject, patcher
from benchmarks.suite import SIZE, Method, Suite, decisions
from demo.measure import prompts
from demo.pack.words import TOKENS
from devkit.comfy_process import load_everything
from rapid_core.architectures import describe
from rapid_core.cost import CostModel

ALL = {**FAMILIES, "lumina": LUMINA}
SHARES = (0.5, 0.25)
NODE = dict(preset="custom", warm_up=0.15, tail=0.05, refresh_interval=3, drift_threshold=0.0, metric="change",
            direction="high", starvation=0.3, inactive="forecast", slope=0.0, kv_cache="forecast")  # fmt: skip
SAMPLERS = {"euler": 1, "dpmpp_2m": 1, "res_multistep": 1, "uni_pc": 1, "heun": 2}  # evaluations a step
TEXT = TOKENS  # of a demo prompt
MODELS = Path(__file__).parent.parent / "demo" / "models" / "diffusion_models"


def has_weights(kind: str) -> bool:
    """Whether a demo model's weights are in the repository."""
    return (MODELS / f"{kind}.safetensors").is_file()


def region(comfy: Any, share: float, **settings: Any) -> Callable[[Any], Any]:
    """The node's patch."""
    inputs = {**NODE, **settings}
    return lambda model: comfy.run_node("RAPID_RegionAdaptive", model=model, keep_ratio=share, **inputs)[0]


def own_cost(subject: Subject) -> Callable[[list[tuple[str, float]]], float]:
    """Cost on the demo model itself, at the suite's size."""
    model = subject.model.model.diffusion_model
    architecture = describe(model)
    assert architecture is not None
    return cost_function(CostModel(model, architecture), (SIZE // 16) ** 2, TEXT)


def cost_on_dev(subject: Subject, patch: Callable[[Any], Any], number: int) -> float:
    """Mean cost of a patch over development prompts, as a share of dense."""
    texts, model = prompts(number, "dev").prompts(), patch(subject.model)
    subject.sample_many(model, texts, list(range(3000, 3000 + number)), SIZE)
    of = own_cost(subject)
    return mean(of(decisions(model, i, STEPS)) for i in range(number)) / STEPS


def threshold_at(comfy: Any, subject: Subject, goal: float, number: int) -> float:
    """Smallest threshold of Cache Reuse that costs at most `goal` on development prompts."""
    low, high = 0.0, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        if cost_on_dev(subject, patcher(comfy, "cache_reuse", middle), number) <= goal:
            high = middle
        else:
            low = middle
    return high


def methods(comfy: Any, subject: Subject, number: int) -> list[Method]:
    """Everything the suite compares."""
    out = [Method("dense", "1.0")]
    for share in SHARES:
        target = f"{share:g}"
        out += [
            Method("region", target, region(comfy, share)),
            Method("region_paper", target, region(comfy, share, preset="paper")),
            Method("region_random", target, region(comfy, share, metric="random")),
            Method("region_rounds", target, region(comfy, share, metric="rounds")),
        ]
        goal = cost_on_dev(subject, region(comfy, share), min(2, number))
        threshold = threshold_at(comfy, subject, goal, number)
        out.append(Method("cache_reuse", target, patcher(comfy, "cache_reuse", threshold)))
        for sampler, evaluations in SAMPLERS.items():
            steps = max(2, math.ceil(goal * STEPS / evaluations))
            out.append(Method(f"fewer_{sampler}", target, steps=steps, sampler=sampler))
    return out


def verdicts(suite: Suite) -> list[str]:
    """Paired differences of Region Adaptive to the others, with their 95 % intervals."""
    lines = []
    for share in SHARES:
        at_share = {p.method for p in suite.done() if p.method.endswith(f"/{share:g}")}
        for other in sorted(at_share - {f"region/{share:g}"}):
            for figure in ("psnr", "psnr_ode"):
                found = suite.differences(f"region/{share:g}", other, figure)
                span = interval(found)
                if span:
                    lines.append(f"{suite.kind}: region/{share:g} - {other}, {figure}: {mean(found):+.2f} dB "
                                 f"({span[0]:+.2f} .. {span[1]:+.2f})")  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(ALL), default=[k for k in sorted(ALL) if has_weights(k)])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("bench_output"))
    parser.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    parser.add_argument("--quick", action="store_true", help="two prompts: whether it runs, not how well")
    parser.add_argument("--base", type=Path, required=True)
    args = parser.parse_args()
    number, dev = (2, 2) if args.quick else (args.prompts, 8)
    comfy, rows, lines = load_everything(args.base), [], []
    with torch.inference_mode():
        for kind in args.models:
            suite = Suite("region", Subject(comfy, ALL[kind]), prompts(number), args.out)
            suite.run(methods(comfy, suite.subject, dev))
            rows += table(suite, args.cost_of)
            lines += verdicts(suite)
    write(args.out / "region.json", rows, {"threads": torch.get_num_threads(), "torch": torch.__version__,
                                           "cost_of": args.cost_of})  # fmt: skip
    text = markdown(rows) + "\n\n" + "\n".join(lines) + "\n"
    (args.out / "region.md").write_text(text, encoding="utf-8")
    print(text)


def table(suite: Suite, cost_of: str) -> list[Row]:
    """Rows of a suite, costed as asked."""
    return suite.rows(own_cost(suite.subject) if cost_of == "demo" else published(cost_of))


if __name__ == "__main__":
    main()
