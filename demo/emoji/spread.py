"""How much work each picture needs: evaluations that a second-order solver takes to come within 40 dB of the ODE.

    python -m demo.emoji.spread --world emoji --weights demo/models/emoji/diffusion_models/flux.safetensors --json FILE
    python -m demo.emoji.spread --world shapes --weights demo/models/diffusion_models/flux.safetensors --json FILE

Policies that look at the picture live on the spread over prompts of this number. The ODE's solution is that of 101
steps of Heun's method; the solver is Adams-Bashforth of order 2 on the shifted grid. Pictures are decoded by the
latent map's own inverse, which costs nothing and keeps differences as they are.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import demo.demo_model
import demo.emoji.demo_model
import demo.pack.words
from demo import scenes as shapes
from demo.emoji import scenes as emoji
from demo.emoji.latents import MAP_FILE
from demo.emoji.look import noise
from demo.latents import MAP_FILE as OLD_MAP
from demo.latents import LatentMap
from demo.pack.emoji_words import bag

SHIFT = math.e**1.15  # of the grid, as the hosts' model families have it
LEAST, MOST = 3, 40  # evaluations tried

Velocity = Callable[[Tensor, float], Tensor]


def grid(steps: int) -> list[float]:
    """Noise levels from 1 to 0."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (SHIFT * u / (1 + (SHIFT - 1) * u)).tolist()


def heun(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Latents by Heun's method; two evaluations a step, one in the last."""
    sigmas = grid(steps)
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, now)
        if then > 0:
            v = (v + velocity(x + (then - now) * v, then)) / 2
        x = x + (then - now) * v
    return x


def adams(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Latents by Adams-Bashforth of order 2 with unequal steps; one evaluation a step."""
    sigmas, before, width = grid(steps), None, 0.0
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, now)
        step = then - now
        slope = v if before is None else v + (step / (2 * width)) * (v - before)
        x, before, width = x + step * slope, v, step
    return x


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of each picture pair (B,)."""
    return -10 * (a - b).square().flatten(1).mean(1).clamp_min(1e-10).log10()


def world(
    name: str, weights: Path, number: int, split: str
) -> tuple[torch.nn.Module, list[str], Callable, LatentMap]:
    """Model, prompts, their word counts' function and the latent map of the drawn shapes or of the emoji."""
    generator = torch.Generator().manual_seed(3_000_000)
    if name == "emoji":
        model = demo.emoji.demo_model.load(weights)
        return (
            model,
            emoji.sample(number, generator, split).prompts(),
            bag,
            LatentMap.load(MAP_FILE),
        )
    model = demo.demo_model.DemoModel(weights.stem)
    demo.demo_model.load_weights(model, weights)
    prompts = shapes.sample(number, generator, split).prompts()
    return model, prompts, demo.pack.words.bag, LatentMap.load(OLD_MAP)


def needed(
    velocity: Velocity, start: Tensor, decode: Callable[[Tensor], Tensor], goal: float
) -> int:
    """Fewest evaluations of `adams` that bring one picture within `goal` dB of the ODE, by bisection."""
    truth = decode(heun(velocity, start, 101))
    low, high = LEAST, MOST
    while low < high:
        middle = (low + high) // 2
        if float(psnr(decode(adams(velocity, start, middle)), truth)) >= goal:
            high = middle
        else:
            low = middle + 1
    return low


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict:
    """Evaluations needed by each prompt, and their spread."""
    model, prompts, count, latents = world(args.world, args.weights, args.prompts, args.split)
    start = noise(args.prompts, args.size // 8, 0)
    counts = count(prompts)
    numbers = []
    for row in tqdm(range(args.prompts), desc="spread", unit="prompt", mininterval=30):

        def velocity(x: Tensor, sigma: float, row: int = row) -> Tensor:
            return model(x, torch.full((1,), sigma), counts[row : row + 1], torch.ones(1))

        numbers.append(needed(velocity, start[row : row + 1], latents.decode, args.goal))
    found = torch.tensor(numbers, dtype=torch.float)
    quantiles = found.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    order = found.argsort().tolist()
    return {
        "settings": {
            k: v.name if isinstance(v, Path) else v for k, v in vars(args).items() if k != "json"
        },
        "mean": round(float(found.mean()), 2),
        "deviation": round(float(found.std()), 2),
        "quantiles_10_50_90": quantiles,
        "least": [prompts[row] for row in order[:3]],
        "most": [prompts[row] for row in order[-3:]],
        "evaluations": numbers,
    }


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--world", choices=("emoji", "shapes"), default="emoji")
    parser.add_argument("--weights", type=Path, default=demo.emoji.demo_model.WEIGHTS)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--split", choices=emoji.SPLITS, default="test")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--goal", type=float, default=40.0, help="dB")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = json.dumps(measure(args), indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
