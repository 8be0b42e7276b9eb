"""Prompts of the demo's scenes. Those of its training scenes, one a line, into a file:

python -m demo.prompts FILE
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from demo import scenes
from demo.scenes import Scenes

PART = 64  # prompts drawn by one seed
NUMBER = 256
SEED = 90000  # far from the seeds of tests and of threshold fits


def prompts(number: int, split: str = "test", seed: int = 7) -> Scenes:
    """Scenes of a split; a longer list begins with the shorter one."""
    seeds = [seed + 1000 * part for part in range(math.ceil(number / PART))]
    parts = [scenes.sample(PART, torch.Generator().manual_seed(s), split) for s in seeds]
    return Scenes.joined(parts).take(slice(0, number))


if __name__ == "__main__":
    lines = prompts(NUMBER, "train", SEED).prompts()
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
