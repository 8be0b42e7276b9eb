"""Packages that may be missing, and where their networks run."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch


def needed(module: str, package: str, what: str) -> Any:
    """An optional module. Raises ValueError that names its package and the command that installs
    it."""
    try:
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{what}: the package {package} is installed, but cannot be imported: {error}"
        ) from None
    raise ValueError(
        f"{what} needs the package {package}, which is not installed: pip install {package}"
    )


def device() -> torch.device:
    """Where the networks run that look at pictures."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
