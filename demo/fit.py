"""Fit the thresholds of the demo's caches once: each computes about half of 28 evaluations on 16
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
from typing import Any

from demo.measure import QUALITY_SIZE, THRESHOLDS
from demo.world import world_of
from devkit.comfy_process import load_everything
from evaluation.subjects import FAMILIES, STEPS, Subject, patcher

NUMBER = 16
GOAL = STEPS / 2
HIGHEST = 1.0
NODE_DEFAULT = 0.2  # of the host's EasyCache node
HALVINGS = 8
# Evaluations that Cache Reuse stays below the others, so that other prompts do not turn it round.
MARGIN = 0.25


def computed(subject: Subject, model: Any, texts: list[str]) -> float:
    """Mean computed evaluations."""
    return mean(
        subject.sample(model, text, 1000 + i, QUALITY_SIZE).computed for i, text in enumerate(texts)
    )


def fit(
    comfy: Any, subject: Subject, method: str, texts: list[str], goal: float
) -> dict[str, float]:
    """Bisect for the smallest threshold that computes at most `goal` evaluations on average."""
    low = 0.0
    high = HIGHEST
    best = None
    kind = subject.family.kind
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        spent = computed(subject, patcher(comfy, method, middle)(subject.model), texts)
        print(f"{kind} {method} threshold {middle:.4f}: {spent:.2f} computed", flush=True)
        if spent <= goal:
            high = middle
            best = {"threshold": round(middle, 5), "computed": round(spent, 3)}
        else:
            low = middle
    if best is None:
        raise SystemExit(
            f"{method}: no threshold up to {HIGHEST} leaves {goal} evaluations on {kind}"
        )
    return best


def fitted(comfy: Any, subject: Subject, texts: list[str]) -> dict[str, dict[str, float]]:
    """Thresholds of all methods on a model."""
    fits = {}
    for method in ("easycache", "lazycache"):
        # EasyCache wraps a call that SD3's model does not make: any threshold does.
        if method == "easycache" and subject.family.kind == "sd3":
            model = patcher(comfy, method, NODE_DEFAULT)(subject.model)
            spent = computed(subject, model, texts[:2])
            fits[method] = {"threshold": NODE_DEFAULT, "computed": spent}
        else:
            fits[method] = fit(comfy, subject, method, texts, GOAL)
    goal = min([GOAL, *(figures["computed"] for figures in fits.values())]) - MARGIN
    fits["cache_reuse"] = fit(comfy, subject, "cache_reuse", texts, goal)
    return fits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="base folder of the host")
    parser.add_argument("--models", nargs="+", default=sorted(FAMILIES))
    args = parser.parse_args()
    comfy = load_everything(args.base)
    for kind in args.models:
        subject = Subject(comfy, FAMILIES[kind])
        texts = world_of(subject.weights).prompts(NUMBER, "dev").prompts()
        fits = fitted(comfy, subject, texts)
        known = json.loads(THRESHOLDS.read_text(encoding="utf-8")) if THRESHOLDS.exists() else {}
        known[kind] = fits
        THRESHOLDS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
