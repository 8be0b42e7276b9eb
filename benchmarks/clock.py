"""Seconds of region-adaptive sampling and of RAPID Accelerate on models that are compute-bound: random
weights, 4,096 image tokens.

    python3 dev.py bench clock [--models flux sd3 lumina lumina_next] [--shares 0.5 0.25 0.125 0.1875]
                               [--presets ours paper] [--speedups 2 3] [--pixels 1024]
                               [--clock wall]

Measured beside theoretical speed-up (FLOPs of the full run over those spent); one warm-up call, the
sampling loop timed whole, a full run before and after each other run, whose mean it is compared with. 6
evaluations of 28 (FLUX, SD3) or 30 (Lumina, Lumina-Next) compute all tokens, as in the published
schedules; 3/16 of the tokens is the region suite's "headline". Presets are Region Adaptive's, one run
each at every share: "ours" has the region suite's settings, "paper" the published ones. `--clock
process` counts the seconds in which the process had a core: for one thread of a CPU on a machine that
has other work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.region import NODE, SIX_FULL
from devkit.comfy_process import load_everything
from rapid_core.comfy.lumina_next.config import LuminaNextConfig

CONTEXT = 64  # channels of the text
TEXT = 77  # its tokens
FULL_EVALUATIONS = 6
_FLUX = dict(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    guidance_embed=True,
    txt_ids_dims=[],
    vec_in_dim=64,
    context_in_dim=CONTEXT,
    hidden_size=512,
    mlp_ratio=4.0,
    num_heads=4,
    depth=2,
    depth_single_blocks=4,
    axes_dim=[16, 56, 56],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
)
_EMBEDDER = {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 512}}
_SD3 = dict(
    in_channels=16,
    patch_size=2,
    depth=8,
    input_size=None,
    adm_in_channels=64,
    num_patches=4096,
    context_embedder_config=_EMBEDDER,
    pos_embed_max_size=64,
    qk_norm="rms",
)
_LUMINA = dict(
    image_model="lumina2",
    patch_size=2,
    in_channels=16,
    dim=480,
    n_layers=6,
    n_refiner_layers=1,
    n_heads=5,
    n_kv_heads=1,
    multiple_of=256,
    ffn_dim_multiplier=2.5,
    qk_norm=True,
    cap_feat_dim=CONTEXT,
    axes_dims=[32, 32, 32],
    axes_lens=[300, 512, 512],
    rope_theta=10000.0,
)
_LUMINA_NEXT = dict(
    config=LuminaNextConfig(
        hidden_size=480,
        layers=6,
        heads=5,
        kv_heads=1,
        feed_forward=1280,
        text_width=CONTEXT,
    )
)
WIDE = {
    "flux": ("Flux", _FLUX),
    "sd3": ("SD3", _SD3),
    "lumina": ("Lumina2", _LUMINA),
    "lumina_next": ("rapid_core.comfy.lumina_next.model.LuminaNext", _LUMINA_NEXT),
}
SHARES = (0.5, 0.25, 0.125, 0.1875)
PRESETS: dict[str, dict[str, Any]] = {"ours": {**NODE, **SIX_FULL}, "paper": {"preset": "paper"}}
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
STEPS = {"flux": 28, "sd3": 28, "lumina": 30, "lumina_next": 30}


def conditioning(seed: int) -> list:
    """Random CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    pooled = {"pooled_output": torch.randn(1, 64, generator=generator)}
    return [[torch.randn(1, TEXT, CONTEXT, generator=generator), pooled]]


def timed(model: Any, steps: int, pixels: int, now: Callable[[], float]) -> float:
    """Seconds of one sampling run, by `now`."""
    import comfy.sample

    channels = model.model.latent_format.latent_channels
    latent = torch.zeros(1, channels, pixels // 8, pixels // 8)
    noise = comfy.sample.prepare_noise(latent, 0)
    start = now()
    comfy.sample.sample(
        model,
        noise,
        steps,
        1.0,
        "euler",
        "simple",
        conditioning(0),
        conditioning(1),
        latent,
        disable_pbar=True,
        seed=0,
    )
    return now() - start


@dataclass(frozen=True)
class Run:
    """What is measured beside full runs."""

    told: dict[str, Any]
    """Of the row: what was asked for."""
    patch: Callable[[Any], Any]
    """Patch of the model."""
    partial: bool
    """Whether all but the evaluations of the published schedules compute some tokens only."""


def runs(comfy: Any, args: argparse.Namespace) -> list[Run]:
    """All of them."""

    def patch(node: str, **inputs: Any) -> Callable[[Any], Any]:
        return lambda model: comfy.run_node(node, model=model, **inputs)[0]

    found = []
    for share in args.shares:
        for preset in args.presets:
            inputs = {**PRESETS[preset], "keep_ratio": share}
            told = {"share": share, "preset": preset}
            if preset == "ours":
                inputs["kv_cache"] = told["kv_cache"] = args.kv_cache
            found.append(Run(told, patch("RAPID_RegionAdaptive", **inputs), partial=True))
    for speedup in args.speedups:
        own = patch("RAPID_Accelerate", speedup=speedup)
        found.append(Run({"speedup_asked": speedup}, own, partial=False))
    return found


def measure(comfy: Any, kind: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds, measured and theoretical speed-up at each share of tokens and each speed-up."""
    from evaluation.random_models import FamilyModel  # the host is importable only now

    model = FamilyModel(*WIDE[kind]).build()
    steps = STEPS[kind]
    now = CLOCKS[args.clock]
    timed(model, 1, args.pixels, now)
    before = timed(model, steps, args.pixels, now)
    rows = []
    for run in runs(comfy, args):
        patched = run.patch(model)
        seconds = timed(patched, steps, args.pixels, now)
        after = timed(model, steps, args.pixels, now)
        record = patched.model_options["transformer_options"]["rapid"].log.records[-1]
        if run.partial:
            assert record.totals["partial"] == steps - FULL_EVALUATIONS, record.text()
        measured = (before + after) / 2 / seconds
        theoretical = record.totals["speedup_theoretical"]
        rows.append(
            dict(
                model=kind,
                **run.told,
                steps=steps,
                pixels=args.pixels,
                clock=args.clock,
                seconds=seconds,
                full_seconds=[before, after],
                speedup_measured=measured,
                speedup_theoretical=theoretical,
                of_theoretical=measured / theoretical,
                mebibytes=record.bytes / 2**20,
            )
        )
        print(json.dumps(rows[-1]), flush=True)
        before = after
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(WIDE), default=sorted(WIDE))
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["ours"])
    parser.add_argument("--speedups", nargs="*", type=float, default=())
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--kv-cache", default="predict")
    parser.add_argument("--out", type=Path, default=Path("bench_output"))
    parser.add_argument("--base", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    comfy = load_everything(args.base)
    rows = []
    with torch.inference_mode():
        for kind in args.models:
            rows += measure(comfy, kind, args)
    (args.out / "clock.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
