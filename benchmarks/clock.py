"""Seconds of region-adaptive sampling and of RAPID Accelerate on models that are compute-bound: random
weights, 4,096 image tokens.

    python3 dev.py bench clock [--models flux sd3 lumina] [--shares 0.5 0.25 0.125 0.1875] [--speedups 2 3]
                               [--pixels 1024]

Measured beside theoretical speed-up (FLOPs of the full run over those spent); one warm-up call, the
sampling loop timed whole, a full run before and after each other run, whose mean it is compared with. 6
evaluations of 28 (FLUX, SD3) or 30 (Lumina) compute all tokens, as in the published schedules; 3/16
of the tokens is the region suite's "headline".
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.region import NODE, SIX_FULL
from devkit.comfy_process import load_everything

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
WIDE = {"flux": ("Flux", _FLUX), "sd3": ("SD3", _SD3), "lumina": ("Lumina2", _LUMINA)}
SHARES = (0.5, 0.25, 0.125, 0.1875)
STEPS = {"flux": 28, "sd3": 28, "lumina": 30}


def conditioning(seed: int) -> list:
    """Random CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    pooled = {"pooled_output": torch.randn(1, 64, generator=generator)}
    return [[torch.randn(1, TEXT, CONTEXT, generator=generator), pooled]]


def timed(model: Any, steps: int, pixels: int) -> float:
    """Seconds of one sampling run."""
    import comfy.sample

    latent = torch.zeros(1, 16, pixels // 8, pixels // 8)
    noise = comfy.sample.prepare_noise(latent, 0)
    start = time.perf_counter()
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
    return time.perf_counter() - start


def by_share(comfy: Any, model: Any, share: float, kv_cache: str) -> Any:
    """The model with Region Adaptive at a share of the tokens."""
    inputs = {**NODE, **SIX_FULL, "kv_cache": kv_cache}
    return comfy.run_node("RAPID_RegionAdaptive", model=model, keep_ratio=share, **inputs)[0]


def by_speedup(comfy: Any, model: Any, speedup: float, _kv_cache: str) -> Any:
    """The model with RAPID Accelerate at a speed-up."""
    return comfy.run_node("RAPID_Accelerate", model=model, speedup=speedup)[0]


PATCHES = {"share": by_share, "speedup_asked": by_speedup}


def measure(comfy: Any, kind: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds, measured and theoretical speed-up at each share of tokens and each speed-up."""
    from evaluation.random_models import FamilyModel  # the host is importable only now

    model = FamilyModel(*WIDE[kind]).build()
    steps = STEPS[kind]
    timed(model, 1, args.pixels)
    before = timed(model, steps, args.pixels)
    rows = []
    for name, value in [
        *(("share", share) for share in args.shares),
        *(("speedup_asked", speedup) for speedup in args.speedups),
    ]:
        patched = PATCHES[name](comfy, model, value, args.kv_cache)
        seconds = timed(patched, steps, args.pixels)
        after = timed(model, steps, args.pixels)
        record = patched.model_options["transformer_options"]["rapid"].log.records[-1]
        if name == "share":
            assert record.totals["partial"] == steps - FULL_EVALUATIONS, record.text()
        measured = (before + after) / 2 / seconds
        theoretical = record.totals["speedup_theoretical"]
        rows.append(
            dict(
                model=kind,
                **{name: value},
                steps=steps,
                kv_cache=args.kv_cache,
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
    parser.add_argument("--speedups", nargs="*", type=float, default=())
    parser.add_argument("--pixels", type=int, default=1024)
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
