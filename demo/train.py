"""Train a demo transformer on drawn scenes by flow matching. No ComfyUI; CPU or GPU; resumes after
a kill.

    python -m demo.train --model flux --out runs/flux --stages 250k:128 60k:128+256 8k:256+512 --threads 1

Flow matching (Lipman et al. 2023; Esser et al. 2024): x = (1 - t) data + t noise, the model gives
noise - data; t is logit-normal, shifted towards noise. Matrices inside blocks are trained by Muon,
everything else by AdamW; the weights saved are an exponential moving average.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from demo import scenes
from demo.demo_model import DemoModel, export, load_weights
from demo.latents import LatentMap
from demo.pack.words import PAD, TOKENS, VOCABULARY, bag
from demo.twins import MODULATIONS, TWINS

DROP_PROMPT = 0.1
TOKENS_A_STEP = 64 * 64  # image tokens of one optimiser step, whatever the size of the pictures
STACK = re.compile(r"_blocks\.|layers\.|_refiner\.")  # names of the blocks' weights
SHIFT = 1.8  # of the training sigmas towards noise, up to 256 px


@dataclass(frozen=True)
class Stage:
    """Part of a training: number of pictures, their sizes in pixels (one size a step)."""

    pictures: int
    sizes: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Stage:
        """'60k:128+256' -> 60,000 pictures of both sizes."""
        try:
            number, sizes = text.split(":")
            return cls(
                int(float(number.rstrip("k")) * (1000 if number.endswith("k") else 1)),
                tuple(int(s) for s in sizes.split("+")),
            )
        except ValueError as error:
            raise SystemExit(
                f"--stages: {text!r} given; a stage is PICTURES:SIZE+SIZE, e.g. 60k:128+256"
            ) from error


class Pool:
    """Latents and word counts of drawn scenes of one size; each is used about `reuse` times, then
    drawn anew."""

    def __init__(
        self,
        size: int,
        latents: LatentMap,
        generator: torch.Generator,
        capacity: int,
        reuse: float,
        device,
    ):
        self.size = size
        self.map = latents
        self.generator = generator
        self.device = device
        self.reuse = reuse
        self.filled = 0
        self.next = 0  # place of the next scene
        self.owed = 0.0  # scenes that are to be drawn anew
        side = size // 8
        self.latents = torch.empty(capacity, 16, side, side, dtype=torch.float16)
        self.counts = torch.empty(capacity, TOKENS, len(VOCABULARY) + 1, dtype=torch.uint8)

    def _draw(self, number: int) -> None:
        """Draw scenes into the pool, over the oldest once it is full."""
        chosen = scenes.sample(number, self.generator)
        pictures = scenes.draw(chosen, self.size, self.size, self.generator)
        at = (torch.arange(number) + self.next) % len(self.latents)
        self.latents[at] = self.map.encode(pictures).half()
        self.counts[at] = bag(chosen.prompts()).byte()
        self.next = int(at[-1]) + 1
        self.filled = min(self.filled + number, len(self.latents))

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """`number` random members; drawing keeps pace with use."""
        self.owed += number / self.reuse
        fresh = max(int(self.owed), min(2 * number, 16 * number - self.filled))
        if fresh > 0:
            self.owed = max(0.0, self.owed - fresh)
            self._draw(min(fresh, len(self.latents)))
        rows = torch.randint(self.filled, (number,), generator=self.generator)
        return self.latents[rows].to(self.device).float(), self.counts[rows].to(self.device).float()


def optimisers(model: DemoModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks but the modulations, AdamW for the rest."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        modulates = name.removesuffix(".weight").endswith(MODULATIONS)
        inside = STACK.search(name) and p.ndim == 2 and not modulates
        (matrices if inside else rest).append(p)
    return [
        torch.optim.Muon(
            matrices, lr=lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Trainer:
    """State of one training, saved whole."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        self.model = DemoModel(args.model).to(self.device)
        if args.init:
            load_weights(self.model, Path(args.init))
        self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.dtype = getattr(torch, args.dtype)
        self.fast = DemoModel(args.model).to(self.device, self.dtype)
        self.optimisers = optimisers(self.model, args.lr)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.seen = self.step = 0
        self.seconds = 0.0
        self.map = LatentMap.load()
        self.pools: dict[int, Pool] = {}
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)

    def pool(self, size: int) -> Pool:
        if size not in self.pools:
            capacity = self.args.pool * 64 // (size // 16) ** 2
            self.pools[size] = Pool(
                size, self.map, self.generator, capacity, self.args.reuse, self.device
            )
        return self.pools[size]

    def save(self) -> None:
        """Everything needed to go on, written beside and renamed, so that a kill leaves the old or
        the new one."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "seen": self.seen,
            "step": self.step,
            "seconds": self.seconds,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
        }
        temporary = self.out / "state.tmp"
        torch.save(state, temporary)
        temporary.rename(self.out / "state.pt")
        export(self.args.model, self.ema, self.out / f"{self.args.model}.safetensors", self.seen)

    def resume(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema = state["ema"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.seen = state["seen"]
        self.step = state["step"]
        self.seconds = state["seconds"]

    def rate(self, total: int) -> float:
        """Learning rate factor: warm-up, constant, linear decay over the last `--decay` share."""
        left = max(0.0, 1 - self.seen / total) / max(self.args.decay, 1e-9)
        return min(1.0, (self.step + 1) / self.args.warm_up) * min(1.0, left + 0.02)

    def loss(self, size: int) -> Tensor:
        number = max(1, TOKENS_A_STEP * self.args.batch // 64 // (size // 16) ** 2)
        data, counts = self.pool(size).batch(number)
        gen = self.generator
        drop = (torch.rand(number, generator=gen) < DROP_PROMPT).to(self.device)
        counts[drop] = 0
        counts[drop, :, PAD] = 1
        u = torch.randn(number, generator=gen).sigmoid().to(self.device)
        # The more pixels show a layout, the more noise it takes to hide it (Esser et al. 2024, eq.
        # 23).
        shift = SHIFT * max(1.0, size / 256)
        t = shift * u / (1 + (shift - 1) * u)
        noise = torch.randn(data.shape, generator=gen).to(self.device)
        x = torch.lerp(data, noise, t[:, None, None, None]).to(self.dtype)
        target = noise - data
        self.seen += number
        velocity = self.fast(x, t, counts.to(self.dtype), torch.ones(number, device=self.device))
        return (velocity.float() - target).square().mean()

    def update(self, size: int, total: int) -> float:
        """One optimiser step on copies of the float32 weights, in `--dtype`."""
        for slow, fast in zip(self.model.parameters(), self.fast.parameters(), strict=True):
            fast.data.copy_(slow.data)
            fast.grad = None
        loss = self.loss(size)
        loss.backward()
        for slow, fast in zip(self.model.parameters(), self.fast.parameters(), strict=True):
            slow.grad = None if fast.grad is None else fast.grad.float()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.args.lr * self.rate(total)
            optimiser.step()
        self.step += 1
        keep = min(self.args.ema, (1 + self.step) / (10 + self.step))
        for key, value in self.model.state_dict().items():
            self.ema[key].lerp_(value, 1 - keep)
        return float(loss.detach())

    def run(self, stages: list[Stage]) -> None:
        """Train through the stages; state every `--save-minutes`, a log line every 50 steps."""
        self.resume()
        total = sum(stage.pictures for stage in stages)
        bar = tqdm(
            total=total,
            initial=self.seen,
            unit="picture",
            desc=f"train {self.args.model}",
            mininterval=5,
        )
        saved = time.monotonic()
        losses = []
        ends = 0
        for stage in stages:
            ends += stage.pictures
            while self.seen < ends:
                start = time.monotonic()
                before = self.seen
                size = stage.sizes[self.step % len(stage.sizes)]
                losses.append((size, self.update(size, total)))
                self.seconds += time.monotonic() - start
                bar.update(self.seen - before)
                if self.step % 50 == 0:
                    self.log(losses)
                    losses = []
                if time.monotonic() - saved > 60 * self.args.save_minutes:
                    self.save()
                    saved = time.monotonic()
        self.save()
        bar.close()

    def log(self, losses: list[tuple[int, float]]) -> None:
        by_size = {}
        for size, value in losses:
            by_size.setdefault(size, []).append(value)
        row = {
            "step": self.step,
            "pictures": self.seen,
            "seconds": round(self.seconds, 1),
            "loss": {str(s): round(sum(v) / len(v), 4) for s, v in by_size.items()},
        }
        with open(self.out / f"{self.args.model}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(TWINS), required=True)
    parser.add_argument(
        "--out",
        required=True,
        help="folder of state, log and exported weights; resumed if it exists",
    )
    parser.add_argument(
        "--stages", nargs="+", type=Stage.parse, required=True, help="PICTURES:SIZE+SIZE ..."
    )
    parser.add_argument("--init", help="exported weights to start from")
    parser.add_argument(
        "--batch",
        type=int,
        default=64,
        help="pictures of 128 px a step (same tokens at other sizes)",
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--warm-up", type=int, default=100, help="steps in which the rate rises to its height"
    )
    parser.add_argument(
        "--decay", type=float, default=0.15, help="share of the training over which the rate falls"
    )
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--pool", type=int, default=40000, help="scenes of 128 px kept in memory")
    parser.add_argument("--reuse", type=float, default=6.0, help="times a drawn scene is used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-minutes", type=float, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).run(args.stages)


if __name__ == "__main__":
    main()
