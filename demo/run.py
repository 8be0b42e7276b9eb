"""The demo: the example workflows through ComfyUI's API, in full and with RAPID Accelerate as it
comes, then the table from one run.

Called by `python3 dev.py demo`; writes pictures, `comparison.png` and `report.json` into --out.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from demo.measure import Measurement
from demo.world import weights_of, world_of
from devkit.base_folder import REPOSITORY
from devkit.client import Client
from devkit.server import ComfyServer
from evaluation.rows import Row, markdown, write
from evaluation.subjects import FAMILIES

WORKFLOWS = REPOSITORY / "example_workflows" / "api"
CAPTION = 56  # pixels above each pair
FONT = 14  # pixels
MODES = {"full": "off", "rapid": "speed"}  # of the node, by names of pictures


def graph_for(kind: str, prompt: str, seed: int, mode: str, prefix: str) -> dict:
    """The example workflow of a demo model with this prompt and without a policy file; mode "off"
    computes all in full."""
    graph = copy.deepcopy(json.loads((WORKFLOWS / f"demo_{kind}.json").read_text(encoding="utf-8")))
    graph["positive"]["inputs"]["text"] = prompt
    graph["sample"]["inputs"]["seed"] = seed
    graph["accelerate"]["inputs"].update(mode=mode, policy_file="none")
    graph["save"]["inputs"]["filename_prefix"] = prefix
    return graph


@dataclass(frozen=True)
class Drawn:
    """A picture that a server drew."""

    path: Path
    seconds: float | None
    """Of its sampling, as RAPID Report says it."""

    def caption(self, name: str) -> str:
        """Its name, with its seconds."""
        return name if self.seconds is None else f"{name}, {self.seconds:.1f} s"


Pair = tuple[str, Drawn, Drawn]
"""A prompt, its full picture and the accelerated one."""


def draw(client: Client, kind: str, texts: list[str], out: Path) -> list[Pair]:
    """Post each prompt in full and accelerated."""
    pairs: list[Pair] = []
    for seed, text in enumerate(texts):
        drawn = []
        for name, mode in MODES.items():
            start = time.perf_counter()
            outputs = client.run(graph_for(kind, text, seed, mode, f"{kind}_{seed}_{name}"))
            report = outputs.get("report", {})
            few = (report.get("rapid_summary") or [{}])[0]
            path = client.save_images(outputs, out / "pictures")[0]
            drawn.append(Drawn(path, few.get("seconds")))
            summary = ", ".join(report.get("text", [""])[0].splitlines()[1:3])
            print(f"{kind} {name}: {time.perf_counter() - start:.1f} s  {summary}")
        full, fast = drawn
        pairs.append((text, full, fast))
    return pairs


def comparison(pairs: list[Pair], path: Path, columns: int = 2) -> None:
    """Pairs of pictures under their prompts; `columns` pairs side by side."""
    with Image.open(pairs[0][1].path) as first:
        width, height = first.size
    lines = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * (2 * width + 24) - 16, lines * (height + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(FONT)
    for i, (text, full, fast) in enumerate(pairs):
        left = (i % columns) * (2 * width + 24)
        top = i // columns * (height + CAPTION)
        caption = textwrap.wrap(text, 2 * width // (FONT // 2))[:2]
        pen.text((left + 2, top + 2), "\n".join([*caption, full.caption("full")]), fill="black")
        below = "\n" * len(caption) + fast.caption("RAPID")
        pen.text((left + width + 10, top + 2), below, fill="black")
        for drawn, at in ((full, left), (fast, left + width + 8)):
            with Image.open(drawn.path) as picture:
                sheet.paste(picture.convert("RGB"), (at, top + CAPTION))
    sheet.save(path)


def machine(tree: Path) -> dict:
    """What the figures were measured on."""
    version = (tree / "comfyui_version.py").read_text(encoding="utf-8").split('"')[1]
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU"
    )
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "comfyui": version,
    }


def measure(base: Path, number: int) -> list[Row]:
    """The table, from ComfyUI in this process: float pictures and seconds of the sampling loop."""
    from devkit.comfy_process import load_everything

    comfy = load_everything(base)
    rows: list[Row] = []
    for kind in FAMILIES:
        with torch.inference_mode():
            rows += Measurement(comfy, kind, number).rows()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument("--host-tree", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = []
    print("starting ComfyUI ...", flush=True)
    with ComfyServer(args.host_tree, args.base) as server:
        shown = min(args.prompts, 4)
        # Other prompts for each model, so that nothing is seen twice.
        for number, kind in enumerate(FAMILIES):
            texts = world_of(weights_of(kind)).prompts((number + 1) * shown).prompts()
            pairs += draw(server.client, kind, texts[number * shown :], args.out)
    comparison(pairs, args.out / "comparison.png")
    rows = measure(args.base, args.prompts)
    write(args.out / "report.json", rows, machine(args.host_tree))
    print(markdown(rows))
    print(f"pictures: {args.out / 'comparison.png'}; figures: {args.out / 'report.json'}")


if __name__ == "__main__":
    main()
