"""Two small trainings, of heads and of a schedule: `python -m rapid_testing.trainings FOLDER`, also
by torchrun."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from devkit.base_folder import REPOSITORY
from devkit.comfy_process import import_comfy
from rapid_testing.texts import text
from training.config import TrainConfig, parse
from training.graph import Graph
from training.heads import train_heads
from training.job import Job
from training.processes import distributed, rank
from training.schedules import train_schedules

PROMPTS = [
    "flat red background",
    text("striped"),
    "grid green background",
    text("small"),
]
CORE = ("nodes_flux.py", "nodes_sd3.py")
BEGIN = "the trainings begin"
HEADS = (
    "--kind rapid+ --iterations 3 --prompts-per-update 3 --group 3 --width 16 --held-out 1 "
    "--speedups 1.5 2 --lr 0.01 --calibration 2 --plans 3 --longest-gap 2"
)
SCHEDULES = "--kind schedule --speedups 2 --calibration 3 --held-out 1 --plans 4"


def without_seconds(written: dict | str) -> dict | str:
    """Metadata or a card without measured seconds, which no two trainings have in common."""
    if isinstance(written, dict):
        return {name: value for name, value in written.items() if name != "measured_speedup"}
    lines = written.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("- measured_speedup"))


def small_graph(steps: int = 6) -> Graph:
    """The FLUX-like demo's example with few steps and 128 px; packs have to be loaded."""
    path = REPOSITORY / "example_workflows" / "api" / "demo_flux.json"
    nodes = json.loads(path.read_text(encoding="utf-8"))
    nodes["latent"]["inputs"].update(width=128, height=128)
    nodes["sample"]["inputs"].update(steps=steps)
    return Graph(nodes)


def config_of(flags: str) -> TrainConfig:
    """What train_policy makes of flags."""
    return parse(["--workflow", "-", "--prompts", "-", "--out", "-", *flags.split()])


def job_of(
    graph: Graph, folder: Path, flags: str, name: str = "policy", prompts: Sequence[str] = PROMPTS
) -> Job:
    """A training of these flags: its policy in the folder, its state in `folder / name`."""
    return Job(graph, prompts, config_of(flags), folder / name, folder / f"{name}.safetensors")


def train(graph: Graph, folder: Path) -> None:
    """Both trainings: `heads.safetensors` and `schedules.safetensors` with their cards, state
    beside them."""
    train_heads(job_of(graph, folder, HEADS, "heads"))
    train_schedules(job_of(graph, folder, SCHEDULES, "schedules"))


if __name__ == "__main__":
    with distributed(timedelta(minutes=5)):
        here = Path(sys.argv[1])
        host = import_comfy(here / f"base-{rank()}")
        for name in CORE:
            host.load_core_nodes(name)
        for pack in ("rapid", "rapid_demo"):
            host.load_pack(host.base / "custom_nodes" / pack)
        graph = small_graph()
        print(BEGIN, flush=True)
        train(graph, here)
