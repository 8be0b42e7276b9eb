"""Which pictures are drawn together, and by which process."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence

BATCH = 8


def batches(numbers: Sequence[int], size: int = BATCH) -> list[list[int]]:
    """Picture numbers in groups that are drawn together."""
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]


def _share_of(text: str) -> tuple[int, int]:
    """`--share 1/2`: the first of two processes that draw for one log, as (0, 2)."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ArgumentTypeError(f"{text}: give for example 1/2, the first of two")
    return int(number) - 1, int(of)


def add_share(parser: ArgumentParser) -> None:
    """The flag --share of a suite whose log several processes draw for."""
    parser.add_argument(
        "--share",
        type=_share_of,
        default=(0, 1),
        metavar="K/N",
        help="draw a part only, e.g. 1/2 beside a process of 2/2",
    )
