"""The one development command: `python3 dev.py test | serve | demo` (standard library only)."""

import sys

# Kept readable by old interpreters, so that they can say what is wrong instead of failing to parse.
if sys.version_info < (3, 10):
    sys.exit(
        "error: Python "
        + sys.version.split()[0]
        + " is too old: run dev.py with Python 3.10 or newer"
    )

from devkit.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
