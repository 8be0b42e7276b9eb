"""Tables of README and docs, from the rows in `docs`: methods down, models across.

python -m benchmarks.tables docs/region_sd3.json docs/region_flux.json [--without fewer_heun ...]
python -m benchmarks.tables docs/sparse_demo.json --cost-as docs/sparse_flux-dev.json
docs/sparse_sd3-medium.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

NAMES = {"flux": "FLUX-like", "sd3": "SD3-like", "lumina": "Lumina-like"}
TARGETS = {
    "region": {"1.0": "-", "0.5": "half", "0.25": "a quarter", "headline": "3/16, 6 dense"},
    "policy": {"1.0": "-", "1.1x": "1.1x", "2x": "2x", "2.8x": "2.8x", "3x": "3x", "4x": "4x"},
    "sparse": {"1.0": "-", "0.5": ".5", "0.25": ".25", "0.125": ".125"},
}
METHODS = {
    "dense": "dense",
    "dense_noise1": "dense, other noise",
    "dense_noise2": "dense, other noise (2)",
    "dense_noise3": "dense, other noise (3)",
    "dense_dpmpp_2m": "dense, dpmpp_2m",
    "plan_solution": "**searched plan, to the solution**",
    "plan_dense": "searched plan, to dense",
    "default_plan": "**even, Adams-Bashforth (default)**",
    "plus": "heads on that plan (`rapid+`)",
    "plus_shuffled": "the same, other pictures' decisions",
    "pace_1": "heads on that plan (`rapid+`), seed 50000",
    "pace_2": "the same, seed 60000",
    "full_3": "heads on plans of their own, seed 70000",
    "plan_full-3-plan": "these plans without heads",
    "rapid3": "RAPID3's heads",
    "rapid3_shuffled": "the same, other pictures' decisions",
    "easycache": "EasyCache",
    "lazycache": "LazyCache",
    "random": "evaluations anywhere",
    "sparse": "**sparse, difference forecast**",
    "sparse_hold": "sparse, difference held",
    "sparse_means": "sparse, means",
    "sparse_dropped": "sparse, dropped",
    "region_error": "**a clock for every token**",
    "region": "fixed share",
    "region_rounds": "round-robin, our schedule",
    "region_random": "random, our schedule",
    "region_attention": "received attention, our schedule",
    "region_paper_equal": "published method, at this cost",
    "region_paper": "published method (`paper`)",
    "cache_reuse": "Cache Reuse",
    "cache_reuse_unguarded": "Cache Reuse, no guard",
    "fewer_euler": "fewer Euler steps",
    "fewer_dpmpp_2m": "fewer steps of dpmpp_2m",
    "fewer_res_multistep": "fewer steps of res_multistep",
    "fewer_uni_pc": "fewer steps of uni_pc",
    "fewer_heun": "fewer steps of heun",
    "region_error_dpmpp_2m": "a clock for every token, on dpmpp_2m",
    "cache_reuse_dpmpp_2m": "Cache Reuse, on dpmpp_2m",
}


def cells(row: dict | None, costs: list[dict]) -> list[str]:
    """Cost, costs as other models, PSNR to dense with its interval, worst picture, PSNR to the ODE
    and FID of a row."""
    if row is None:
        return ["-"] * (4 + len(costs))
    key, near = (row["model"], row["target"], row["method"]), "-"
    if row["psnr"] is not None and row["ci"]:
        near = "{:.1f} ({:.1f} .. {:.1f}), {:.1f}".format(
            row["psnr"], *row["ci"], row["psnr_worst"]
        )
    cost = [f"{r['cost']:.2f}".removeprefix("0") for r in (row, *(of[key] for of in costs))]
    ode = "-" if row["psnr_ode"] is None else f"{row['psnr_ode']:.1f}"
    return [*cost, near, ode, f"{row['fid']:.3f}".removeprefix("0")]


def rows_of(files: list[Path]) -> dict[tuple[str, str, str], dict]:
    """Rows by model, target and method."""
    found = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    return {(row["model"], row["target"], row["method"]): row for row in found}


def table(files: list[Path], without: list[str], cost_as: list[Path]) -> str:
    """Methods down, models across; those of fewer prompts than the others say how many."""
    rows, costs = rows_of(files), [rows_of([file]) for file in cost_as]
    suite = next(iter(rows.values()))["suite"]
    models = list(dict.fromkeys(model for model, _, _ in rows))
    there = {key[1:] for key in rows}
    head = ["target", "method"]
    for model in models:
        number = max(r["prompts"] for (m, _, _), r in rows.items() if m == model)
        as_other = [file.stem.split("_")[-1] for file in cost_as]
        head += [
            f"{NAMES[model]} ({number}): cost",
            *as_other,
            "to dense (95 %), worst",
            "to the ODE",
            "FID",
        ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for target, said in TARGETS[suite].items():
        for method, name in METHODS.items():
            if (target, method) in there and method not in without:
                found = [
                    cell
                    for model in models
                    for cell in cells(rows.get((model, target, method)), costs)
                ]
                number = max(
                    r["prompts"] for (_, t, m), r in rows.items() if (t, m) == (target, method)
                )
                few = f" ({number})" if number < max(r["prompts"] for r in rows.values()) else ""
                lines.append("| " + " | ".join([said, name + few, *found]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--without", nargs="*", default=[], help="methods to leave out")
    parser.add_argument(
        "--cost-as", nargs="*", type=Path, default=[], help="the same rows, costed as another model"
    )
    args = parser.parse_args()
    print(table(args.files, args.without, args.cost_as))
