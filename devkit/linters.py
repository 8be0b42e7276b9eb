"""Checks that read the code and do not run it: ruff, import-linter, pyright."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from devkit.base_folder import REPOSITORY, link

PACK = "rapid"  # the pack's name where pyproject.toml says what may import what
RUFF = {
    "ruff check": ["-m", "ruff", "check", "--output-format", "concise", "."],
    "ruff format": ["-m", "ruff", "format", "--check", "."],
}
# The command `lint-imports`, which cannot be started by `python -m`.
IMPORT_LINTER = "from importlinter.cli import lint_imports_command as run; run()"


def failed_linters(python: Path, environment: dict[str, str], types: bool) -> list[str]:
    """Run the checks and name those that failed. types: pyright too, which takes longer."""
    commands = {name: [str(python), *arguments] for name, arguments in RUFF.items()}
    if types:
        commands["pyright"] = [str(python), "-m", "pyright", "--pythonpath", str(python)]
    failed = [
        name
        for name, command in commands.items()
        if subprocess.call(command, cwd=REPOSITORY, env=environment)
    ]
    return failed if imports_are_right(python, environment) else [*failed, "import-linter"]


def imports_are_right(python: Path, environment: dict[str, str]) -> bool:
    """Whether import-linter finds the walls of pyproject.toml whole.

    The nodes import the core as a sibling within the pack's package, as ComfyUI loads it, and a
    clone may have any name. So it is seen through a link that is called as the contracts say.
    """
    with tempfile.TemporaryDirectory() as folder:
        link(REPOSITORY, Path(folder) / PACK)
        paths = os.pathsep.join([folder, str(REPOSITORY)])
        command = [str(python), "-c", IMPORT_LINTER, "--no-cache", "--no-logo"]
        return not subprocess.call(
            command, cwd=REPOSITORY, env={**environment, "PYTHONPATH": paths}
        )
