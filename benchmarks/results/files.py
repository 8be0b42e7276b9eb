"""Where figures and pages are."""

from __future__ import annotations

import json
from typing import Any

from devkit.base_folder import REPOSITORY
from evaluation.rows import read
from evaluation.tables import Row

FOLDER = REPOSITORY / "docs" / "results"


def load(name: str) -> list[Row]:
    """Rows of a file in docs/results, under the names of today."""
    return read(FOLDER / f"{name}.json")


def read_json(name: str) -> dict[str, Any]:
    """A file in docs/results whose rows are not rows of suites."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
