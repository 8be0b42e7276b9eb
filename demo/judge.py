"""A small CNN that names the shape in a crop of an object's region. One scores pictures and trains
nothing; another, of other seed and width, trains policies and scores nothing (`critic`).

    python -m demo.judge --out demo/models/judge.safetensors --seed 0 --width 24
    python -m demo.judge --out demo/models/judge_training.safetensors --seed 1 --width 16

Trained on true scenes, on what the linear inverse of the latent map makes of them, and on what the
TAESD decoder makes of them, so that blur is no surprise. The class after the shapes is "none": a
place without an object.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from demo import scenes, weights
from demo.latents import LatentMap
from demo.pack.words import MAX_OBJECTS, PLACES, SHAPES
from demo.scenes import Scenes
from demo.taesd import load_decoder

SIDE = 48
BASE = 128  # px: larger pictures are averaged down to it
MARGIN = 1.25  # half side of a crop in radii
NONE = len(SHAPES)
WEIGHTS = Path(__file__).parent / "models" / "judge.safetensors"


class Judge(nn.Module):
    """(N, 3, 48, 48) in 0 .. 1 -> logits (N, 6) over the shapes and "none"."""

    def __init__(self, width: int = 24):
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.GroupNorm(4, n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(9 * widths[-1], len(SHAPES) + 1)

    def features(self, crops: Tensor) -> Tensor:
        """(N, 3, 48, 48) in 0 .. 1 -> (N, 4 * width, 3, 3)."""
        # Contrast, not colour, tells a shape: each crop is centred and scaled.
        x = crops - crops.mean((2, 3), keepdim=True)
        return self.layers(x / x.std((1, 2, 3), keepdim=True).clamp_min(0.02))

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.features(crops).flatten(1))


@dataclass(frozen=True)
class Regions:
    """N square regions of pictures: their row, centre (N, 2) as (x, y) in sides, half side in
    shorter sides."""

    row: Tensor
    centre: Tensor
    half: Tensor

    @classmethod
    def of_objects(cls, chosen: Scenes) -> tuple[Regions, Tensor]:
        """The regions of all objects, and the (row, object) index (N, 2) of each."""
        index = (torch.arange(MAX_OBJECTS) < chosen.count[:, None]).nonzero()
        row, k = index.unbind(1)
        half = MARGIN * scenes.RADII[chosen.size[row, k]]
        return cls(row, scenes.centres(chosen)[row, k], half), index

    @classmethod
    def of_gaps(cls, chosen: Scenes, generator: torch.Generator) -> Regions:
        """One region a scene without any object (scenes with a huge object have none), small or
        big."""
        taken = torch.zeros(len(chosen), len(PLACES), dtype=torch.bool)
        full = torch.arange(MAX_OBJECTS) < chosen.count[:, None]
        taken.scatter_(1, chosen.place, full)
        huge = (chosen.size[:, 0] == 2) & (chosen.count == 1)
        row = (~huge).nonzero().flatten()
        place = torch.multinomial((~taken[row]).float(), 1, generator=generator)[:, 0]
        size = torch.randint(2, (len(row),), generator=generator)
        return cls(row, _middle(place), MARGIN * scenes.RADII[size])

    @classmethod
    def of_places(cls, number: int) -> Regions:
        """The nine places of each of `number` pictures, picture by picture."""
        place = torch.arange(len(PLACES)).repeat(number)
        row = torch.arange(number).repeat_interleave(len(PLACES))
        return cls(row, _middle(place), torch.full((len(row),), 1 / 6))

    def jitter(self, generator: torch.Generator) -> Regions:
        """Moved by up to a fifth of their half side and scaled by up to 15 %."""
        move = (torch.rand(self.centre.shape, generator=generator) - 0.5) * 0.4 * self.half[:, None]
        grow = 0.85 + 0.3 * torch.rand(len(self.half), generator=generator)
        return Regions(self.row, self.centre + move, self.half * grow)

    def crops(self, pictures: Tensor) -> Tensor:
        """(N, 3, 48, 48) of pictures (B, 3, H, W), bilinear; beyond the border the edge is
        repeated."""
        height, width = pictures.shape[-2:]
        step = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
        reach = 2 * self.half[:, None] * min(height, width) * step  # (N, 48) in half pixels
        x = 2 * self.centre[:, 0, None] - 1 + reach / width  # -1 .. 1 over the picture
        y = 2 * self.centre[:, 1, None] - 1 + reach / height
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
        crops = pictures.new_empty(len(self.row), 3, SIDE, SIDE, dtype=torch.float32)
        for picture in self.row.unique().tolist():
            here = (self.row == picture).nonzero().flatten()
            rows = grid[here].flatten(0, 1)[None]  # one below the other: a picture is read once
            crop = F.grid_sample(
                pictures[picture, None].float(), rows, padding_mode="border", align_corners=False
            )
            crops[here] = crop[0].unflatten(1, (-1, SIDE)).movedim(1, 0)
        return crops


def _middle(place: Tensor) -> Tensor:
    """Centres (..., 2) as (x, y) of places in the 3 x 3 grid, in sides."""
    return 0.5 + (torch.stack((place % 3, place // 3), -1).float() - 1) / 3


def reduced(pictures: Tensor) -> Tensor:
    """Pictures averaged down to a shorter side of at most 128 px, so that all sizes look alike to
    the judge."""
    factor = min(pictures.shape[-2:]) // BASE
    return F.avg_pool2d(pictures, factor) if factor > 1 else pictures


def load(path: Path = WEIGHTS) -> Judge:
    """A trained judge, in float32. Raises `weights.WeightsError`."""
    meta, tensors = weights.read(path, "a judge of drawn shapes")
    judge = Judge(int(meta.get("width", 24)))
    weights.fill(judge, tensors, path, "a judge of drawn shapes")
    return judge.requires_grad_(False)


@torch.no_grad()
def shapes(judge: Judge, pictures: Tensor, chosen: Scenes) -> tuple[Tensor, Tensor]:
    """The judge's shape of each object (N,), and the (row, object) index (N, 2)."""
    regions, index = Regions.of_objects(chosen)
    if not len(index):
        return torch.zeros(0, dtype=torch.long), index
    return judge(regions.crops(reduced(pictures))).argmax(1), index


@torch.no_grad()
def features(judge: Judge, pictures: Tensor) -> Tensor:
    """What the judge sees in pictures (B, 3, H, W): (B, 9, 4 * width), a row for each of the nine
    places."""
    crops = Regions.of_places(len(pictures)).crops(reduced(pictures))
    return judge.features(crops).mean((2, 3)).unflatten(0, (len(pictures), -1))


class Examples:
    """Pictures with their scenes: a third true, a third through the linear inverse, a third through
    TAESD."""

    def __init__(
        self, number: int, size: int, generator: torch.Generator, split="train", kinds=(0, 1, 2)
    ):
        self.scenes = scenes.sample(number, generator, split)
        latents = LatentMap.load()
        decoder = load_decoder().bfloat16()
        pictures = []
        for part, rows in enumerate(torch.arange(number).split(16)):
            picture = scenes.draw(self.scenes.take(rows), size, size, generator)
            kind = kinds[part % len(kinds)]
            if kind == 1:
                picture = latents.decode(latents.encode(picture))
            if kind == 2:
                picture = decoder(latents.encode(picture).bfloat16()).float().clamp(0, 1)
            pictures.append(reduced(picture).half())
        self.pictures = torch.cat(pictures)

    def batch(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Jittered crops with their labels; colours shuffled and noise added, so that outlines
        alone count."""
        chosen = torch.randint(len(self.scenes), (number,), generator=generator)
        part = self.scenes.take(chosen)
        regions, index = Regions.of_objects(part)
        label = part.shape[index[:, 0], index[:, 1]]
        gaps = Regions.of_gaps(part, generator)
        few = torch.arange(0, len(gaps.row), 3)
        fields = [
            (getattr(regions, name), getattr(gaps, name)[few]) for name in ("row", "centre", "half")
        ]
        regions = Regions(*map(torch.cat, fields))
        label = torch.cat((label, torch.full((len(few),), NONE)))
        regions = Regions(chosen[regions.row], regions.centre, regions.half).jitter(generator)
        crops = regions.crops(self.pictures)
        crops = crops[:, torch.randperm(3, generator=generator)]
        strength = 0.06 * torch.rand(len(crops), 1, 1, 1, generator=generator)
        return crops + strength * torch.randn(crops.shape, generator=generator), label


def accuracy(judge: Judge, size: int, kind: int, number: int = 200, split: str = "dev") -> float:
    """Share of objects named right on true (kind 0), linearly decoded (1) or TAESD-decoded (2)
    scenes."""
    examples = Examples(number, size, torch.Generator().manual_seed(17), split, (kind,))
    named, index = shapes(judge, examples.pictures, examples.scenes)
    return float((named == examples.scenes.shape[index[:, 0], index[:, 1]]).float().mean())


def train(args: argparse.Namespace) -> tuple[Judge, float]:
    """A judge of `--seed` and `--width`, and its last mean loss."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(1000 + args.seed)
    judge = Judge(args.width)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 4e-3, total_steps=args.steps, pct_start=0.1
    )
    sources = [Examples(args.scenes, 128, generator), Examples(args.scenes // 6, 256, generator)]
    losses = []
    for step in tqdm(range(args.steps), desc="train judge", unit="step", mininterval=5):
        crops, label = sources[step % 2].batch(32, generator)
        loss = F.cross_entropy(judge(crops), label, label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return judge.requires_grad_(False), sum(losses[-100:]) / 100


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument(
        "--scenes", type=int, default=2400, help="scenes of 128 px; a sixth as many of 256 px"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    judge, loss = train(args)
    judge.load_state_dict({k: v.half().float() for k, v in judge.state_dict().items()})
    kinds = ("true", "linear", "taesd")
    figures = {}
    for size in (128, 256):
        for kind, name in enumerate(kinds):
            figures[f"{name}_{size}"] = round(accuracy(judge, size, kind), 4)
    settings = " ".join(
        f"--{name} {getattr(args, name)}" for name in ("seed", "width", "steps", "scenes")
    )
    meta = {
        "command": f"python -m demo.judge {settings} --out FILE",
        "accuracy_dev": json.dumps(figures),
    }
    tensors = {k: v.half().contiguous() for k, v in judge.state_dict().items()}
    save_file(tensors, args.out, metadata={**meta, "width": str(args.width), "loss": f"{loss:.4f}"})
    print(
        json.dumps(
            {"accuracy_dev": figures, "loss": loss, "seconds": round(time.monotonic() - start)}
        )
    )


if __name__ == "__main__":
    main()
