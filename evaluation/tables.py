"""Tables in Markdown out of rows, and how a number looks in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    cell: Callable[[Row], str]


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A number with so many digits, or "-" for none."""
    if value is None:
        return "-"
    rounded = round(value, digits) or 0.0  # no sign on a zero
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}"


def interval(value: float | None, ci: Iterable[float] | None, sign: bool = False) -> str:
    """A mean in dB with its 95 % interval."""
    if value is None or ci is None:
        return number(value, sign=sign)
    low, high = ci
    return f"{number(value, sign=sign)} ({number(low, sign=sign)} to {number(high, sign=sign)})"


def figure(title: str, name: str, digits: int = 1) -> Column:
    """A column of one number of the row."""
    return Column(title, lambda row: number(row.get(name), digits))


def text(title: str, name: str) -> Column:
    """A column of one text of the row."""
    return Column(title, lambda row: str(row[name]))


def table(columns: list[Column], rows: Iterable[Row]) -> str:
    """The rows as a table."""
    lines = [[column.title for column in columns], ["---"] * len(columns)]
    lines += [[column.cell(row) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
