"""Fit the demo's thresholds once: each method computes about half of 28 evaluations on 16
development prompts.

    RAPID_HOST_TREE=... python -m demo.fit --base DIR

Cache Reuse's threshold is the smallest that computes clearly no more, on average, than EasyCache
and LazyCache do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from benchmarks.subject import FAMILIES, STEPS, Subject, patcher
from demo.measure import QUALITY_SIZE, THRESHOLDS, prompts
from devkit.comfy_process import load_everything

NUMBER = 16
GOAL = STEPS / 2
HIGHEST = 1.0
NODE_DEFAULT = 0.2  # of the host's EasyCache node
HALVINGS = 8
MARGIN = 0.25  # evaluations that Cache Reuse stays below the others, so that other prompts do not turn it round


def computed(subject: Subject, model, texts: list[str]) -> float:
    """Mean computed evaluations."""
    return mean(
        subject.sample(model, t, 1000 + i, QUALITY_SIZE).computed for i, t in enumerate(texts)
    )


def fit(comfy, subject: Subject, method: str, texts: list[str], goal: float) -> dict[str, float]:
    """Bisect for the smallest threshold that computes at most `goal` evaluations on average."""
    low, high, best = 0.0, HIGHEST, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = computed(subject, patcher(comfy, method, middle)(subject.model), texts)
        print(
            f"{subject.family.kind} {method} threshold {middle:.4f}: {found:.2f} computed",
            flush=True,
        )
        if found <= goal:
            high, best = middle, {"threshold": round(middle, 5), "computed": round(found, 3)}
        else:
            low = middle
    if best is None:
        raise SystemExit(
            f"{method}: no threshold up to {HIGHEST} leaves {goal} evaluations on {subject.family.kind}"
        )
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="base folder of the host")
    parser.add_argument("--models", nargs="+", default=sorted(FAMILIES))
    args = parser.parse_args()
    comfy = load_everything(args.base)
    texts = prompts(NUMBER, "dev").prompts()
    for kind in args.models:
        subject, found = Subject(comfy, FAMILIES[kind]), {}
        for method in ("easycache", "lazycache"):
            if (
                method == "easycache" and kind == "sd3"
            ):  # it wraps a call that SD3's model does not make
                model = patcher(comfy, method, NODE_DEFAULT)(subject.model)
                found[method] = {
                    "threshold": NODE_DEFAULT,
                    "computed": computed(subject, model, texts[:2]),
                }
                continue
            found[method] = fit(comfy, subject, method, texts, GOAL)
        goal = min([GOAL, *(f["computed"] for f in found.values())]) - MARGIN
        found["cache_reuse"] = fit(comfy, subject, "cache_reuse", texts, goal)
        out = json.loads(THRESHOLDS.read_text(encoding="utf-8")) if THRESHOLDS.exists() else {}
        out[kind] = found
        THRESHOLDS.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
