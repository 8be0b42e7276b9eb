"""What can carry out a sparse attention on this machine, and which of it `auto` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from ...reasons import ReasonCode
from ...types import Reason
from . import flex, gather, paged
from .problem import Problem

MEASURED = Path(__file__).with_name("measured.json")
MARGIN = 1.05  # a measured speed-up below this is not worth the error
AUTO = "auto"


@dataclass(frozen=True)
class Backend:
    """One way to compute sparse attention."""

    name: str
    attend: Callable[[Problem], Tensor]
    """Attention, as the problem's q."""
    missing: Callable[[str], Reason | None]
    """Why it cannot run on a type of device; None where it can."""
    bias: bool = True
    """Whether it can add a bias to keys."""
    means: bool = True
    """Whether it can let means stand in for tiles that are not attended to."""
    tile_sizes: tuple[int, ...] | None = None
    """Tokens of a key tile that it takes; None for any multiple of 16."""
    tested: tuple[str, ...] = ()
    """Types of device on which this project has run it; elsewhere it is checked against the
    reference (`BackendCheck`)."""


@dataclass(frozen=True)
class AttentionSize:
    """What the choice of a backend depends on."""

    device: str
    """Type of the device."""
    head_size: int
    """Channels of a head."""
    tokens: int
    """Of the image."""
    density: float
    """Share of the pairs of image tiles that are attended to."""
    tile: int
    """Tokens of a key tile."""


@dataclass(frozen=True)
class BackendChoice:
    """A backend, or None for dense attention and why."""

    backend: Backend | None
    reason: Reason | None = None


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("gather", gather.attend, gather.missing, tested=("cpu",)),
        Backend("flex", flex.attend, flex.missing, tested=("cpu",)),
        Backend(
            "xformers",
            paged.attend,
            paged.missing,
            bias=False,
            means=False,
            tile_sizes=paged.TILE_SIZES,
        ),
    )
}
NAMES = (AUTO, *BACKENDS)  # what a node offers


@cache
def measured() -> tuple[dict, ...]:
    """The shipped measurements: device, head_size, tokens, density, backend, speedup over dense
    attention."""
    if not MEASURED.is_file():
        return ()
    return tuple(json.loads(MEASURED.read_text(encoding="utf-8"))["rows"])


def choose(name: str, size: AttentionSize) -> BackendChoice:
    """The backend of this name, or by `auto` the one that was measured fastest. Looks for packages
    and compilers, so that it is for once a run (`BackendCheck.choose`)."""
    if name != AUTO:
        backend = BACKENDS[name]
        reason = backend.missing(size.device) or wrong_tile(backend, size.tile)
        return BackendChoice(backend) if reason is None else BackendChoice(None, reason)
    best = fastest(size)
    if best is not None:
        return BackendChoice(BACKENDS[best])
    return BackendChoice(
        None,
        Reason(
            ReasonCode.AUTO_IS_DENSE,
            device=size.device,
            tokens=size.tokens,
            head_size=size.head_size,
            density=size.density,
        ),
    )


def wrong_tile(backend: Backend, tile: int) -> Reason | None:
    """Why a backend does not take tiles of this size; None where it does."""
    if backend.tile_sizes is None or tile in backend.tile_sizes:
        return None
    accepted = ", ".join(map(str, backend.tile_sizes))
    return Reason(ReasonCode.TILE_WITH_BACKEND, backend=backend.name, accepted=accepted, given=tile)


def fastest(size: AttentionSize) -> str | None:
    """By the measurements: at the nearest head size, at no more tokens and no lower density than
    asked for."""
    rows = [
        row
        for row in measured()
        if row["device"] == size.device
        and row["tokens"] <= size.tokens
        and row["density"] >= size.density
    ]
    rows = [row for row in rows if choose(row["backend"], size).backend is not None]
    if not rows:
        return None
    near = min(abs(row["head_size"] - size.head_size) for row in rows)
    rows = [row for row in rows if abs(row["head_size"] - size.head_size) == near]
    most = max(row["tokens"] for row in rows)
    least = min(row["density"] for row in rows)
    rows = [row for row in rows if row["tokens"] == most and row["density"] == least]
    best = max(rows, key=_speedup)
    return best["backend"] if best["speedup"] >= MARGIN else None


def _speedup(row: dict) -> float:
    return row["speedup"]
