"""Checks of settings that API clients may send without the browser's limits."""

import math
from collections.abc import Sequence
from typing import Any


def check_range(node: str, name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high; the message says what was given and what is accepted."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{node}: {name} = {value!r} was given; accepted is a number from {low:g} to {high:g}.")


def check_choice(node: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{node}: {name} = {value!r} was given; accepted is one of {', '.join(map(str, choices))}.")
