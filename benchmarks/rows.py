"""Quality rows: the one form of every table the project writes, and the figures in them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

PSNR_CAP = 100.0  # dB; equal pictures are counted, not averaged
COLUMNS = (
    "model",
    "target",
    "method",
    "cost",
    "computed",
    "evaluations",
    "seconds",
    "speedup",
    "allowed_speedup",
    "psnr",
    "ci",
    "psnr_worst",
    "psnr_ode",
    "ssim",
    "accuracy",
    "fid",
)
DIGITS = {
    "psnr": 1,
    "psnr_p5": 1,
    "psnr_worst": 1,
    "psnr_ode": 1,
    "computed": 1,
    "held": 1,
    "evaluations": 0,
    "accuracy": 3,
    "ssim": 4,
    "fid": 4,
}


@dataclass(frozen=True)
class Row:
    """One method on one suite and model; None where a figure does not apply.

    cost: spent FLOPs as a share of dense; evaluations .. held: mean per image; seconds: the
    sampling loop, median of interleaved repetitions; psnr to the dense picture, psnr_ode to the
    converged one, in dB; equal: pictures equal to dense, left out of psnr; accuracy: share of
    objects and backgrounds as the prompt says; fid: Fréchet distance to true scenes on the judge's
    features; ci: 95 % of psnr."""

    suite: str
    model: str
    method: str
    target: str
    cost: float | None = None
    evaluations: float | None = None
    computed: float | None = None
    reused: float | None = None
    held: float | None = None
    seconds: float | None = None
    speedup: float | None = None
    allowed_speedup: float | None = None
    psnr: float | None = None
    psnr_ode: float | None = None
    ssim: float | None = None
    accuracy: float | None = None
    fid: float | None = None
    prompts: int = 0
    ci: tuple[float, float] | None = None
    equal: int = 0
    psnr_p5: float | None = None
    psnr_worst: float | None = None


def psnr(picture: Tensor, reference: Tensor) -> float:
    """PSNR in dB of float pictures (C, H, W) in 0 .. 1, capped at 100. Raises ValueError where they
    are not finite."""
    error = (picture.float() - reference.float()).square().mean().item()
    if not math.isfinite(error):
        raise ValueError("a picture has values that are not finite")
    return (
        PSNR_CAP
        if error <= 10 ** (-PSNR_CAP / 10)
        else min(PSNR_CAP, -10 * torch.tensor(error).log10().item())
    )


def ssim(picture: Tensor, reference: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of float pictures (C, H, W) in 0 .. 1, by
    torchmetrics."""
    return float(
        structural_similarity_index_measure(picture[None], reference[None], data_range=1.0)
    )


def interval(
    values: Sequence[float], seed: int = 0, draws: int = 2000
) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    generator = random.Random(seed)
    means = sorted(mean(generator.choices(values, k=len(values))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def averaged(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist."""
    present = [v for v in values if v is not None]
    return mean(present) if present else None


def write(path: Path, rows: Sequence[Row], machine: dict) -> None:
    """Rows as JSON, with the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "format": "rapid-rows",
        "version": 1,
        "machine": machine,
        "rows": [asdict(r) for r in rows],
    }
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def markdown(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """The rows as a Markdown table, without columns that are empty everywhere."""
    names = [n for n in columns if any(getattr(r, n) is not None for r in rows)]
    assert set(columns) <= {f.name for f in fields(Row)}
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(n, getattr(r, n)) for n in names) + " |" for r in rows]
    return "\n".join(lines)


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name == "ci":
        return "{:.1f} .. {:.1f}".format(*value)
    if isinstance(value, float):
        return f"{value:.{DIGITS.get(name, 2)}f}"
    return str(value)
