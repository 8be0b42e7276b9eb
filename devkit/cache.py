"""The cache folder, finished-step stamps and the lock that keeps two set-ups apart."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

GIB = 1024**3


class SetupError(Exception):
    """A set-up step cannot be done; the text is the one line that the user reads."""


def cache_root() -> Path:
    """Folder that keeps environments, hosts and downloads between runs."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif os.environ.get("XDG_CACHE_HOME"):
        base = os.environ["XDG_CACHE_HOME"]
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return Path(base) / "rapid"


def make_folder(path: Path) -> Path:
    """Create a folder, with one clear line where that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"cannot create {path} ({error.strerror}): set XDG_CACHE_HOME to a writable folder"
        ) from None
    return path


def is_done(stamp: Path, key: str) -> bool:
    """Whether a step has finished with this very key."""
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == key


def mark_done(stamp: Path, key: str) -> None:
    """Record a finished step; written last and in one move, so that a stamp never lies."""
    make_folder(stamp.parent)
    partial = stamp.with_name(stamp.name + ".partial")
    partial.write_text(key, encoding="utf-8")
    os.replace(partial, stamp)


def require_space(folder: Path, gib: float, purpose: str) -> None:
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(folder).free / GIB
    if free < gib:
        raise SetupError(
            f"{purpose} needs {gib:g} GB but {folder} has {free:.1f} GB free: "
            "free some space or set XDG_CACHE_HOME to another disk"
        )


def _try_lock(handle) -> bool:
    """Take the lock of an open file without waiting; the system frees it when the process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def exclusive(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file while setting up; a second set-up waits for the first."""
    make_folder(path.parent)
    with open(path, "a+", encoding="utf-8") as handle:
        if not _try_lock(handle):
            say("another set-up is running: waiting for it")
            while not _try_lock(handle):
                time.sleep(0.5)
        yield
