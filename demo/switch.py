"""Put a demo model of real drawings in the place of the one of drawn shapes: its weights, word table, VAE
and the prompts of its examples.

    python -m demo.switch sd3

What is left to do is printed. The Lumina-like models have a VAE of their own and stay as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from demo.pack.word_table import file_name
from demo.world import EMOJI, MODELS, World
from devkit.base_folder import REPOSITORY
from evaluation.subjects import FAMILIES, guidance_of

EXAMPLES = REPOSITORY / "example_workflows" / "api"
LEFT = """Left to do for {kind}, in this order:
- python3 dev.py bench and demo in small, and a look at the pictures
- python -m demo.evaluate --weights {weights} --json demo/models/logs/{kind}_evaluation.json{cfg}
- demo/fit.py --models {kind}: thresholds of the caches
- policies/demo-{kind}-* and benchmarks/policies: fitted on the old weights, to be made anew or taken away
- python -m devkit.templates, then dev.py test tests/browser/test_examples.py --pictures .
- docs/demo_{kind}.png, docs/comparison.png (dev.py demo), docs/results (python -m benchmarks.results)"""


def ask_for(kind: str, world: World, guidance: float, examples: Path) -> list[str]:
    """Give the example workflows of a kind a prompt of its world and the strength of guidance that its
    weights name; names of the changed ones."""
    changed = []
    for path in sorted(examples.glob("demo_*.json")):
        graph = json.loads(path.read_text(encoding="utf-8"))
        prompts = [
            node["inputs"] for node in graph.values() if node["class_type"] == "RAPIDDemoPrompt"
        ]
        mine = [inputs for inputs in prompts if inputs["model"] == kind and inputs["text"]]
        for inputs in mine:
            inputs["text"] = world.language.example
        for node in graph.values() if mine else ():
            if node["class_type"] == "FluxGuidance":
                node["inputs"]["guidance"] = guidance
        if mine:
            path.write_text(
                json.dumps(graph, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            changed.append(path.name)
    return changed


def switch(kind: str, world: World, models: Path = MODELS) -> Path:
    """Put the world's files of a kind into `models`; the weights. Raises `weights.WeightsError` and
    FileNotFoundError before anything is changed."""
    source = world.folder / "diffusion_models" / f"{kind}.safetensors"
    target = models / "diffusion_models" / source.name
    world.load_model(source)
    files = {source: target, source.with_name(file_name(kind)): target.with_name(file_name(kind))}
    for part in ("decoder", "encoder"):
        name = f"{FAMILIES[kind].vae}_{part}.safetensors"
        own = world.decoder.with_name(world.decoder.name.replace("decoder", part))
        files[own] = models / "vae_approx" / name
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: not there; the world has no {kind} to show yet"
        )
    for old, new in files.items():
        if old != new:
            shutil.copyfile(old, new)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(FAMILIES))
    args = parser.parse_args()
    weights = switch(args.model, EMOJI)
    for name in ask_for(args.model, EMOJI, guidance_of(weights), EXAMPLES):
        print(f"prompt of {name} changed")
    cfg = FAMILIES[args.model].cfg
    cfg = "" if cfg == 1 else f" --cfg {cfg:g}"
    print(LEFT.format(kind=args.model, weights=weights.relative_to(REPOSITORY), cfg=cfg))


if __name__ == "__main__":
    main()
