"""Names that people give to policy files."""

from __future__ import annotations

import re

SUFFIX = ".safetensors"
# Up to 80 letters, digits, spaces and a few signs; what systems understand otherwise is not among them.
ACCEPTED = re.compile(r"\w(?:[\w .()+-]{0,78}[\w()+-])?")
# Linux has at most 255 bytes for a name, and while files are written theirs are longer: by
# `.calibration.latents`, 32 digits and `.part`. A Chinese letter takes 3.
MOST_BYTES = 190
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # on Windows


def plain_name(name: str) -> str | None:
    """The name of a file, without its suffix; None for one with a folder in it, with signs that not
    every system has in names, or a longer one than every system has."""
    plain = name.strip().removesuffix(SUFFIX)
    if not ACCEPTED.fullmatch(plain) or RESERVED.fullmatch(plain):
        return None
    return plain if len(plain.encode()) <= MOST_BYTES else None
