"""What can carry out a sparse attention on this machine, and which of it `auto` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from . import flex, gather, paged, sparge
from . import reference as masked
from .problem import Problem

MEASURED = Path(__file__).with_name("measured.json")
MARGIN = 1.05  # a measured speed-up below this is not worth the error


@dataclass(frozen=True)
class Backend:
    """attend: Problem -> as its q. missing: why it cannot run on a kind of device, None where it
    can. bias, pooled: whether it can add a bias to keys, and let means stand in for tiles that were
    left out. tested: kinds of device on which this project has run it; elsewhere it has to prove
    itself (`trust`)."""

    name: str
    attend: Callable[[Problem], Tensor]
    missing: Callable[[str], str | None]
    bias: bool = True
    pooled: bool = True
    tested: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackendChoice:
    """A backend, or None for dense attention, with the reason."""

    backend: Backend | None
    reason: str = ""


def _nothing(device: str) -> None:
    return None


BACKENDS = {
    b.name: b
    for b in (
        Backend("gather", gather.attend, gather.missing, tested=("cpu",)),
        Backend("flex", flex.attend, flex.missing, tested=("cpu",)),
        Backend("xformers", paged.attend, paged.missing, bias=False, pooled=False),
        Backend("spargeattn", sparge.attend, sparge.missing, bias=False, pooled=False),
        Backend("masked", masked.attend, _nothing, tested=("cpu",)),
    )
}
NAMES = (
    "auto",
    "gather",
    "flex",
    "xformers",
    "spargeattn",
)  # what a node offers; `masked` is for tests


@cache
def measured() -> tuple[dict, ...]:
    """The shipped measurements: device, head_size, tokens, density, backend, speedup over dense
    attention."""
    return (
        tuple(json.loads(MEASURED.read_text(encoding="utf-8"))["rows"])
        if MEASURED.is_file()
        else ()
    )


def choose(name: str, q: Tensor, tokens: int, density: float) -> BackendChoice:
    """The backend of this name, or by `auto` the one that was measured fastest; q (R, H, L, D)."""
    device = q.device.type
    if name != "auto":
        found = BACKENDS[name]
        reason = found.missing(device)
        return (
            BackendChoice(None, f"{reason}: attention is dense") if reason else BackendChoice(found)
        )
    best = fastest(device, q.shape[3], tokens, density)
    if best is None:
        return BackendChoice(
            None,
            f"auto: no sparse attention was measured faster than dense on {device} "
            f"at {tokens} tokens, heads of {q.shape[3]} and density {density:g}",
        )
    return BackendChoice(BACKENDS[best])


def fastest(device: str, head_size: int, tokens: int, density: float) -> str | None:
    """By the measurements: at the nearest head size, at no more tokens and no lower density than
    asked for."""
    rows = [
        r
        for r in measured()
        if r["device"] == device and r["tokens"] <= tokens and r["density"] >= density
    ]
    rows = [r for r in rows if not BACKENDS[r["backend"]].missing(device)]
    if not rows:
        return None
    near = min(abs(r["head_size"] - head_size) for r in rows)
    rows = [r for r in rows if abs(r["head_size"] - head_size) == near]
    most, least = max(r["tokens"] for r in rows), min(r["density"] for r in rows)
    best = max(
        (r for r in rows if r["tokens"] == most and r["density"] == least),
        key=lambda r: r["speedup"],
    )
    return best["backend"] if best["speedup"] >= MARGIN else None
