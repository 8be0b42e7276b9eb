"""Two small trainings, of heads and of a plan: `python -m rapid_testing.trainings FOLDER`, also by
torchrun."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from datetime import timedelta
from pathlib import Path

from devkit.base_folder import REPOSITORY
from devkit.comfy_process import Comfy, import_comfy
from training.graph import Graph
from training.heads import train_heads
from training.plans import train_plans
from training.processes import rank, several
from training.train_policy import checked, parser

PROMPTS = [
    "flat red background",
    "flat blue background, big red striped circle center",
    "grid green background",
    "flat yellow background, small blue plain cross top right",
]
CORE = ("nodes_flux.py", "nodes_sd3.py")
BEGIN = "the trainings begin"
HEADS = (
    "--kind rapid+ --iterations 3 --prompts-per-update 3 --group 3 --width 16 --held-out 1 --speedups 1.5 2 "
    "--lr 0.01 --calibration 2 --plans 3 --oracle 0"
)
PLANS = "--kind schedule --speedups 2 --calibration 3 --held-out 1 --oracle 1 --plans 4"


class Nodes:
    """ComfyUI of this process, as a graph wants it."""

    def __init__(self, comfy: Comfy):
        self.comfy = comfy

    def run(self, class_type: str, inputs: dict) -> tuple:
        """Outputs of a node."""
        return self.comfy.run_node(class_type, **inputs)


def unclocked(found: dict | str) -> dict | str:
    """Metadata or a card without what the clock says, which no two trainings have in common."""
    if isinstance(found, dict):
        return {name: value for name, value in found.items() if name != "measured_speedup"}
    return "".join(
        line
        for line in found.splitlines(keepends=True)
        if not line.startswith("- measured_speedup")
    )


def small_graph(comfy: Comfy) -> Graph:
    """The FLUX-like demo's example with 6 steps and 128 px; packs have to be loaded."""
    path = REPOSITORY / "example_workflows" / "api" / "demo_flux.json"
    nodes = json.loads(path.read_text(encoding="utf-8"))
    nodes["latent"]["inputs"].update(width=128, height=128)
    nodes["sample"]["inputs"].update(steps=6)
    return Graph(nodes, Nodes(comfy))


def arguments(flags: str) -> Namespace:
    """What train_policy makes of flags."""
    return checked(
        parser().parse_args(["--workflow", "-", "--prompts", "-", "--out", "-", *flags.split()])
    )


def train(graph: Graph, folder: Path) -> None:
    """Both trainings: `heads.safetensors` and `plans.safetensors` with their cards, state beside
    them."""
    train_heads(
        graph,
        PROMPTS,
        arguments(HEADS),
        folder / "heads",
        folder / "heads.safetensors",
        "a command",
    )
    train_plans(
        graph,
        PROMPTS,
        arguments(PLANS),
        folder / "plans",
        folder / "plans.safetensors",
        "a command",
    )


if __name__ == "__main__":
    with several(timedelta(minutes=5)):
        here = Path(sys.argv[1])
        host = import_comfy(here / f"base-{rank()}")
        for name in CORE:
            host.load_core_nodes(name)
        for pack in ("rapid", "rapid_demo"):
            host.load_pack(host.base / "custom_nodes" / pack)
        found = small_graph(host)
        print(BEGIN, flush=True)
        train(found, here)
