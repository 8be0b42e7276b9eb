"""The Markdown card beside a policy file, with its plots where matplotlib is installed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from evaluation.files import write_text
from evaluation.plots import Panel, draw
from rapid_core.policy_file.format import PolicyFile


def write_card(
    file: PolicyFile, about: str, table: str, panels: Sequence[Panel] = (), remarks: str = ""
) -> None:
    """`file`'s card. about: the opening paragraph; remarks: Markdown between plots and metadata."""
    path = file.path.with_suffix(".md")
    picture = path.with_suffix(".png")
    plots = ""
    if panels and draw(picture, panels):
        plots = f"![{', '.join(panel.title for panel in panels)}]({picture.name})"
    metadata = "\n".join(f"- {name}: {value}" for name, value in sorted(file.metadata.items()))
    parts = (
        f"# {path.stem}",
        textwrap.fill(about, width=120),
        table,
        plots,
        remarks,
        f"## What the file says\n\n{metadata}",
    )
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
