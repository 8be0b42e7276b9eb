"""What the registry ships, and the archive that it makes of it."""

from __future__ import annotations

import subprocess
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest


def tracked_files(root: Path) -> list[Path]:
    """Files under version control, relative to the root."""
    listing = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout: what is tracked cannot be told")
    return [Path(line) for line in listing.stdout.splitlines() if (root / line).is_file()]


def is_held_back(path: Path, patterns: list[str]) -> bool:
    """Whether .comfyignore's patterns (`folder/` anywhere, `/folder/` at the root, `file`,
    `/folder/name*`) cover a path."""
    folders = {pattern.rstrip("/") for pattern in patterns if pattern.endswith("/")}
    at = {*path.parts[:-1], f"/{path.parts[0]}" if len(path.parts) > 1 else ""}
    globs = [pattern for pattern in patterns if pattern.startswith("/") and "*" in pattern]
    return (
        path.as_posix() in patterns
        or bool(folders & at)
        or any(fnmatch(f"/{path.as_posix()}", g) for g in globs)
    )


def shipped_files(root: Path) -> list[Path]:
    """What the registry ships: files under version control but for those that .comfyignore holds
    back."""
    lines = (root / ".comfyignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [path for path in tracked_files(root) if not is_held_back(path, patterns)]


def pack(root: Path, archive: Path) -> Path:
    """The archive of all shipped files, as comfy-cli makes it."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in shipped_files(root):
            file.write(root / path, path.as_posix())
    return archive
