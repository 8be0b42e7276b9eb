"""Functions that other nodes put on a model: which node made one, and with what settings."""

from __future__ import annotations

import dis
import numbers
from typing import Any

from torch import Tensor


def maker_of(function: Any) -> str:
    """What a function's qualified name begins with: mostly the class of the node that made it."""
    return getattr(function, "__qualname__", type(function).__qualname__).split(".")[0]


def settings_of(function: Any) -> dict[str, Any]:
    """Settings of the node that made a function, by name: numbers, texts, tensors and lists of them; not
    what the function itself changes from step to step, as a running mean."""
    code, cells = (getattr(function, name, None) for name in ("__code__", "__closure__"))
    if code is None or not cells:
        return {}
    changed = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_DEREF"}
    settings = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # it was never set
            continue
        if name not in changed and _is_setting(value):
            settings[name] = value
    return settings


def _is_setting(value: Any) -> bool:
    """Whether a value is a number, a text, a tensor or a list of these."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_setting, value))
    return isinstance(value, (numbers.Number, str, Tensor))
