"""Several processes, started by torchrun, train one policy: each does a share of the work, and all
come to one end.

Work is numbered. Number n is done by process n mod size, all that is random in it follows from the
number, and results are put back in order, so that what comes out does not depend on how many
processes there are. Without torchrun there is one, and nothing here does anything. What goes
between processes is small and lies on the CPU, hence gloo."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
_NOTHING = object()


class ProcessLost(RuntimeError):
    """Another process has ended or hangs."""


@contextmanager
def several(patience: timedelta) -> Iterator[None]:
    """Join the processes that torchrun started; enter it before ComfyUI is imported, which then
    takes the process's own GPU. patience: for how long the quickest process waits for the
    slowest."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()  # now: those that wait for this process learn of its end at once


def rank() -> int:
    """Number of this process. Process 0 writes the files that there is one of, and has the progress
    bars."""
    return dist.get_rank() if _joined() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _joined() else 1


def share(work: Sequence[T]) -> Sequence[T]:
    """This process's part of work that all processes know."""
    return work[rank() :: size()]


def together(own: Sequence[T]) -> list[T]:
    """Results of all processes in the order of the work, from each one's results of its `share`.
    All have to call it. Raises ProcessLost."""
    if size() == 1:
        return list(own)
    found: list[Any] = [None] * size()
    with _waiting():
        dist.all_gather_object(found, _packed(list(own)))
    rows = zip_longest(*map(_unpacked, found), fillvalue=_NOTHING)
    return [value for row in rows for value in row if value is not _NOTHING]


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in process 0, in every process. All have to call it. Raises ProcessLost."""
    if size() == 1:
        return work()
    box = [_packed(work()) if rank() == 0 else None]
    with _waiting():
        dist.broadcast_object_list(box)
    return _unpacked(box[0])


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _packed(value: Any) -> bytes:
    """As torch writes it: a view is a part of its tensor there, and a whole copy of it in a plain
    pickle."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(body: bytes) -> Any:
    return torch.load(
        io.BytesIO(body), map_location="cpu", weights_only=False
    )  # from this very program


@contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        what = (
            "did not answer in time (--patience)"
            if "timed out" in str(error).lower()
            else "has ended"
        )
        raise ProcessLost(
            f"process {rank()} of {size()} stops, because another one {what}; what that one printed says "
            "why. The same command goes on from what is kept."
        ) from error
