"""Prompts of the demo's training scenes, one a line: `python -m demo.prompts FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from demo.measure import prompts

NUMBER, SEED = 256, 90000  # far from the seeds of tests and of threshold fits

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(
        "\n".join(prompts(NUMBER, "train", SEED).prompts()) + "\n", encoding="utf-8"
    )
