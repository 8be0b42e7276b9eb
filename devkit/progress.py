"""One line of progress: rewritten in place on a terminal, repeated now and then in a log."""

from __future__ import annotations

import sys
import time

WIDTH = 110


class Progress:
    """Progress of one step, from its first line to its closing time."""

    def __init__(self, step: str):
        self.step, self.start, self.shown = step, time.monotonic(), time.monotonic()
        self.terminal = sys.stdout.isatty()
        self._write(f"{step} ...")

    def _write(self, text: str, final: bool = False) -> None:
        line = f"  {text}"[:WIDTH]
        if self.terminal:
            print("\r" + line.ljust(WIDTH), end="\n" if final else "", flush=True)
        else:
            print(line, flush=True)

    def show(self, activity: str) -> None:
        """Show what is going on: at most every 0.2 s on a terminal, every 10 s in a log."""
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.terminal else 10):
            self.shown = now
            self._write(f"{self.step}: {activity} ({now - self.start:.0f} s)")

    def finish(self, outcome: str = "done") -> None:
        """Close the line with the time taken."""
        self._write(f"{self.step}: {outcome} in {time.monotonic() - self.start:.1f} s", final=True)
