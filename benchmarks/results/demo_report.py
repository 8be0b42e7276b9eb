"""Tables of the demo: what it measures, and what its models draw."""

from __future__ import annotations

import json

from benchmarks.names import MODELS
from benchmarks.results.files import load
from benchmarks.results.quality import CONVERGED, method, model, to_full, worst
from devkit.base_folder import REPOSITORY
from evaluation.tables import Column, figure, number, table


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
    columns = [
        Column("model", lambda row: f"{row['title']}, cfg {row['settings']['cfg']:g}"),
        Column("prompts", lambda row: str(row["settings"]["prompts"])),
        Column("object colour", lambda row: number(row["model"]["object_colour"], 3)),
        Column("background", lambda row: number(row["model"]["background"], 3)),
        Column("shape", lambda row: number(row["model"]["shape"], 3)),
        Column("to the converged picture", lambda row: number(row["psnr_to_ode"]["mean"])),
        Column("worst", lambda row: number(row["psnr_to_ode"]["worst"])),
        Column("of prompts", lambda row: str(row["psnr_to_ode"]["prompts"])),
    ]
    return table(columns, rows)
