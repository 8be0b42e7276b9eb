"""Files that are there whole or not at all, whenever a process is killed and whoever else writes
the same one."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path


def replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, and put it in its place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}.part")
    write(part)
    part.replace(path)


def write_text(path: Path, text: str) -> None:
    """A text file, in UTF-8."""
    replaced(path, lambda part: part.write_text(text, encoding="utf-8"))
