"""Several processes, started by torchrun, train one policy: each does a share of the work, and all
come to one end.

Work is numbered. Number n is done by process n mod `world_size`, all that is random in it follows
from the number, and results are put back in order, so that what comes out does not depend on how
many processes there are. Without torchrun there is one, and nothing here does anything.

What goes between processes is tensors and plain containers (dict, list, tuple, str, numbers, None).
It is small and lies on the CPU, hence gloo, and no pickle of a peer's is executed."""

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
from torch import Tensor

T = TypeVar("T")
_MISSING = object()


class ProcessLost(RuntimeError):
    """Another process has ended or hangs."""


@contextmanager
def distributed(timeout: timedelta) -> Iterator[None]:
    """Join the processes that torchrun started; enter it before ComfyUI is imported, which then
    takes the process's own GPU. timeout: for how long the quickest process waits for the
    slowest."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()  # now: those that wait for this process learn of its end at once


def rank() -> int:
    """Number of this process. Process 0 writes the files that there is one of, and has the progress
    bars."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _is_distributed() else 1


def shard(work: Sequence[T]) -> Sequence[T]:
    """This process's part of work that all processes know."""
    return work[rank() :: world_size()]


def all_gather(own: Sequence[T]) -> list[T]:
    """Results of all processes in the order of the work, from each one's results of its `shard`.
    All have to call it. Raises ProcessLost; TypeError for what is no tensor or plain container."""
    if world_size() == 1:
        return list(own)
    body = _to_bytes(list(own))
    with _noticing_lost_processes():
        sizes = _gathered(torch.tensor([len(body)]))
        longest = int(max(sizes))
        bodies = _gathered(_padded(body, longest))
    by_process = [_from_bytes(part[: int(size)]) for part, size in zip(bodies, sizes, strict=True)]
    rounds = zip_longest(*by_process, fillvalue=_MISSING)
    return [result for one_round in rounds for result in one_round if result is not _MISSING]


def broadcast_from_rank0(work: Callable[[], T]) -> T:
    """What `work` gives in process 0, in every process. All have to call it. Raises as
    `all_gather`."""
    if world_size() == 1:
        return work()
    result = work() if rank() == 0 else None
    body = _to_bytes(result) if rank() == 0 else b""
    size = torch.tensor([len(body)])
    with _noticing_lost_processes():
        dist.broadcast(size, 0)
        buffer = _padded(body, int(size))
        dist.broadcast(buffer, 0)
    return _from_bytes(buffer)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gathered(own: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return parts


def _padded(body: bytes, length: int) -> Tensor:
    padded = torch.zeros(length, dtype=torch.uint8)
    if body:
        padded[: len(body)] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    return padded


def _to_bytes(value: Any) -> bytes:
    _check_plain(value)
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _from_bytes(body: Tensor) -> Any:
    buffer = io.BytesIO(body.numpy().tobytes())
    return torch.load(buffer, map_location="cpu", weights_only=True)


def _check_plain(value: Any) -> None:
    """Raise TypeError here, where it is known whose value it is, for what no process would read."""
    if isinstance(value, dict):
        _check_plain([*value.keys(), *value.values()])
    elif type(value) in (list, tuple):
        for part in value:
            _check_plain(part)
    elif not (value is None or isinstance(value, (Tensor, str, int, float))):
        raise TypeError(f"{type(value).__name__} does not go between processes")


@contextmanager
def _noticing_lost_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        timed_out = "timed out" in str(error).lower()
        what = "did not answer in time (--patience)" if timed_out else "has ended"
        raise ProcessLost(
            f"process {rank()} of {world_size()} stops, because another one {what}; what that one "
            "printed says why. The same command goes on from what is kept."
        ) from error
