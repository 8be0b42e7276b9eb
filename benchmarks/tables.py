"""The README's table of the region suite, from the rows in `docs`.

    python -m benchmarks.tables docs/region_sd3.json docs/region_flux.json [--without fewer_heun ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

NAMES = {"flux": "FLUX-like", "sd3": "SD3-like", "lumina": "Lumina-like"}
TARGETS = {"1.0": "-", "0.5": "half", "0.25": "a quarter", "headline": "3/16, 6 dense"}
METHODS = {
    "dense": "dense", "dense_dpmpp_2m": "dense, dpmpp_2m", "region_error": "**a clock for every token**",
    "region": "fixed share", "region_rounds": "round-robin, our schedule", "region_random": "random, our schedule",
    "region_paper": "published method (`paper`)", "cache_reuse": "Cache Reuse", "fewer_euler": "fewer Euler steps",
    "fewer_dpmpp_2m": "fewer steps of dpmpp_2m", "fewer_res_multistep": "fewer steps of res_multistep",
    "fewer_uni_pc": "fewer steps of uni_pc", "fewer_heun": "fewer steps of heun",
    "region_error_dpmpp_2m": "a clock for every token, on dpmpp_2m", "cache_reuse_dpmpp_2m": "Cache Reuse, on dpmpp_2m",
}  # fmt: skip


def cells(row: dict | None) -> list[str]:
    """Cost, PSNR to dense with its interval, worst picture, PSNR to the ODE and FID of a row."""
    if row is None:
        return ["-"] * 4
    near = "-"
    if row["psnr"] is not None and row["ci"]:
        near = "{:.1f} ({:.1f} .. {:.1f}), {:.1f}".format(row["psnr"], *row["ci"], row["psnr_worst"])
    cost, fid = (f"{value:.{digits}f}".removeprefix("0") for value, digits in ((row["cost"], 2), (row["fid"], 3)))
    return [cost, near, f"{row['psnr_ode']:.1f}", fid]


def table(files: list[Path], without: list[str]) -> str:
    """Methods down, models across."""
    rows = {(r["model"], r["target"], r["method"]): r for f in files for r in json.loads(f.read_text("utf-8"))["rows"]}
    models = list(dict.fromkeys(model for model, _, _ in rows))
    there = {key[1:] for key in rows}
    head = ["target", "method"]
    for model in models:
        number = max(r["prompts"] for (m, _, _), r in rows.items() if m == model)
        head += [f"{NAMES[model]} ({number}): cost", "to dense (95 %), worst", "to the ODE", "FID"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for target, said in TARGETS.items():
        for method, name in METHODS.items():
            if (target, method) in there and method not in without:
                found = [cell for model in models for cell in cells(rows.get((model, target, method)))]
                lines.append("| " + " | ".join([said, name, *found]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--without", nargs="*", default=[], help="methods to leave out")
    args = parser.parse_args()
    print(table(args.files, args.without))
