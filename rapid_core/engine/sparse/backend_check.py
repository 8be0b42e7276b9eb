"""What one run finds out about backends: which it uses, and which of them fail.

A backend that this project could not try on a kind of device proves itself on the run's own inputs;
one that fails, or needs more memory than there is, makes way for dense attention."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...reasons import ReasonCode
from ...types import Reason
from . import backends, reference
from .backends import AttentionSize, Backend, BackendChoice
from .problem import Problem, StaysDense

LARGEST_ERROR = 0.05  # relative L2 error to the reference
ERROR_WORDS = 200  # characters of a foreign error that a reason quotes


class BackendCheck:
    """Of one run."""

    def __init__(self) -> None:
        self._choices: dict[tuple[str, AttentionSize], BackendChoice] = {}
        self._faults: dict[tuple, Reason | None] = {}  # by backend and shapes; None: it works

    def choose(self, name: str, size: AttentionSize) -> Backend:
        """The backend for attentions of this size; see `backends.choose`. Raises StaysDense."""
        key = (name, size)
        if key not in self._choices:
            self._choices[key] = backends.choose(name, size)
        choice = self._choices[key]
        if choice.backend is None:
            assert choice.reason is not None
            raise StaysDense(choice.reason)
        return choice.backend

    def attend(self, backend: Backend, problem: Problem) -> Tensor:
        """The attention as the problem's q. Raises StaysDense where this backend cannot give it."""
        device = problem.q.device.type
        q, k = problem.q, problem.k
        key = (backend.name, device, q.dtype, tuple(q.shape), tuple(k.shape))
        fault = self._faults.get(key)
        if fault is not None:
            raise StaysDense(fault)
        out = None
        try:
            out = backend.attend(problem)
            if key not in self._faults and device not in backend.tested:
                fault = _difference(backend, out, problem)
        except torch.cuda.OutOfMemoryError:
            fault = Reason(ReasonCode.BACKEND_OUT_OF_MEMORY, backend=backend.name)
        except Exception as error:
            fault = Reason(ReasonCode.BACKEND_FAILS, backend=backend.name, error=_words(error))
        # Outside of `except`: the error's frames hold tensors that dense attention needs room for.
        self._faults[key] = fault
        if fault is not None or out is None:
            assert fault is not None
            raise StaysDense(fault)
        return out


def _difference(backend: Backend, out: Tensor, problem: Problem) -> Reason | None:
    """Why a backend's result is wrong; None where it is right."""
    off = error_of(out, problem)
    if off <= LARGEST_ERROR:
        return None
    percent = round(100 * off) if math.isfinite(off) else "nan"
    device = problem.q.device.type
    return Reason(ReasonCode.BACKEND_IS_OFF, backend=backend.name, percent=percent, device=device)


def _words(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:ERROR_WORDS]


def error_of(out: Tensor, problem: Problem) -> float:
    """Relative L2 error of the first and last query tile of the first and last head; inf where it
    is not a number. Asks the device, once a shape."""
    p = problem
    heads = p.q.shape[1]
    groups = heads // p.k.shape[1]
    sizes = []
    for head in {0, heads - 1}:
        for tile in {0, p.chosen.shape[2] - 1}:
            rows = slice(tile * p.query_size, (tile + 1) * p.query_size)
            group = slice(head // groups, head // groups + 1)
            part = replace(
                p,
                q=p.q[:1, head : head + 1, rows].float(),
                k=p.k[:1, group].float(),
                v=p.v[:1, group].float(),
                chosen=p.chosen[:1, head : head + 1, tile : tile + 1],
                bias=None if p.bias is None else p.bias[:1].float(),
            )
            right = reference.attend(part)
            difference = out[:1, head : head + 1, rows].float() - right
            sizes.append(torch.stack((difference.square().sum(), right.square().sum())))
    wrong, total = map(sum, zip(*torch.stack(sizes).tolist(), strict=True))
    if math.isnan(wrong):
        return math.inf
    return (wrong / max(total, 1e-30)) ** 0.5
