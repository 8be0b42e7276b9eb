"""Tables of the demo: what it measures, and what its models draw."""

from __future__ import annotations

import json
from collections.abc import Callable

from benchmarks.names import MODELS
from benchmarks.results.files import FOLDER, load, read_json
from benchmarks.results.quality import CONVERGED, method, model, to_full, worst
from devkit.base_folder import REPOSITORY
from evaluation.tables import Column, Row, figure, number, table


def demo() -> str:
    """RAPID Accelerate and Cache Reuse beside ComfyUI's own caches."""
    columns = [
        Column("model", model),
        Column("method", method),
        figure("computed", "computed"),
        figure("seconds", "seconds", 2),
        figure("measured speed-up", "speedup_measured", 2),
        figure("theoretical speed-up", "speedup_theoretical", 2),
        Column("to the full picture", to_full),
        Column("worst", worst),
        CONVERGED,
        figure("SSIM", "ssim", 4),
        figure("accuracy", "accuracy", 3),
    ]
    return table(columns, load("demo_report"))


def demo_models() -> str:
    """What the demo models draw."""
    logs = REPOSITORY / "demo" / "models" / "logs"
    files = {title: logs / f"{name}_evaluation.json" for name, title in MODELS.items()}
    rows = [
        {"title": title, **json.loads(file.read_text(encoding="utf-8"))}
        for title, file in files.items()
        if file.is_file()  # a model's whose weights are there
    ]

    def title(row: Row) -> str:
        cfg, guidance = row["settings"]["cfg"], row["settings"]["guidance"]
        told = f"guidance {guidance:g}" if guidance > 1 else f"cfg {cfg:g}"
        return f"{row['title']}, {told}"

    columns = [
        Column("model", title),
        Column("prompts", lambda row: str(row["settings"]["prompts"])),
        Column("object colour", lambda row: number(row["model"].get("object_colour"), 3)),
        Column("background", lambda row: number(row["model"]["background"], 3)),
        # Of the emoji world: the object itself.
        Column(
            "shape or object",
            lambda row: number(row["model"].get("shape", row["model"]["object"]), 3),
        ),
        Column("to the converged picture", lambda row: number(row["psnr_to_ode"]["mean"])),
        Column("worst", lambda row: number(row["psnr_to_ode"]["worst"])),
        Column("of prompts", lambda row: str(row["psnr_to_ode"]["prompts"])),
        Column("FID", lambda row: number(row.get("fid"), 3)),
    ]
    return table(columns, rows)


def trajectories() -> str:
    """How smooth sampling is on demo models, and how much work their pictures need."""

    def change(first: int, last: int | None) -> Callable[[Row], str]:
        def mean(row: Row) -> str:
            part = row["velocity_change"][first:last]
            return number(sum(part) / len(part), 3)

        return mean

    rows = [read_json(file.stem) for file in sorted(FOLDER.glob("trajectories_*.json"))]
    columns = [
        Column(
            "model", lambda row: f"{MODELS[row['settings']['model']]}, {row['settings']['world']}"
        ),
        Column("prompts", lambda row: str(row["prompts"])),
        Column("change at first", change(0, 4)),
        Column("in the middle", change(4, -4)),
        Column("in the last step", change(-1, None)),
        Column("evaluations for 40 dB", lambda row: number(row["needed_mean"])),
        Column("standard deviation", lambda row: number(row["needed_deviation"])),
        Column(
            "10 %, 50 %, 90 %", lambda row: ", ".join(number(n) for n in row["needed_10_50_90"])
        ),
    ]
    return table(columns, rows)
