"""ControlNet residuals of a call on some tokens: the rows of the tokens that run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..architectures import Architecture
from ..reasons import ReasonCode
from ..types import Reason
from .batch_rows import NotSliceable
from .token_subset import take


def narrowed(
    control: dict | None, tokens: Tensor, number: int, architecture: Architecture, model: Any
) -> dict | None:
    """`control` (lists of residuals (rows or 1, N, C) by name, one a block) for tokens (rows, K) of
    `number`.

    What the host adds after the last block of a stack meets the whole image again and stays whole.
    Raises NotSliceable for residuals of another length (tiled or partial ControlNets)."""
    if control is None:
        return None
    last = len(getattr(model, architecture.stacks[-1][-1].attribute)) - 1
    alone = len(architecture.stacks[-1]) == 1
    out = {}
    for name, residuals in control.items():
        at_end = last if (name == "output" or alone) else None
        out[name] = [
            r if i == at_end else _rows(r, tokens, number) for i, r in enumerate(residuals)
        ]
    return out


def _rows(residual: Any, tokens: Tensor, number: int) -> Any:
    if not isinstance(residual, Tensor):
        return residual
    if residual.ndim != 3 or residual.shape[1] != number:
        shape = " x ".join(map(str, residual.shape))
        raise NotSliceable(Reason(ReasonCode.CONTROL_SHAPE, shape=shape, tokens=number))
    whole = residual.expand(len(tokens), -1, -1) if residual.shape[0] == 1 else residual
    return take(whole, tokens)
