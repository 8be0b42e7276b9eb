"""The Markdown card beside a policy file, with its plots where matplotlib is installed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rapid_core.policy_file.format import PolicyFile
from training.files import replaced, write_text

WIDTH, HEIGHT = 4.5, 3.2  # inches a panel
MISSING = "no plots on the card: the package matplotlib is not installed in this Python (pip install matplotlib)"


@dataclass(frozen=True)
class Panel:
    """One plot. lines: name = (x, y) of its points."""

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def write_card(
    file: PolicyFile, what: str, text: str, panels: Sequence[Panel] = (), rest: str = ""
) -> None:
    """`file`'s card. what: the opening paragraph; text: its table; rest: Markdown between plots and
    metadata."""
    path = file.path.with_suffix(".md")
    said = "\n".join(f"- {name}: {value}" for name, value in sorted(file.metadata.items()))
    picture = path.with_suffix(".png")
    plots = (
        f"![{', '.join(p.title for p in panels)}]({picture.name})"
        if panels and drawn(picture, panels)
        else ""
    )
    parts = (
        f"# {path.stem}",
        textwrap.fill(what, width=120),
        text,
        plots,
        rest,
        f"## What the file says\n\n{said}",
    )
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def drawn(path: Path, panels: Sequence[Panel]) -> bool:
    """Draw panels side by side into a PNG. False, said on stderr, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(MISSING, file=sys.stderr)
        return False
    figure = Figure(
        figsize=(WIDTH * len(panels), HEIGHT), layout="constrained"
    )  # no pyplot: nothing global, no window
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (x, y) in panel.lines.items():
            axes.plot(x, y, marker="." if len(x) < 40 else "", label=name)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", framealpha=0.6)
    replaced(path, lambda part: figure.savefig(part, format="png", dpi=100))
    return True
