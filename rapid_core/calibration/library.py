"""Where what is learned of models is kept and found again: a folder with one gaps file a key.

Several servers may use one folder. Who writes holds a lock file, reads what others have written
meanwhile and adds to it. Whoever only reads needs none: files are replaced whole. Where nothing can
be written, what is learned is used for as long as the process runs, and written with a later
picture if it can be then."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..policy_file.format import PolicyError, PolicyFile, read, write
from ..policy_file.gaps import errors_tensor, gap_metadata, gap_tensors, pictures_of, table_of
from ..policy_file.schedules import sigmas_of
from ..quadrature.gap_costs import Gap, GapCosts, distinct
from ..reasons import ReasonCode
from ..types import Reason
from .model_key import NEAREST_FIRST, ModelKey

MAX_PICTURES = 8  # of a key; older ones make room
ENDING = ".safetensors"
DAMAGED = ".damaged"
STALE = 5.0  # seconds; a lock this old is nobody's: writing takes milliseconds
PATIENCE = 10.0  # seconds that a lock is waited for, more than it takes one to become stale
POLL = 0.02  # seconds

Table = Mapping[Gap, float]
"""Errors of the gaps of one watched picture, shares of the latent's mean square."""


Pictures = dict[str, Tensor]
"""Errors (N, LONGEST) of watched pictures by id, the newest last; as a file has them."""


@dataclass(frozen=True)
class Learned:
    """What is known of a model."""

    key: ModelKey
    """What it was learned of."""
    tables: tuple[Table, ...]
    """The newest last, at most MAX_PICTURES."""
    differs: tuple[str, ...] = ()
    """Fields in which it is of another key than was asked for, nearest first; none for the very
    one."""

    @functools.cached_property
    def costs(self) -> GapCosts:
        """What gaps cost by these pictures, each once."""
        return GapCosts.seen(distinct(self.tables), self.key.sigmas)


@dataclass(frozen=True)
class Entry:
    """A file of the library, or what could not be written into one."""

    name: str
    """By which it is removed: the file's, without its ending where that is the usual one."""
    size: int
    """Bytes; 0 where there is no file."""
    modified: float | None
    """Seconds since 1970; None where there is no file."""
    key: ModelKey | None
    """What it is of; None for a damaged file."""
    pictures: int
    error: str = ""
    """Why the file cannot be used."""


@dataclass(frozen=True)
class _Content:
    """A file as it was read."""

    stamp: tuple[int, ...]
    """Another one when the file is."""
    key: ModelKey | None = None
    """None where it cannot be used."""
    pictures: Pictures = field(default_factory=dict)
    error: str = ""


class Library:
    """What is learned of models, in the files of a folder.

    folder: need not be there yet; None: nothing is read or written, and what is learned is known
    for as long as the process runs. May be used by several threads."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._contents: dict[Path, _Content] = {}  # of the files, as they were when last looked at
        self._unkept: dict[str, tuple[ModelKey, Pictures]] = {}  # by name; in no file so far
        self._notes: list[Reason] = []
        self._lock = threading.RLock()

    def find(self, key: ModelKey) -> Learned | None:
        """What is known of a key: learned of itself, or else of the nearest one that says something
        about it; among keys as near, the one with the most pictures."""
        with self._lock:
            known = self._known()
        if key.name in known:
            return _learned(key, known[key.name][1])
        near = []
        for name, (found, pictures) in known.items():
            differs = key.difference(found)
            if differs is not None:
                near.append((_distance(differs), -len(pictures), name, differs))
        if not near:
            return None
        *_, name, differs = min(near)
        return _learned(*known[name], differs)

    def add(self, key: ModelKey, tables: Iterable[Table]) -> Reason | None:
        """Learn from the tables of pictures, the newest last. None where they are kept in a file,
        else why they are not; they are known all the same, and kept with the next ones if that can
        be. Raises ValueError, and learns nothing, for a table that has not the gaps of the key's
        run, or errors that are not finite."""
        new = {uuid.uuid4().hex: errors_tensor(table, key.sigmas) for table in tables}
        if not new:
            return None
        with self._lock:
            unkept = self._unkept.get(key.name, (key, {}))[1]
            self._unkept[key.name] = key, _newest(unkept, new)
            if self.folder is None:
                return Reason(ReasonCode.LEARNED_NOT_KEPT, error="there is no folder for it")
            try:
                self._keep(self.folder / f"{key.name}{ENDING}")
            except (OSError, SafetensorError, PolicyError) as error:
                return Reason(ReasonCode.LEARNED_NOT_KEPT, error=_words(error))
        return None

    def keep(self) -> None:
        """Write what could not be written so far, where it can be by now."""
        with self._lock:
            if self.folder is None:
                return
            for name in list(self._unkept):
                with contextlib.suppress(OSError, SafetensorError, PolicyError):  # it was said
                    self._keep(self.folder / f"{name}{ENDING}")

    def entries(self) -> list[Entry]:
        """All files, damaged ones among them, and what is in no file, by name."""
        with self._lock:
            known = self._known()
            contents = dict(self._contents)
            for path in self._files(DAMAGED):
                with contextlib.suppress(OSError):
                    contents[path] = replace(_read(path), key=None)
        entries = {_name(path): _entry(path, content) for path, content in contents.items()}
        for name, (key, pictures) in known.items():
            if name in entries and not entries[name].error:
                entries[name] = replace(entries[name], pictures=len(pictures))
            else:
                entries.setdefault(name, Entry(name, 0, None, key, len(pictures)))
        return [entries[name] for name in sorted(entries)]

    def remove(self, name: str) -> None:
        """Forget an entry and delete its file. Raises ValueError where there is none of this name,
        OSError where the file cannot be deleted."""
        with self._lock:
            # Only files that are there are deleted: a name is never made into a path.
            paths = {_name(path): path for path in self._files(ENDING, DAMAGED)}
            if name not in paths and name not in self._unkept:
                there = ", ".join(sorted({*paths, *self._unkept})) or "nothing"
                raise ValueError(f"nothing was learned under the name {name!r}; there is {there}")
            if name in paths:
                with _locked(paths[name]):  # who is adding to it would write it again
                    paths[name].unlink(missing_ok=True)
            self._unkept.pop(name, None)

    def notes(self) -> list[Reason]:
        """Which files cannot be used, each told once."""
        with self._lock:
            notes = self._notes
            self._notes = []
        return notes

    def _keep(self, path: Path) -> None:
        """Write what is in no file so far into its file, beside what is there. Raises OSError,
        SafetensorError or PolicyError."""
        name = _name(path)
        key, unkept = self._unkept[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as check_lock:
            for part in path.parent.glob(f"{name}.*.part"):  # of who was killed while writing
                part.unlink(missing_ok=True)
            self._look(path)
            there = self._contents.get(path)
            if there is not None and there.key is None:
                raise OSError(there.error)  # a file that could not be set aside
            pictures = _newest(there.pictures if there is not None else {}, unkept)
            check_lock()
            write(path, "gaps", _metadata(key, pictures), gap_tensors(key.sigmas, pictures))
            self._contents[path] = _Content(_stamp(path), key, pictures)
        del self._unkept[name]

    def _known(self) -> dict[str, tuple[ModelKey, Pictures]]:
        """Keys and their pictures by name: those of files, looked at again, and those in none."""
        paths = self._files(ENDING)
        for gone in self._contents.keys() - set(paths):
            del self._contents[gone]
        for path in paths:
            self._look(path)
        known = {}
        for path, content in self._contents.items():
            if content.key is not None:
                known[_name(path)] = content.key, content.pictures
        for name, (key, unkept) in self._unkept.items():
            there = known[name][1] if name in known else {}
            known[name] = key, _newest(there, unkept)
        return known

    def _files(self, *endings: str) -> list[Path]:
        """The folder's files with these endings; none where it cannot be read."""
        if self.folder is None:
            return []
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix in endings)
        except OSError:
            return []

    def _look(self, path: Path) -> None:
        """Read a file unless it is as it was. A damaged one is set aside; it is told once."""
        before = self._contents.pop(path, None)
        try:
            if before is not None and before.stamp == _stamp(path):
                content = before
            else:
                content = _read(path)
        except FileNotFoundError:
            return
        except OSError as error:  # nobody knows whether it is damaged: it stays where it is
            content = _Content((), error=_words(error))
        self._contents[path] = content
        if content.key is not None or (before is not None and before.error == content.error):
            return
        self._notes.append(
            Reason(ReasonCode.LEARNED_FILE_DAMAGED, file=path.name, error=content.error)
        )
        with contextlib.suppress(OSError):
            if content.stamp == _stamp(path):  # and not a new one by now
                path.replace(path.with_suffix(DAMAGED))
                del self._contents[path]


def _learned(key: ModelKey, pictures: Pictures, differs: tuple[str, ...] = ()) -> Learned:
    return Learned(key, tuple(map(table_of, pictures.values())), differs)


def _distance(differs: Sequence[str]) -> tuple[int, list[int]]:
    """How far a key is from another: by how many fields, and then by those that matter most."""
    return len(differs), sorted(map(NEAREST_FIRST.index, differs), reverse=True)


def _newest(pictures: Pictures, new: Pictures) -> Pictures:
    """Of some pictures and newer ones, as many as are kept."""
    both = {**pictures, **new}
    return dict(list(both.items())[-MAX_PICTURES:])


def _name(path: Path) -> str:
    """That of a file's entry."""
    return path.stem if path.suffix == ENDING else path.name


def _entry(path: Path, content: _Content) -> Entry:
    """That of a file."""
    size, modified = 0, None
    with contextlib.suppress(OSError):
        found = path.stat()
        size, modified = found.st_size, found.st_mtime
    error = content.error
    if content.key is None:
        error = error or "was set aside as damaged"
    return Entry(_name(path), size, modified, content.key, len(content.pictures), error)


def _metadata(key: ModelKey, pictures: Pictures) -> dict[str, Any]:
    return {
        "architecture": key.architecture or key.family,
        "base_model": key.family,
        "budgets": [1.0],  # it serves any speed-up
        "reward": "errors of gaps in watched pictures",
        "training_command": "RAPID Accelerate with learn on",
        "licence": "unspecified",
        "key": key.to_json(),
        **gap_metadata(pictures),
    }


def _read(path: Path) -> _Content:
    """A file's content, or what is wrong with it. Raises OSError where it cannot be read."""
    stamp = _stamp(path)
    path.open("rb").close()  # an error here is none of the file's
    try:
        file = read(path)
        pictures = pictures_of(file)
        key = _key(file)
    except PolicyError as error:
        _stamp(path)  # it may be gone by now
        return _Content(stamp, error=str(error).removeprefix(f"policy {path.name}: "))
    return _Content(stamp, key, _newest({}, pictures))


def _key(file: PolicyFile) -> ModelKey:
    """What a file is of. Raises PolicyError."""
    try:
        key = ModelKey.from_json(file.json("key"))
    except PolicyError:
        raise
    except (ValueError, OverflowError) as error:  # of integers of hundreds of digits
        raise file.field_error("key", f"is none ({error})") from None
    if key.name != file.path.stem:
        raise file.field_error("key", f"belongs to the name {key.name}; is this another's file?")
    if torch.tensor(key.sigmas, dtype=torch.float32).tolist() != list(sigmas_of(file)):
        raise file.field_error("key", "has other sigmas than the file")
    return key


def _stamp(path: Path) -> tuple[int, ...]:
    """Another one when a file was replaced or changed. Raises OSError."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _words(error: Exception) -> str:
    """What went wrong, without paths."""
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of a file. Gives what raises OSError where others took the lock for a stale one
    meanwhile. Raises OSError where it cannot be had."""
    lock = path.with_suffix(".lock")
    own = uuid.uuid4().hex
    _take(lock, own)

    def check() -> None:
        if lock.read_text(encoding="utf-8") != own:
            raise OSError("the lock was lost to another process")

    try:
        yield check
    finally:
        with contextlib.suppress(OSError):
            check()
            lock.unlink()


def _take(lock: Path, own: str) -> None:
    """Make a lock file, when nobody else has one. Raises OSError."""
    deadline = time.monotonic() + PATIENCE
    ahead: float | None = None
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            if time.monotonic() > deadline:
                raise TimeoutError("another process is writing") from None
        if ahead is None:
            ahead = _ahead(lock.with_name(f"{own}.part"))
        with contextlib.suppress(FileNotFoundError):
            # Either way: the clock may have been set back.
            if abs(time.monotonic() + ahead - lock.stat().st_mtime) > STALE:
                lock.unlink()
        time.sleep(POLL)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(own)
    except OSError:
        lock.unlink()
        raise


def _ahead(probe: Path) -> float:
    """Seconds by which the clock that dates a folder's files is ahead of this process's monotonic one:
    clocks of servers that share a folder differ, and a lock that was just made would pass for an old
    one. probe: a file that may be made to see it. Raises OSError."""
    probe.touch()
    try:
        return probe.stat().st_mtime - time.monotonic()
    finally:
        probe.unlink(missing_ok=True)
