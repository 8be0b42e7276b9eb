"""Sample a training to look at it: PNG of pictures with their prompts, by the training's own twin, 28 Euler steps.

python -m demo.emoji.look --weights RUN/flux.safetensors --png look.png --size 128 --prompts 12
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from demo.demo_model import euler
from demo.emoji import scenes
from demo.emoji.demo_model import WEIGHTS, DemoModel, load
from demo.emoji.latents import MAP_FILE
from demo.latents import LatentMap
from demo.pack.emoji_words import PAD, bag
from evaluation.subjects import guidance_of

CAPTION = 66  # px below each picture


class Guided(torch.nn.Module):
    """Velocity with classifier-free guidance of the emoji model; `demo_model.euler` samples it with cfg 1."""

    def __init__(self, model: DemoModel, cfg: float):
        super().__init__()
        self.model, self.cfg = model, cfg

    def forward(self, x: Tensor, t: Tensor, counts: Tensor, guidance: Tensor) -> Tensor:
        v = self.model(x, t, counts, guidance)
        if self.cfg == 1.0:
            return v
        empty = torch.zeros_like(counts)
        empty[..., PAD] = 1
        v0 = self.model(x, t, empty, guidance)
        return v0 + self.cfg * (v - v0)


def noise(number: int, side: int, seed: int) -> Tensor:
    """Noise of each prompt by its place in the list alone."""
    rows = [torch.Generator().manual_seed(2_000_000 + 100_003 * seed + i) for i in range(number)]
    return torch.stack([torch.randn(16, side, side, generator=generator) for generator in rows])


def sheet(pictures: Tensor, prompts: list[str], columns: int = 6) -> Image.Image:
    """Pictures (B, 3, H, W) with their prompts below."""
    height, width = pictures.shape[-2:]
    rows = -(-len(prompts) // columns)
    out = Image.new("RGB", (columns * (width + 6), rows * (height + CAPTION)), "white")
    pen = ImageDraw.Draw(out)
    for i, prompt in enumerate(prompts):
        left, top = i % columns * (width + 6), i // columns * (height + CAPTION)
        pixels = (pictures[i].movedim(0, -1) * 255).round().byte().contiguous().numpy()
        out.paste(Image.fromarray(pixels), (left, top))
        for line, phrase in enumerate(prompt.split(", ")):
            pen.text((left + 2, top + height + 1 + 12 * line), phrase, fill="black")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--png", required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--split", choices=scenes.SPLITS, default="dev")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.weights)
    generator = torch.Generator().manual_seed(
        1_000_000 * (1 + scenes.SPLITS.index(args.split)) + args.seed
    )
    prompts = scenes.sample(args.prompts, generator, args.split).prompts()
    side = args.size // 8
    latents = []
    for rows in torch.arange(args.prompts).split(8):
        counts = bag([prompts[row] for row in rows])
        latents.append(
            euler(
                Guided(model, args.cfg),
                noise(args.prompts, side, args.seed)[rows],
                counts,
                args.steps,
                guidance=guidance_of(args.weights),
            )
        )
    sheet(LatentMap.load(MAP_FILE).decode(torch.cat(latents)), prompts).save(args.png)


if __name__ == "__main__":
    main()
