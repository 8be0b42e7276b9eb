"""The base folder of a ComfyUI run: this pack, the demo pack and the demo models, linked."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from devkit.cache import make_folder

REPOSITORY = Path(__file__).resolve().parent.parent
PACKS = {"rapid": REPOSITORY, "rapid_demo": REPOSITORY / "demo" / "pack"}
MODEL_FOLDERS = ("diffusion_models", "vae_approx", "vae")
# Only for the copy where links are not allowed: what ComfyUI does not load.
NOT_COPIED = shutil.ignore_patterns(
    ".git", "__pycache__", "tests", "benchmarks", "demo_output", "demo"
)


def link(source: Path, target: Path) -> None:
    """Make `target` stand for the folder `source`: symbolic link, junction, or else a copy."""
    if target.is_symlink():
        target.unlink()
    elif sys.platform == "win32" and _is_junction(target):
        os.rmdir(target)
    elif target.exists():
        return
    try:
        target.symlink_to(source, target_is_directory=True)
        return
    except OSError:
        pass
    if sys.platform == "win32":
        import _winapi

        try:
            _winapi.CreateJunction(str(source), str(target))
            return
        except OSError:
            pass
    shutil.copytree(source, target, ignore=NOT_COPIED)


def make_base_folder(folder: Path) -> Path:
    """Fill `folder` as ComfyUI's --base-directory; what is missing in the repository is left
    out."""
    for name in ("custom_nodes", "models", "input", "output", "user", "temp"):
        make_folder(folder / name)
    for name, source in PACKS.items():
        if (source / "__init__.py").is_file():
            link(source, folder / "custom_nodes" / name)
    for name in MODEL_FOLDERS:
        source = REPOSITORY / "demo" / "models" / name
        if source.is_dir():
            link(source, folder / "models" / name)
        else:
            make_folder(folder / "models" / name)
    return folder


def remove_base_folder(folder: Path) -> None:
    """Remove a base folder; links are removed first, so that nothing behind them is touched."""
    for parent in (folder / "custom_nodes", folder / "models"):
        for entry in parent.iterdir() if parent.is_dir() else ():
            if entry.is_symlink():
                entry.unlink()
            elif sys.platform == "win32" and _is_junction(entry):
                os.rmdir(entry)
    shutil.rmtree(folder, ignore_errors=True)


def _is_junction(path: Path) -> bool:
    """Whether a Windows folder is a junction (os.path.isjunction needs Python 3.12)."""
    return path.is_dir() and bool(getattr(os.lstat(path), "st_reparse_tag", 0))
