"""Prompts of a demo model's training scenes, one a line, into a file:

python -m demo.prompts FILE [--model flux]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.world import weights_of, world_of

NUMBER = 256
SEED = 90000  # far from the seeds of tests and of threshold fits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="flux")
    args = parser.parse_args()
    lines = world_of(weights_of(args.model)).prompts(NUMBER, "train", SEED).prompts()
    args.file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
