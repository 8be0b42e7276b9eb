"""A small CNN that names the object in a crop of a picture. One scores pictures and trains nothing; another, of other
seed and width, is for training.

    python -m demo.emoji.judge --out demo/models/emoji/judge.safetensors --seed 0 --width 48
    python -m demo.emoji.judge --out demo/models/emoji/judge_training.safetensors --seed 1 --width 32

Trained on true scenes and on what decoders make of them, so that blur is no surprise. Scenes are drawn anew for every
step. The class after the objects is "none": a place without an object. Resumes from `--state` after a kill.
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

from demo import weights
from demo.emoji import scenes
from demo.emoji.latents import MAP_FILE, MODELS
from demo.emoji.scenes import JITTER, SIDES, SPREAD, Scenes
from demo.latents import LatentMap
from demo.pack.emoji_words import MAX_OBJECTS, OBJECTS, PLACES

SIDE = 48
BASE = 128  # px: larger pictures are averaged down to it
NONE = len(OBJECTS)
WEIGHTS = MODELS / "judge.safetensors"
REPAIR = f"{weights.REPAIR}: python -m demo.emoji.judge"


class Judge(nn.Module):
    """(N, 3, 48, 48) in 0 .. 1 -> logits (N, 257) over the objects and "none"."""

    def __init__(self, width: int = 48):
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.GroupNorm(4, n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(9 * widths[-1], len(OBJECTS) + 1)

    def features(self, crops: Tensor) -> Tensor:
        """(N, 3, 48, 48) in 0 .. 1 -> (N, 4 * width, 3, 3)."""
        return self.layers(4 * crops - 2)

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.features(crops).flatten(1))


@dataclass(frozen=True)
class Regions:
    """N square regions of pictures."""

    row: Tensor  # (N,) index of the picture
    centre: Tensor  # (N, 2) as (x, y) in the picture's sides
    half: Tensor  # (N,) half side in shorter sides of the picture

    @classmethod
    def of_objects(cls, chosen: Scenes) -> tuple[Regions, Tensor]:
        """Where all objects may stand, and the (row, object) index (N, 2) of each."""
        index = (torch.arange(MAX_OBJECTS) < chosen.count[:, None]).nonzero()
        row, k = index.unbind(1)
        half = SIDES[chosen.size[row, k]] / 2 + JITTER
        return cls(row, scenes.centres(chosen)[row, k], half), index

    @classmethod
    def of_gaps(cls, chosen: Scenes, generator: torch.Generator) -> Regions:
        """One region a scene without any object (scenes with a huge object have none), small or big."""
        taken = torch.zeros(len(chosen), len(PLACES), dtype=torch.long)
        taken.scatter_add_(
            1, chosen.place, (torch.arange(MAX_OBJECTS) < chosen.count[:, None]).long()
        )
        huge = (chosen.size[:, 0] == 2) & (chosen.count > 0)
        row = (~huge).nonzero().flatten()
        place = torch.multinomial((taken[row] == 0).float(), 1, generator=generator)[:, 0]
        size = torch.randint(2, (len(row),), generator=generator)
        return cls(row, _middle(place), SIDES[size] / 2 + JITTER)

    @classmethod
    def of_places(cls, number: int) -> Regions:
        """The nine places of each of `number` pictures, picture by picture."""
        place = torch.arange(len(PLACES)).repeat(number)
        row = torch.arange(number).repeat_interleave(len(PLACES))
        return cls(row, _middle(place), torch.full((len(row),), 1 / 6))

    @classmethod
    def joined(cls, first: Regions, second: Regions) -> Regions:
        """Both."""
        return cls(
            *(torch.cat((getattr(first, n), getattr(second, n))) for n in cls.__dataclass_fields__)
        )

    def jitter(self, generator: torch.Generator) -> Regions:
        """Moved by up to a fifth of their half side and scaled by up to 10 %."""
        move = (torch.rand(self.centre.shape, generator=generator) - 0.5) * 0.4 * self.half[:, None]
        grow = 0.9 + 0.2 * torch.rand(len(self.half), generator=generator)
        return Regions(self.row, self.centre + move, self.half * grow)

    def crops(self, pictures: Tensor) -> Tensor:
        """(N, 3, 48, 48) of pictures (B, 3, H, W), bilinear; beyond the border the edge is repeated."""
        height, width = pictures.shape[-2:]
        step = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
        reach = (
            self.half[:, None] * min(height, width) * 2 * step
        )  # in pixels, doubled: the grid runs from -1 to 1
        xs = self.centre[:, :1] * 2 - 1 + reach / width
        ys = self.centre[:, 1:] * 2 - 1 + reach / height
        grid = torch.stack(
            (xs[:, None].expand(-1, SIDE, -1), ys[..., None].expand(-1, -1, SIDE)), -1
        )
        return F.grid_sample(
            pictures[self.row].float(), grid, padding_mode="border", align_corners=False
        )


def _middle(place: Tensor) -> Tensor:
    """Centres (..., 2) as (x, y) of places in the 3 x 3 grid, in sides."""
    return 0.5 + (torch.stack((place % 3, place // 3), -1).float() - 1) * SPREAD[0]


def reduced(pictures: Tensor) -> Tensor:
    """Pictures averaged down to a shorter side of at most 128 px, so that all sizes look alike to the judge."""
    factor = min(pictures.shape[-2:]) // BASE
    return F.avg_pool2d(pictures, factor) if factor > 1 else pictures


def load(path: Path = WEIGHTS) -> Judge:
    """A trained judge, in float32. Raises `weights.WeightsError`."""
    meta, tensors = weights.read(path, "a judge of the emoji world", REPAIR)
    judge = Judge(int(meta.get("width", 48)))
    weights.fill(judge, tensors, path, "a judge of the emoji world")
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def objects(judge: Judge, pictures: Tensor, chosen: Scenes) -> tuple[Tensor, Tensor]:
    """The judge's name for each object asked for (N,), and the (row, object) index (N, 2)."""
    regions, index = Regions.of_objects(chosen)
    if not len(index):
        return torch.zeros(0, dtype=torch.long), index
    return judge(regions.crops(reduced(pictures))).argmax(1), index


@torch.no_grad()
def features(judge: Judge, pictures: Tensor) -> Tensor:
    """What the judge sees in pictures (B, 3, H, W): (B, 9, 4 * width), a row for each of the nine places."""
    crops = Regions.of_places(len(pictures)).crops(reduced(pictures))
    return judge.features(crops).mean((2, 3)).unflatten(0, (len(pictures), -1))


def decoded(pictures: Tensor, kind: str, latents: LatentMap) -> Tensor:
    """Pictures as they come back from their latents: `true` as they are, `linear` by the map's own inverse."""
    return pictures if kind == "true" else latents.decode(latents.encode(pictures))


def examples(number: int, latents: LatentMap, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Jittered crops of `number` freshly drawn scenes with their labels; half of the pictures are decoded."""
    size = BASE if torch.rand((), generator=generator) < 0.85 else 2 * BASE
    chosen = scenes.sample(number, generator)
    pictures = scenes.draw(chosen, size, size, generator)
    half = number // 2
    pictures[:half] = decoded(pictures[:half], "linear", latents)
    regions, index = Regions.of_objects(chosen)
    label = chosen.object[index[:, 0], index[:, 1]]
    gaps = Regions.of_gaps(chosen, generator)
    few = torch.arange(0, len(gaps.row), 6)
    gaps = Regions(gaps.row[few], gaps.centre[few], gaps.half[few])
    crops = Regions.joined(regions, gaps).jitter(generator).crops(reduced(pictures))
    # Light and noise of wrong strength, so that the judge looks at what is there, not at exact values.
    light = 1 + 0.2 * (torch.rand(len(crops), 3, 1, 1, generator=generator) - 0.5)
    strength = 0.08 * torch.rand(len(crops), 1, 1, 1, generator=generator).square()
    crops = crops * light + strength * torch.randn(crops.shape, generator=generator)
    return crops, torch.cat((label, torch.full((len(few),), NONE)))


def accuracy(
    judge: Judge, size: int, kind: str, latents: LatentMap, number: int = 400, split: str = "dev"
) -> float:
    """Share of objects named right on scenes of a split, true or decoded."""
    generator = torch.Generator().manual_seed(17)
    chosen = scenes.sample(number, generator, split)
    right = []
    for rows in torch.arange(number).split(16):
        part = chosen.take(rows)
        pictures = decoded(scenes.draw(part, size, size, generator), kind, latents)
        named, index = objects(judge, pictures, part)
        right.append(named == part.object[index[:, 0], index[:, 1]])
    return float(torch.cat(right).float().mean())


def train(args: argparse.Namespace, latents: LatentMap) -> tuple[Judge, float]:
    """A judge of `--seed` and `--width`, and its last mean loss. State is kept in `--state`, if given."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(1000 + args.seed)
    judge = Judge(args.width)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 4e-3, total_steps=args.steps, pct_start=0.1
    )
    begin, losses = 0, []
    if args.state and args.state.exists():
        state = torch.load(args.state, weights_only=True)
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        begin, losses = state["step"], state["losses"]
    bar = tqdm(
        range(begin, args.steps),
        initial=begin,
        total=args.steps,
        desc="train judge",
        unit="step",
        mininterval=30,
    )
    for step in bar:
        crops, label = examples(args.batch, latents, generator)
        loss = F.cross_entropy(judge(crops), label, label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses = [*losses[-99:], float(loss.detach())]
        if args.state and (step + 1) % 100 == 0:
            state = {
                "judge": judge.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "losses": losses,
            }
            temporary = args.state.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.rename(args.state)
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.3f}")
    return judge.eval().requires_grad_(False), sum(losses) / len(losses)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, help="file to resume from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=64, help="scenes a step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    latents = LatentMap.load(MAP_FILE)
    judge, loss = train(args, latents)
    judge.load_state_dict({k: v.half().float() for k, v in judge.state_dict().items()})
    figures = {}
    for size in (128, 256):
        for kind in ("true", "linear"):
            figures[f"{kind}_{size}"] = round(accuracy(judge, size, kind, latents), 4)
    settings = " ".join(
        f"--{name} {getattr(args, name)}" for name in ("seed", "width", "steps", "batch")
    )
    meta = {
        "command": f"python -m demo.emoji.judge {settings} --out FILE",
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
