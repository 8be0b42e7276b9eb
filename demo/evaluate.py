"""How well a demo model draws its prompts, and how rough its sampling trajectories are. No ComfyUI.

    python -m demo.evaluate --weights demo/models/diffusion_models/flux.safetensors --grid flux.png

Held-out prompts of the model's world are sampled by Euler's method, decoded by TAESD and scored as that
world does it (`demo.world`), which is first tried on true scenes of the same prompts: the baseline.
`--fid` compares with true scenes by the features of a judge, better not of the one that scores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from demo.demo_model import euler
from demo.scene_judge import SceneJudge
from demo.world import SPLITS, World, world_of
from evaluation import fid
from evaluation.rows import psnr
from evaluation.subjects import guidance_of

CHUNK = 8
SHIFT = math.e**1.15  # of the sampling grid, as in `demo_model.euler`


@dataclass
class Velocity:
    """The guided velocity of a model as a function of (x, t); remembers how much it changes from
    call to call."""

    model: nn.Module
    counts: Tensor  # (B, L, V)
    cfg: float
    guidance: float
    before: Tensor | None = None
    changes: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, *_: Tensor) -> Tensor:
        g = torch.full((len(x),), self.guidance, device=x.device)
        v = self._run(x, t, self.counts, g)
        if self.cfg != 1.0:
            empty = torch.zeros_like(self.counts)
            empty[..., -1] = 1
            v0 = self._run(x, t, empty, g)
            v = v0 + self.cfg * (v - v0)
        if self.before is not None:
            change = (v - self.before).flatten(1).norm(dim=1) / self.before.flatten(1).norm(dim=1)
            self.changes.append(float(change.mean()))
        self.before = v
        return v

    def _run(self, x: Tensor, t: Tensor, counts: Tensor, g: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        return self.model(x.to(dtype), t, counts.to(dtype), g).float()


@torch.no_grad()
def heun(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Latents by Heun's method on the grid of `demo_model.euler`; two evaluations a step, one in
    the last."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sigmas = (SHIFT * u / (1 + (SHIFT - 1) * u)).tolist()
    x = noise
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, torch.full((len(x),), now, device=x.device))
        if then > 0:
            ahead = x + (then - now) * v
            v = (v + velocity(ahead, torch.full((len(x),), then, device=x.device))) / 2
        x = x + (then - now) * v
    return x


class Sampler:
    """Pictures of prompts by one model; the noise of a prompt depends on the seed and its place in
    the list alone."""

    def __init__(self, args: argparse.Namespace, world: World):
        self.args = args
        self.world = world
        self.device = torch.device(args.device)
        model = world.load_model(Path(args.weights)).requires_grad_(False)
        if args.model not in (None, model.kind):
            raise SystemExit(f"--model {args.model}: {args.weights} is a {model.kind}-like model")
        self.model = model.to(self.device, getattr(torch, args.dtype))
        if args.decoder == "linear":
            self.decoder = world.latents(self.device).decode
        else:
            self.decoder = world.load_decoder().to(self.device)
        self.changes: list[list[float]] = []

    def noise(self, start: int, number: int) -> Tensor:
        side = self.args.size // 8
        seeds = [2_000_000 + 100_003 * self.args.seed + i for i in range(start, start + number)]
        rows = [
            torch.randn(16, side, side, generator=torch.Generator().manual_seed(s)) for s in seeds
        ]
        return torch.stack(rows).to(self.device)

    def velocity(self, prompts: list[str]) -> Velocity:
        counts = self.world.bag(prompts).to(self.device)
        return Velocity(self.model, counts, self.args.cfg, self.args.guidance)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, h, w) -> (B, 3, H, W) in 0 .. 1."""
        return torch.cat([self.decoder(row[None]).clamp(0, 1) for row in latents]).cpu()

    def euler(self, prompts: list[str]) -> Tensor:
        """Pictures (B, 3, H, W) by `--steps` Euler steps."""
        pictures = []
        for start in tqdm(
            range(0, len(prompts), CHUNK), desc="sample", unit="chunk", mininterval=5
        ):
            chunk = prompts[start : start + CHUNK]
            velocity = self.velocity(chunk)
            x = euler(velocity, self.noise(start, len(chunk)), velocity.counts, self.args.steps)
            pictures.append(self.decode(x))
            self.changes.append(velocity.changes)
        return torch.cat(pictures)

    def converged(self, prompts: list[str]) -> Tensor:
        """Pictures of the ODE's solution: 101 Heun steps, 201 evaluations."""
        pictures = []
        for start in tqdm(
            range(0, len(prompts), CHUNK), desc="converged", unit="chunk", mininterval=5
        ):
            chunk = prompts[start : start + CHUNK]
            pictures.append(
                self.decode(heun(self.velocity(chunk), self.noise(start, len(chunk)), 101))
            )
        return torch.cat(pictures)


def grid(pictures: Tensor, prompts: list[str], path: Path, columns: int = 6) -> None:
    """PNG of up to 24 pictures with their prompts below."""
    from PIL import Image, ImageDraw  # only the grid needs it

    height, width = pictures.shape[-2:]
    cell = height + 86
    number = min(24, len(prompts))
    sheet = Image.new("RGB", (columns * (width + 6), -(-number // columns) * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(number):
        left = i % columns * (width + 6)
        top = i // columns * cell
        pixels = (pictures[i].movedim(0, -1) * 255).round().byte().contiguous()
        sheet.paste(
            Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist())), (left, top)
        )
        for line, phrase in enumerate(prompts[i].split(", ")):
            pen.text((left + 2, top + height + 1 + 12 * line), phrase[: width // 6], fill="black")
    sheet.save(path)


def evaluate(args: argparse.Namespace) -> dict:
    """All figures of one model, as written to `--json`."""
    # Seeds of the three splits never meet, nor those of the trainings, which start at 0.
    generator = torch.Generator().manual_seed(
        1_000_000 * (1 + SPLITS.index(args.split)) + args.seed
    )
    world = world_of(Path(args.weights))
    if args.guidance is None:
        args.guidance = guidance_of(Path(args.weights))
    chosen = world.sample(args.prompts, generator, args.split)
    prompts = chosen.prompts()
    judge = Path(args.judge) if args.judge else world.judge
    critic = world.load_judge(judge)
    other = SceneJudge(world, chosen, world.load_judge(Path(args.fid))) if args.fid else None
    true = world.draw(chosen, args.size, args.size, generator)
    baseline = world.score(true, chosen, critic)
    print(
        "true scenes:",
        json.dumps({k: v for k, v in baseline.items() if k != "by_count"}),
        flush=True,
    )
    start = time.monotonic()
    sampler = Sampler(args, world)
    pictures = sampler.euler(prompts)
    settings = {k: v for k, v in vars(args).items() if k not in ("grid", "json", "threads")}
    settings |= {"weights": Path(args.weights).name, "judge": judge.name}
    settings |= {"model": sampler.model.kind, "world": world.name}
    result: dict[str, Any] = {
        "settings": settings,
        "true_scenes": baseline,
        "model": world.score(pictures, chosen, critic),
    }
    if other is not None:
        drawn = torch.cat([other.features(picture) for picture in pictures])
        result["fid"] = round(fid.distance(drawn, other.true_features(args.size)), 4)
    changes = torch.tensor(sampler.changes).mean(0)
    result["velocity_change"] = [round(float(c), 4) for c in changes]
    if args.ode:
        converged = sampler.converged(prompts[: args.ode])
        nearness = list(map(psnr, pictures[: args.ode], converged))
        result["psnr_to_ode"] = {
            "mean": round(mean(nearness), 2),
            "worst": round(min(nearness), 2),
            "prompts": args.ode,
            "evaluations": 201,
        }
    if args.grid:
        grid(pictures, prompts, Path(args.grid))
    result["seconds"] = round(time.monotonic() - start, 1)
    return result


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", help="what the weights have to be; they say it themselves")
    parser.add_argument(
        "--weights", required=True, help="exported weights, their word table beside them"
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument(
        "--guidance",
        type=float,
        help="of a FLUX-like model; the one that its file names where not given",
    )
    parser.add_argument(
        "--ode", type=int, default=16, help="prompts compared with the converged ODE; 0 for none"
    )
    parser.add_argument("--decoder", choices=("taesd", "linear"), default="taesd")
    parser.add_argument("--judge", help="that scores, where it is not the world's")
    parser.add_argument(
        "--fid", help="judge by whose features pictures and true scenes are compared"
    )
    parser.add_argument("--grid", help="PNG of the first 24 pictures")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = json.dumps(evaluate(args), indent=1)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
