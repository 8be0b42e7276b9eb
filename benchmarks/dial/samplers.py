"""Suite samplers: every sampler of the host with the node as it comes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

import torch

from benchmarks.dial.bench import Bench, Patch, computed, of_method
from evaluation.batches import BATCH
from evaluation.files import write_text
from evaluation.rows import Row, Spread, interval
from evaluation.suites import FullRun, Method, Suite, unchanged

TARGET = "2x"  # the node's default
OURS = "as_it_comes"
FIRST = 2  # prompts of every sampler


def draw(bench: Bench, kind: str) -> tuple[list[Row], list[str]]:
    """The suite on a model: rows of quality; `<out>/samplers.json` for the generated table."""
    suite = bench.suite("dial_samplers", kind, 16)
    node = bench.node()
    chosen = names(bench.args.samplers, bench.args.quick)
    errors = {
        sampler: suite.once(f"error/{sampler}", partial(error_of, suite, sampler, node))
        for sampler in chosen
    }
    run = [sampler for sampler in chosen if errors[sampler] is None]
    share = bench.args.share
    pairs = {sampler: pair(sampler, node) for sampler in run}
    suite.run([m for methods in pairs.values() for m in methods], share, first=FIRST)
    # Where nothing is skipped, more prompts say no more.
    skip = [sampler for sampler in run if not computes_all(suite, sampler)]
    suite.run([m for sampler in skip for m in pairs[sampler]], share)
    rivals = [as_many(suite, sampler) for sampler in run]
    suite.run([method for method in rivals if method is not None], share)
    found = [figures(suite, sampler, errors[sampler]) for sampler in chosen]
    path = bench.args.out / "samplers.json"
    others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    others = [row for row in others if (row["model"], row["sampler"]) not in keys(found)]
    write_text(path, json.dumps([*others, *found], indent=1) + "\n")
    return bench.rows(suite), [f"{kind}: {line(row)}" for row in found]


def computes_all(suite: Suite, sampler: str) -> bool:
    """Whether every picture of the node equals the sampler's own full one."""
    drawn = of_method(suite).get(f"{OURS}_{sampler}/{TARGET}", [])
    return bool(drawn) and all(picture.equal for picture in drawn)


def names(asked: Sequence[str] | None, quick: bool) -> list[str]:
    """The host's samplers, or those that were asked for. The host takes its first one for a name
    that it does not know, so this raises SystemExit for such a name."""
    from comfy.samplers import SAMPLER_NAMES  # the host is there by now

    unknown = [name for name in asked or () if name not in SAMPLER_NAMES]
    if unknown:
        raise SystemExit(f"no sampler of this host: {', '.join(unknown)}")
    return list(asked or (("euler", "lcm") if quick else SAMPLER_NAMES))


def keys(rows: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Which rows these are."""
    return {(row["model"], row["sampler"]) for row in rows}


# Pictures of these depend on their own noise alone, so that several may be drawn in a run.
BATCHED = [
    "euler",
    "euler_cfg_pp",
    "heun",
    "heunpp2",
    "exp_heun_2_x0",
    "dpm_2",
    "lms",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "uni_pc",
    "uni_pc_bh2",
    "ddim",
]


def method(name: str, sampler: str, patch: Patch = unchanged, steps: int | None = None) -> Method:
    """A method beside the sampler's own full picture; one picture a run where what noise the sampler
    adds may depend on the batch."""
    alone = sampler not in BATCHED
    reference = FullRun(sampler, alone=alone)
    batch = 1 if alone else BATCH
    return Method(f"{name}_{sampler}", TARGET, patch, steps, sampler, reference, batch=batch)


def pair(sampler: str, node: Patch) -> list[Method]:
    """The full run of a sampler, and the node's."""
    return [method("full", sampler), method(OURS, sampler, node)]


def error_of(suite: Suite, sampler: str, node: Patch) -> str | None:
    """Why a sampler cannot be drawn with this model, or with the node on it alone; None where it
    can."""
    for where, patch in (("", unchanged), ("with the node: ", node)):
        try:
            drawn = suite.subject.sample(
                patch(suite.subject.model),
                suite.prompts[0],
                0,
                suite.scale.size,
                suite.steps,
                sampler,
            )
        except Exception as error:  # whatever a sampler does: it is what the table says
            return f"{where}{type(error).__name__}: {error}".splitlines()[0]
        if not torch.isfinite(drawn.latent).all():
            return f"{where}values that are not finite"
    return None


def as_many(suite: Suite, sampler: str) -> Method | None:
    """As few steps of the same sampler as make the evaluations that the node computed, rounded up;
    None where it computed all of them."""
    drawn = of_method(suite).get(f"{OURS}_{sampler}/{TARGET}", [])
    if len(drawn) < len(suite.prompts):  # of a process that draws a share
        return None
    a_step = mean(len(p.decisions) for p in drawn) / suite.steps
    steps = max(2, math.ceil(computed(drawn) / a_step - 1e-9))
    return method("fewer", sampler, steps=steps) if steps < suite.steps else None


def figures(suite: Suite, sampler: str, error: str | None) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {"model": suite.kind, "sampler": sampler, "error": error}
    drawn = of_method(suite).get(f"{OURS}_{sampler}/{TARGET}", [])
    if not drawn:
        return row
    near = Spread.of([p.psnr for p in drawn if p.psnr is not None])
    keys = (f"{name}_{sampler}/{TARGET}" for name in (OURS, "fewer"))
    differences = suite.differences(*keys, figure="psnr")
    reasons = dict.fromkeys(reason for p in drawn for reason in p.reasons)
    return {
        **row,
        "steps": suite.steps,
        "prompts": len(drawn),
        "evaluations": mean(len(p.decisions) for p in drawn),
        "computed": computed(drawn),
        "equal": sum(p.equal for p in drawn),
        "psnr": near.mean,
        "ci": near.ci,
        "psnr_worst": near.worst,
        "difference": mean(differences) if differences else None,
        "difference_ci": interval(differences),
        "reason": "; ".join(reasons),
    }


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    if row["error"] is not None:
        return f"{row['sampler']}: {row['error']}"
    if "psnr" not in row:
        return f"{row['sampler']}: not drawn yet"
    how = f"{row['computed']:.1f} of {row['evaluations']:.1f} computed"
    if row["psnr"] is None:
        return f"{row['sampler']}: {how}, equal. {row['reason']}"
    beside = ""
    if row["difference"] is not None:
        beside = f", {row['difference']:+.1f} dB beside as few steps"
    return (
        f"{row['sampler']}: {how}, {row['psnr']:.1f} dB (worst {row['psnr_worst']:.1f}){beside}. "
        f"{row['reason']}"
    )
