"""Names that people give to policy files."""

from __future__ import annotations

import re

SUFFIX = ".safetensors"
# Up to 80 letters, digits, spaces and a few signs; what systems understand otherwise is not among them.
ACCEPTED = re.compile(r"\w(?:[\w .()+-]{0,78}[\w()+-])?")
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # on Windows


def plain_name(name: str) -> str | None:
    """The name of a file, without its suffix; None for one with a folder in it, or with signs that not
    every system has in names."""
    plain = name.strip().removesuffix(SUFFIX)
    return plain if ACCEPTED.fullmatch(plain) and not RESERVED.fullmatch(plain) else None
