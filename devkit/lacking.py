"""What an environment lacks of some requirements; run by the interpreter of that environment, which has `packaging`.

PYTHON -m devkit.lacking < requirements.txt
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version


def lacks(line: str) -> dict[str, str | None] | None:
    """What of a requirement is not there: its name, the requirement, and the version that is installed,
    None for none. None where nothing is missing: a version above what is asked for serves, as old
    releases of ComfyUI run on the newest one's requirements."""
    try:
        wanted = Requirement(line)
    except (
        InvalidRequirement
    ):  # an option or an address, of which only pip knows what it stands for
        return None
    if wanted.marker is not None and not wanted.marker.evaluate():
        return None
    found = {"name": wanted.name, "wanted": str(wanted)}
    try:
        installed = version(wanted.name)
    except PackageNotFoundError:
        return {**found, "installed": None}
    if wanted.specifier.contains(installed, prereleases=True):
        return None
    bounds = [Version(one.version.removesuffix(".*")) for one in wanted.specifier]
    if all(bound <= Version(installed) for bound in bounds):
        return None
    return {**found, "installed": installed}


def main() -> None:
    """Requirements from standard input, what of them is lacking as JSON to standard output."""
    lines = [line.split(" #")[0].strip() for line in sys.stdin]
    found = [lacks(line) for line in lines if line and not line.startswith(("#", "-"))]
    json.dump([one for one in found if one is not None], sys.stdout)


if __name__ == "__main__":
    main()
