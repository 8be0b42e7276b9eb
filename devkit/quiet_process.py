"""Processes beside each other whose outputs are shown one after the other."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path


class QuietProcess:
    """A process that writes into a file until it is shown; ended with the `with` block."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]):
        self.command, self.folder, self.environment = command, folder, environment

    def __enter__(self) -> QuietProcess:
        self.kept = tempfile.TemporaryDirectory()
        self.output = Path(self.kept.name) / "output"
        with self.output.open("wb") as written:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        self.kept.cleanup()

    def show(self) -> int:
        """Pass on what it has written and still writes, until it ends; returns its exit code."""
        with self.output.open(encoding="utf-8", errors="replace") as written:
            while True:
                ended = (
                    self.process.poll() is not None
                )  # asked first, so that its last words are read after its end
                while text := written.read(1 << 20):
                    sys.stdout.write(text)
                sys.stdout.flush()
                if ended:
                    return self.process.returncode
                time.sleep(0.2)
