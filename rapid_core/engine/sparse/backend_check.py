"""A backend that this project could not try on a kind of device proves itself once a run, on the
run's own inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from . import reference as masked
from .backends import Backend
from .problem import Problem

MOST = 0.05  # relative L2 error to the reference; kernels that quantise are at a few per cent


class BackendCheck:
    """What was found out in one run: by backend and shapes, None where it is right, else the
    reason."""

    def __init__(self) -> None:
        self.found: dict[tuple, str | None] = {}

    def attend(self, backend: Backend, problem: Problem) -> tuple[Tensor | None, str]:
        """The attention as the problem's q, or None and why it cannot be had from this backend."""
        device = problem.q.device.type
        if device in backend.tested:
            return backend.attend(problem), ""
        key = (
            backend.name,
            device,
            problem.q.dtype,
            tuple(problem.q.shape),
            tuple(problem.k.shape),
        )
        if self.found.get(key):
            return None, str(self.found[key])
        try:
            out = backend.attend(problem)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            self.found[key] = (
                f"{backend.name} does not work here ({type(error).__name__}: {error}): attention is dense"
            )
            return None, str(self.found[key])
        if key not in self.found:
            off = error_of(out, problem)
            self.found[key] = (
                None
                if off <= MOST
                else (
                    f"{backend.name} is off by {off:.0%} from the reference on {device}: attention is dense"
                )
            )
        return (None, str(self.found[key])) if self.found[key] else (out, "")


def error_of(out: Tensor, problem: Problem) -> float:
    """Relative L2 error of the first and last query tile of the first and last head. Asks the
    device, once a shape."""
    p, heads = problem, problem.q.shape[1]
    groups = heads // p.k.shape[1]
    wrong = total = 0.0
    for head in {0, heads - 1}:
        for tile in {0, p.kept.shape[2] - 1}:
            rows, group = (
                slice(tile * p.rows, (tile + 1) * p.rows),
                slice(head // groups, head // groups + 1),
            )
            part = replace(
                p,
                q=p.q[:1, head : head + 1, rows].float(),
                k=p.k[:1, group].float(),
                v=p.v[:1, group].float(),
                kept=p.kept[:1, head : head + 1, tile : tile + 1],
                bias=None if p.bias is None else p.bias[:1].float(),
            )
            wanted = masked.attend(part)
            wrong += (out[:1, head : head + 1, rows].float() - wanted).square().sum().item()
            total += wanted.square().sum().item()
    return (wrong / max(total, 1e-30)) ** 0.5 if wrong == wrong else float("inf")
