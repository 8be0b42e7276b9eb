"""What sampling is like on demo models: how smooth it is, and how much work each picture needs.

    python -m demo.trajectories --weights demo/models/diffusion_models/flux.safetensors --prompts 16

Smooth: the relative change of the velocity from step to step of Euler's method. Work: the fewest evaluations
with which a second-order solver comes within 40 dB of the ODE's solution. Policies that look at the picture
live on the spread over prompts of the latter. The solution is that of Heun's method, the solver is
Adams-Bashforth of order 2, all on the shifted grid. Pictures are decoded by the latent map's own inverse,
which costs nothing and keeps differences as they are. No ComfyUI. What each prompt needed is kept in `--json`
and not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from demo.evaluate import Velocity
from demo.world import SPLITS, World, world_of
from evaluation.subjects import guidance_of

SHIFT = math.e**1.15  # of the grid, as the hosts' model families have it
LEAST, MOST = 3, 40  # evaluations tried
STEPS = 28
SEED = 3_000_000  # of the prompts
NOISE = 2_000_000  # seed of the first prompt's noise

Slope = Callable[[Tensor, float], Tensor]


def grid(steps: int) -> list[float]:
    """Noise levels from 1 to 0."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (SHIFT * u / (1 + (SHIFT - 1) * u)).tolist()


def euler(velocity: Slope, x: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """Latents of one picture by Euler's method, and the relative change of the velocity before each step but
    the first."""
    sigmas = grid(steps)
    before: Tensor | None = None
    changes = []
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, now)
        if before is not None:
            changes.append(float((v - before).norm() / before.norm()))
        x = x + (then - now) * v
        before = v
    return x, changes


def heun(velocity: Slope, x: Tensor, steps: int) -> Tensor:
    """Latents by Heun's method; two evaluations a step, one in the last."""
    sigmas = grid(steps)
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, now)
        if then > 0:
            v = (v + velocity(x + (then - now) * v, then)) / 2
        x = x + (then - now) * v
    return x


def adams(velocity: Slope, x: Tensor, steps: int) -> Tensor:
    """Latents by Adams-Bashforth of order 2 with unequal steps; one evaluation a step."""
    sigmas = grid(steps)
    before: Tensor | None = None
    width = 0.0
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, now)
        step = then - now
        slope = v if before is None else v + (step / (2 * width)) * (v - before)
        x = x + step * slope
        before = v
        width = step
    return x


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB."""
    return float(-10 * (a - b).square().mean().clamp_min(1e-10).log10())


def needed(
    velocity: Slope,
    start: Tensor,
    decode: Callable[[Tensor], Tensor],
    goal: float,
    truth: int = 101,
) -> int:
    """Fewest evaluations of `adams`, at most `MOST`, that bring one picture within `goal` dB of `truth` steps of
    `heun`, by bisection."""
    solution = decode(heun(velocity, start, truth))
    low = LEAST
    high = MOST
    while low < high:
        middle = (low + high) // 2
        if psnr(decode(adams(velocity, start, middle)), solution) >= goal:
            high = middle
        else:
            low = middle + 1
    return low


def noise(number: int, side: int) -> Tensor:
    """Noise (1, 16, side, side) of a prompt, by its place in the list alone."""
    return torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(NOISE + number))


def prompts_of(world: World, number: int, split: str) -> list[str]:
    """The first so many prompts of a split; a longer list begins with the shorter one."""
    return world.prompts(number, split, SEED).prompts()


@torch.no_grad()
def picture(args: argparse.Namespace, world: World, model: Any, number: int, prompt: str) -> dict:
    """Figures of one prompt."""
    counts = world.bag([prompt])
    velocity = Velocity(model, counts, args.cfg, guidance_of(args.weights))

    def slope(x: Tensor, sigma: float) -> Tensor:
        return velocity(x, torch.full((1,), sigma))

    start = noise(number, args.size // 8)
    _, changes = euler(slope, start, STEPS)
    found = needed(slope, start, world.latents().decode, args.goal, args.truth)
    return {"prompt": prompt, "needed": found, "changes": [round(c, 4) for c in changes]}


def summary(pictures: Sequence[dict]) -> dict[str, Any]:
    """Mean changes by step, and the spread of what pictures need."""
    work = torch.tensor([p["needed"] for p in pictures], dtype=torch.float)
    changes = torch.tensor([p["changes"] for p in pictures])
    order = work.argsort().tolist()
    return {
        "prompts": len(pictures),
        "velocity_change": [round(c, 4) for c in changes.mean(0).tolist()],
        "needed_mean": round(float(work.mean()), 2),
        "needed_deviation": round(float(work.std()), 2) if len(work) > 1 else None,
        "needed_10_50_90": work.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist(),
        "least": [pictures[row]["prompt"] for row in order[:3]],
        "most": [pictures[row]["prompt"] for row in order[-3:]],
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Figures of all prompts; those in `--json` are taken from there."""
    world = world_of(args.weights)
    model = world.load_model(args.weights).requires_grad_(False)
    names = ("split", "size", "goal", "cfg", "truth")
    settings = {
        "model": model.kind,
        "world": world.name,
        "weights": hashlib.sha256(args.weights.read_bytes()).hexdigest(),
        "guidance": guidance_of(args.weights),
        **{name: getattr(args, name) for name in names},
    }
    pictures: list[dict] = []
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if before["settings"] != settings:
            raise SystemExit(
                f"{args.json} holds figures of other weights or settings; name another file"
            )
        pictures = before["pictures"]
    result: dict[str, Any] = {}
    prompts = prompts_of(world, args.prompts, args.split)
    rows = range(len(pictures), args.prompts)
    for number in tqdm(rows, desc=f"{world.name} {model.kind}", unit="prompt", mininterval=10):
        pictures.append(picture(args, world, model, number, prompts[number]))
        result = {"settings": settings, **summary(pictures), "pictures": pictures}
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result or {"settings": settings, **summary(pictures), "pictures": pictures}


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--weights", type=Path, required=True, help="exported, words beside them")
    flags.add_argument("--prompts", type=int, default=16)
    flags.add_argument("--split", choices=SPLITS, default="test")
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--cfg", type=float, default=1.0)
    flags.add_argument("--goal", type=float, default=40.0, help="dB")
    flags.add_argument("--truth", type=int, default=101, help="steps of Heun's method")
    flags.add_argument("--json", type=Path, help="file for the figures; goes on from what is there")
    return flags


def main() -> None:
    torch.set_num_threads(1)
    result = measure(parser().parse_args())
    print(json.dumps({k: v for k, v in result.items() if k != "pictures"}, indent=1))


if __name__ == "__main__":
    main()
