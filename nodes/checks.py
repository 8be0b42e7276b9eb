"""Checks of settings that API clients may send without the browser's limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Checks:
    """Checks of one node's settings; errors name the node, what was given and what is accepted."""

    node: str

    def range(self, name: str, value: float, low: float, high: float) -> None:
        """Raise ValueError unless low <= value <= high."""
        if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
            accepted = f"a number from {low:g} to {high:g}"
            raise ValueError(f"{self.node}: {name} = {value!r} was given; accepted is {accepted}.")

    def ranges(self, **given: tuple[float, float, float]) -> None:
        """Raise ValueError unless low <= value <= high, for each name = (value, low, high)."""
        for name, (value, low, high) in given.items():
            self.range(name, value, low, high)

    def window(self, start_percent: float, end_percent: float) -> None:
        """Raise ValueError unless 0 <= start_percent <= end_percent <= 1."""
        self.range("end_percent", end_percent, 0.0, 1.0)
        self.range("start_percent", start_percent, 0.0, 1.0)
        if start_percent > end_percent:
            raise ValueError(
                f"{self.node}: start_percent = {start_percent!r} was given with end_percent = "
                f"{end_percent!r}; accepted is a start that is not after the end."
            )

    def choice(self, name: str, value: Any, choices: Sequence[Any]) -> None:
        """Raise ValueError unless `value` is one of `choices`."""
        if value not in choices:
            accepted = ", ".join(map(str, choices))
            raise ValueError(
                f"{self.node}: {name} = {value!r} was given; accepted is one of {accepted}."
            )

    def choices(self, **given: tuple[Any, Sequence[Any]]) -> None:
        """Raise ValueError unless `value` is one of `choices`, for each name = (value, choices)."""
        for name, (value, choices) in given.items():
            self.choice(name, value, choices)
