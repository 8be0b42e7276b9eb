"""How well the emoji world's model draws its prompts. No ComfyUI.

    python -m demo.emoji.evaluate --weights demo/models/emoji/diffusion_models/flux.safetensors --size 256 --json FILE

Held-out prompts are sampled by Euler's method and decoded by TAESD, or by the latent map's own inverse while there is
no decoder. Objects are judged in their places (`judge`), backgrounds by rule (`rules`); both are first tried on true
scenes of the same prompts, which gives the baseline.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from demo.demo_model import euler
from demo.emoji import judge, rules, scenes
from demo.emoji.autoencoder import FOLDER
from demo.emoji.demo_model import WEIGHTS, load
from demo.emoji.latents import MAP_FILE
from demo.emoji.look import Guided, noise, sheet
from demo.emoji.scenes import Scenes
from demo.latents import LatentMap
from demo.pack.emoji_words import OBJECTS, SIZES, bag
from demo.taesd import load_decoder

CHUNK = 8


class Watched(torch.nn.Module):
    """A model that remembers how much its velocity changes from call to call, relative to its length."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model, self.before, self.changes = model, None, []

    def forward(self, x: Tensor, t: Tensor, counts: Tensor, guidance: Tensor) -> Tensor:
        v = self.model(x, t, counts, guidance)
        if self.before is not None:
            change = (v - self.before).flatten(1).norm(dim=1) / self.before.flatten(1).norm(dim=1)
            self.changes.append(float(change.mean()))
        self.before = v
        return v


def decoder(kind: str) -> Callable[[Tensor], Tensor]:
    """Latents to pictures: `taesd`, or `linear` for the map's own inverse."""
    if kind == "linear":
        return LatentMap.load(MAP_FILE).decode
    network = load_decoder(FOLDER / "taef1_decoder.safetensors")
    return lambda latents: torch.cat([network(row[None]).clamp(0, 1) for row in latents])


def share(right: Tensor) -> float | None:
    """Mean of a mask, None where there is nothing to count."""
    return round(float(right.float().mean()), 4) if len(right) else None


def score(pictures: Tensor, chosen: Scenes, critic: judge.Judge) -> dict:
    """Shares of objects and backgrounds that are as the prompt says; `picture`: all of a picture is right."""
    named, index = judge.objects(critic, pictures, chosen)
    row, k = index.unbind(1)
    right = named == chosen.object[row, k]
    ground = rules.backgrounds(pictures, chosen) == chosen.ground_colour
    wrong = torch.zeros(len(chosen)).index_add(0, row, (~right).float())
    picture = (wrong == 0) & ground
    size = chosen.size[row, k]
    missed = sorted({OBJECTS[i] for i in chosen.object[row, k][~right].tolist()})
    return {
        "pictures": len(chosen),
        "objects": len(row),
        "object": share(right),
        "object_by_size": {name: share(right[size == i]) for i, name in enumerate(SIZES)},
        "none_seen": share(named == judge.NONE),
        "background": share(ground),
        "picture": share(picture),
        "more_than_one_wrong": share(wrong > 1),
        "by_count": {int(n): share(picture[chosen.count == n]) for n in chosen.count.unique()},
        "missed": missed,
    }


@torch.no_grad()
def evaluate(args: argparse.Namespace) -> dict:
    """All figures of one model, as written to `--json`."""
    # Seeds of the three splits never meet, nor those of the trainings, which start at 0.
    generator = torch.Generator().manual_seed(
        1_000_000 * (1 + scenes.SPLITS.index(args.split)) + args.seed
    )
    chosen = scenes.sample(args.prompts, generator, args.split)
    prompts, critic, decode = chosen.prompts(), judge.load(args.judge), decoder(args.decoder)
    true = torch.cat(
        [
            scenes.draw(chosen.take(rows), args.size, args.size, generator)
            for rows in torch.arange(len(chosen)).split(8)
        ]
    )
    baseline = score(true, chosen, critic)
    print("true scenes:", json.dumps(baseline), flush=True)
    start = time.monotonic()
    model = load(args.weights)
    start_noise = noise(len(prompts), args.size // 8, args.seed)
    pictures, changes = [], []
    for rows in tqdm(
        torch.arange(len(prompts)).split(CHUNK), desc="sample", unit="chunk", mininterval=30
    ):
        watched = Watched(Guided(model, args.cfg))
        counts = bag([prompts[row] for row in rows])
        pictures.append(decode(euler(watched, start_noise[rows], counts, args.steps)))
        changes.append(watched.changes)
    found = torch.cat(pictures)
    if args.png:
        sheet(found[:24], prompts[:24]).save(args.png)
    settings = {k: str(Path(v).name) if isinstance(v, Path) else v for k, v in vars(args).items()}
    settings = {k: v for k, v in settings.items() if k not in ("json", "png", "threads")}
    return {
        "settings": settings,
        "true_scenes": baseline,
        "model": score(found, chosen, critic),
        "velocity_change": [round(float(c), 4) for c in torch.tensor(changes).mean(0)],
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--weights",
        type=Path,
        default=WEIGHTS,
        help="exported weights, their word table beside them",
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--split", choices=scenes.SPLITS, default="test")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--decoder", choices=("taesd", "linear"), default="taesd")
    parser.add_argument("--judge", type=Path, default=judge.WEIGHTS)
    parser.add_argument("--png", help="PNG of the first 24 pictures")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = json.dumps(evaluate(args), indent=1)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
