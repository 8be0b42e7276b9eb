"""Quality rows: the one form of every table the project writes, and the figures in them.

Version 2 of the file has the words of docs/architecture.md; rows of version 1 are read, too
(`current`), and files of measurements of other forms with the same old words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

FORMAT = "rapid-rows"
VERSION = 2
PSNR_CAP = 100.0  # dB; equal pictures are counted, not averaged
COLUMNS = (
    "model",
    "target",
    "method",
    "cost",
    "computed",
    "evaluations",
    "seconds",
    "speedup_measured",
    "speedup_theoretical",
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
    "skipped": 1,
    "evaluations": 0,
    "accuracy": 3,
    "ssim": 4,
    "fid": 4,
}

# Names of version 1 and what they are now.
_OLD_FIELDS = {
    "held": "skipped",
    "allowed_speedup": "speedup_theoretical",
    "allowed": "speedup_theoretical",
    "of_allowed": "of_theoretical",
    "speedup": "speedup_measured",
    "dense_seconds": "full_seconds",
    "left_out": "compensation",
}
_OLD_METHODS = {
    "dense": "full",
    "default_plan": "default_schedule",
    "sparse_hold": "sparse_last_value",
    "sparse_dropped": "sparse_none",
}
_OLD_PREFIXES = {"dense_": "full_", "plan_": "schedule_"}
_OLD_VALUES = {
    "compensation": {"forecast": "predict", "hold": "last value", "dropped": "none"},
    "kv_cache": {"forecast": "predict", "model": "last value"},
}


@dataclass(frozen=True)
class Row:
    """One method on one suite and model; None where a figure does not apply."""

    suite: str
    model: str
    method: str
    target: str
    """What the method is compared at, e.g. "0.5"."""
    cost: float | None = None
    """Spent FLOPs as a share of those of the full run."""
    evaluations: float | None = None
    """Mean of an image, as the three below."""
    computed: float | None = None
    reused: float | None = None
    skipped: float | None = None
    seconds: float | None = None
    """Of the sampling loop, median of interleaved repetitions."""
    speedup_measured: float | None = None
    """Seconds of the full run over these."""
    speedup_theoretical: float | None = None
    """FLOPs of the full run over those that were spent."""
    psnr: float | None = None
    """Mean in dB to the full picture."""
    psnr_ode: float | None = None
    """Mean in dB to the converged picture."""
    ssim: float | None = None
    """Mean, to the full picture."""
    accuracy: float | None = None
    """Share of what the prompts name that the pictures show."""
    fid: float | None = None
    """Fréchet distance to true pictures on the judge's features."""
    prompts: int = 0
    ci: tuple[float, float] | None = None
    """95 % interval of `psnr`."""
    equal: int = 0
    """Pictures equal to the full ones, left out of `psnr`."""
    psnr_p5: float | None = None
    """5th percentile of `psnr`."""
    psnr_worst: float | None = None
    """The lowest `psnr`."""


def psnr(picture: Tensor, reference: Tensor) -> float:
    """PSNR in dB of float pictures (C, H, W) in 0 .. 1, by torchmetrics, capped at 100. Raises
    ValueError where they are not finite."""
    decibels = float(peak_signal_noise_ratio(picture.float(), reference.float(), data_range=1.0))
    if math.isnan(decibels) or decibels == -math.inf:
        raise ValueError("a picture has values that are not finite")
    return min(PSNR_CAP, decibels)


def ssim(picture: Tensor, reference: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of float pictures (C, H, W) in 0 .. 1, by
    torchmetrics."""
    similarity = structural_similarity_index_measure(picture[None], reference[None], data_range=1.0)
    assert isinstance(similarity, Tensor)  # a pair only where its parts are asked for
    return float(similarity)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the mean, by scipy's bootstrap (percentiles of 9,999 resamples); None for
    fewer than two values."""
    if len(values) < 2:
        return None
    low, high = bootstrap(
        (np.array(values),), np.mean, method="percentile", rng=seed
    ).confidence_interval
    return float(low), float(high)


def averaged(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist."""
    present = [v for v in values if v is not None]
    return mean(present) if present else None


@dataclass(frozen=True)
class Spread:
    """What a row says about the figures of its pictures."""

    mean: float | None
    ci: tuple[float, float] | None
    p5: float | None
    worst: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of values where more is better; all None for none."""
        if not values:
            return cls(None, None, None, None)
        ordered = sorted(values)
        return cls(mean(values), interval(values), ordered[int(0.05 * len(ordered))], ordered[0])


def write(path: Path, rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """Rows as JSON, with the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "format": FORMAT,
        "version": VERSION,
        "machine": machine,
        "rows": [asdict(r) for r in rows],
    }
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, quality or other, under the names of today."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return [current(row) for row in (data["rows"] if isinstance(data, dict) else data)]


def current(row: dict[str, Any]) -> dict[str, Any]:
    """A row of any version under the names of today."""
    named = {_OLD_FIELDS.get(name, name): value for name, value in row.items()}
    for field in ("method", "against"):
        if field in named:
            named[field] = _current_method(named[field])
    for field, values in _OLD_VALUES.items():
        if field in named:
            named[field] = values.get(named[field], named[field])
    return named


def _current_method(name: str) -> str:
    for old, new in _OLD_PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return _OLD_METHODS.get(name, name)


def markdown(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """The rows as a Markdown table, without columns that are empty everywhere."""
    names = [n for n in columns if any(getattr(r, n) is not None for r in rows)]
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(n, getattr(r, n)) for n in names] for r in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "ci":
        return "{:.1f} .. {:.1f}".format(*value)
    if isinstance(value, float):
        return f"{value:.{DIGITS.get(name, 2)}f}"
    return str(value)
