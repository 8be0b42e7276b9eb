"""The suites of the dial; see `command`."""

from benchmarks.dial.command import main, parser, run

__all__ = ["main", "parser", "run"]
