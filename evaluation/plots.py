"""Plots, where matplotlib is installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.files import replaced

WIDTH = 4.5  # inches a panel
HEIGHT = 3.2
MISSING = (
    "no plots: the package matplotlib is not installed in this Python (pip install matplotlib)"
)


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    """(x, y) of the points of each, by name."""


def draw(path: Path, panels: Sequence[Panel]) -> bool:
    """Draw panels side by side into a PNG. False, said on stderr, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(MISSING, file=sys.stderr)  # noqa: T201
        return False
    # No pyplot: nothing global, no window.
    figure = Figure(figsize=(WIDTH * len(panels), HEIGHT), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (x, y) in panel.lines.items():
            axes.plot(x, y, marker="." if len(x) < 40 else "", label=name)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", framealpha=0.6)
    replaced(path, lambda part: figure.savefig(part, format="png", dpi=100))
    return True
