"""What became of each test, in a file that grows while tests run: whoever reads it after the process
was killed knows what was run and what was not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

LONGEST = 300  # characters of what a test says


class Outcomes:
    """A plugin of pytest that appends lines of JSON: {"collected": {file: tests}} once, then
    {"test": id, "outcome": "passed", "skipped" or "failed", "why": words, "seconds": s} for each, and
    {"file": path, "why": words} for a file that could not be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """All files are read."""
        counts = Counter(item.nodeid.split("::")[0] for item in session.items)
        self._write({"collected": dict(counts)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file was read, or could not be."""
        if report.failed:
            self._write({"file": report.nodeid, "why": _last_line(str(report.longrepr))})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test was set up, run or cleaned up after; what passes is told once, by its run."""
        if report.when == "call" or not report.passed:
            seconds = round(report.duration, 1)
            about = {"outcome": report.outcome, "why": _why(report), "seconds": seconds}
            self._write({"test": report.nodeid, **about})


def _why(report: pytest.TestReport) -> str:
    """Why a test was skipped or failed, in one line."""
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return crash.message.splitlines()[0][:LONGEST]
    return _last_line(str(report.longrepr))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines or ["no words"])[-1].removeprefix("E ").strip()[:LONGEST]
