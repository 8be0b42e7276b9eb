"""Rows of a joined batch: row = chunk * B + image, a chunk being one conditioning, and everything
that is batched along with the latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reasons import ReasonCode
from ..transfer import to_device
from ..types import Reason


class NotSliceable(Exception):
    """An argument whose batch is not understood; the evaluation is computed in full. `reason`: why."""

    def __init__(self, reason: Reason):
        super().__init__(str(reason))
        self.reason = reason


def rows_of(images: Sequence[int], batch: int, chunks: int) -> list[int]:
    """Row numbers of these images in every chunk, chunk by chunk."""
    return [chunk * batch + image for chunk in range(chunks) for image in images]


def take_rows(value: Any, rows: Tensor, total: int) -> Any:
    """`value` for the chosen rows only: tensors with `total` rows are indexed, those with one row
    are shared. Raises NotSliceable for other numbers of rows."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] == 1:
            return value
        if value.shape[0] != total:
            raise NotSliceable(Reason(ReasonCode.OTHER_ROWS, given=value.shape[0], expected=total))
        return value.index_select(0, to_device(rows, value.device))
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor | list | tuple) for v in value):
        return type(value)(take_rows(v, rows, total) for v in value)
    if isinstance(value, dict):
        return {name: take_rows(v, rows, total) for name, v in value.items()}
    return value


def index(rows: Sequence[int], device: torch.device) -> Tensor:
    """Row numbers as an index tensor."""
    return to_device(torch.tensor(rows, dtype=torch.long), device)
