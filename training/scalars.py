"""Scalars of a training: one JSON line a step, and events of TensorBoard where its package is
installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.files import write_text
from training.processes import rank

TAGS = {
    "reward": "reward/mean",
    "psnr": "rollout/psnr",
    "equivalent_steps": "rollout/equivalent_steps",
    "dropped_groups": "rollout/dropped_groups",
    "rollouts_per_second": "time/rollouts_per_second",
}
MISSING = (
    "no curves: the package tensorboard is not installed in this Python (pip install tensorboard)"
)


def tag(name: str) -> str:
    """TensorBoard's name of a scalar: those of the policy's update are not named above."""
    return name if "/" in name else TAGS.get(name, f"policy/{name}")


def write_lines(path: Path, log: Sequence[Mapping]) -> None:
    """The whole log, one JSON object a line."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in log))


class TensorBoardLog:
    """TensorBoard events in a folder. What was written there before a kill may lack the latest
    point or have one that was never saved: it is purged, and whoever goes on adds all points
    again."""

    def __init__(self, folder: Path):
        self.writer = None
        if rank() > 0:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print(MISSING, file=sys.stderr)
        else:
            self.writer = SummaryWriter(str(folder), purge_step=0)

    def add(self, step: int, scalars: Mapping[str, float], when: float | None = None) -> None:
        """Points at a step, written before this returns. when: seconds since 1970, or None for
        now."""
        if self.writer is None:
            return
        for name, value in scalars.items():
            self.writer.add_scalar(tag(name), value, step, walltime=when)
        self.writer.flush()

    def add_lines(self, log: Sequence[Mapping]) -> None:
        """Points of a log whose lines have `iteration`, `when` and scalars."""
        for line in log:
            scalars = {
                name: value for name, value in line.items() if name not in ("iteration", "when")
            }
            self.add(line["iteration"], scalars, line.get("when"))

    def close(self) -> None:
        """Nothing is added after this."""
        if self.writer is not None:
            self.writer.close()
