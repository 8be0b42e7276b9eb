"""Which policy files were made for a model: those whose metadata `weights` is the fingerprint of its
weights. Of a file only the metadata is read, and again when it has changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..reasons import ReasonCode
from ..types import Reason
from .format import PolicyError, read_metadata

WEIGHTS = "weights"  # in the metadata


@dataclass(frozen=True)
class Header:
    """What is known of a file without its tensors."""

    path: Path
    stamp: tuple[int, int]
    """When it was changed, in nanoseconds since 1970, and its bytes."""
    weights: str
    """Fingerprint of the weights that it was made for; empty where it does not say."""


class Headers:
    """Headers of policy files, as they were when last looked at. May be used by several threads."""

    def __init__(self) -> None:
        self._headers: dict[str, Header] = {}
        self._told: set[tuple[Path, str]] = set()
        self._notes: list[Reason] = []
        self._lock = threading.RLock()

    def marked(self, paths: Iterable[str]) -> list[Header]:
        """Of these files those that say for which weights they were made, the newest first."""
        with self._lock:
            found = [header for path in paths if (header := self._look(path)) and header.weights]
        return sorted(found, key=lambda header: -header.stamp[0])

    def damaged(self, path: Path, error: Exception) -> None:
        """Have it told that a file cannot be used; of the same error once."""
        said = str(error).removeprefix(f"policy {path.name}: ")
        with self._lock:
            if (path, said) not in self._told:
                self._told.add((path, said))
                damaged = Reason(ReasonCode.POLICY_FILE_DAMAGED, file=path.name, error=said)
                self._notes.append(damaged)

    def notes(self) -> list[Reason]:
        """Which files cannot be used, each told once."""
        with self._lock:
            notes = self._notes
            self._notes = []
        return notes

    def _look(self, name: str) -> Header | None:
        """A file's header, read unless the file is as it was; None where it cannot be read."""
        before = self._headers.get(name)
        try:
            found = os.stat(name)  # of hundreds of files: a Path would take twice the time
        except OSError:  # gone by now
            return None
        stamp = found.st_mtime_ns, found.st_size
        if before is not None and before.stamp == stamp:
            return before
        path = Path(name)
        try:
            weights = read_metadata(path).get(WEIGHTS, "")
        except PolicyError as error:
            self.damaged(path, error)
            return None
        self._headers[name] = Header(path, stamp, weights)
        return self._headers[name]
