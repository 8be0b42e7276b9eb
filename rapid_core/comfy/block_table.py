"""Where a model's blocks stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..architectures import Architecture, Group


@dataclass(frozen=True)
class BlockInfo:
    """Where a block stands: its number among all blocks, its group, and whether it is the first or
    last of a stack. main: whether its stack is the one that reuse passes over."""

    number: int
    group: Group
    first: bool
    last: bool
    main: bool


def block_table(architecture: Architecture, model: Any) -> dict[tuple[str, int], BlockInfo]:
    """Every block of a model by (attribute of its group, index)."""
    out: dict[tuple[str, int], BlockInfo] = {}
    for stack in architecture.stacks:
        keys = [(group, i) for group in stack for i in range(len(getattr(model, group.attribute)))]
        for n, (group, i) in enumerate(keys):
            main = stack is architecture.stacks[-1]
            out[group.attribute, i] = BlockInfo(len(out), group, n == 0, n == len(keys) - 1, main)
    return out
