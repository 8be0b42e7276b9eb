"""Train the demo's TAESD decoder to invert `LatentMap`; the encoder is the map itself, by
construction.

    python -m demo.autoencoder --out runs/autoencoder --steps 2400 --decay 0.6 --export
    python -m demo.autoencoder --out runs/autoencoder --steps 3300 --lr 1.3e-3 --l1 0 --export

The second command goes on from the first, for PSNR alone. The shipped weights come of more such
legs, one after the other, each a line with `settings` in models/logs/autoencoder.jsonl; about 40
minutes of one busy CPU core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from demo import scenes
from demo.latents import BLOCK, LatentMap
from demo.taesd import DECODER, Decoder, exact_encoder, save_one_file
from evaluation import rows

MODELS = Path(__file__).parent / "models"
SIZES = {
    128: (3, 3),
    256: (6, 1),
    512: (12, 1),
}  # px: crops taken of a drawn scene, share of the crops


class Crops:
    """Crops (side px) of scenes drawn at several sizes, each used about `reuse` times, then drawn
    anew."""

    def __init__(
        self, side: int, latents: LatentMap, generator: torch.Generator, capacity: int, reuse: float
    ):
        self.side = side
        self.map = latents
        self.generator = generator
        self.reuse = reuse
        self.pixels = torch.empty(capacity, 3, side, side, dtype=torch.uint8)
        self.filled = 0
        self.next = 0  # place of the next crop
        self.owed = 0.0  # crops that are to be drawn anew

    def _scene_crops(self, size: int, number: int) -> Tensor:
        """Crops of drawn scenes of one size: of each two places on the latent grid, that which the
        linear inverse of the map gets more wrong, since flat places teach little."""
        per_scene = SIZES[size][0]
        chosen = scenes.sample(-(-number // per_scene), self.generator)
        pictures = scenes.draw(chosen, size, size, self.generator)
        error = (
            (self.map.decode(self.map.encode(pictures)) - pictures).square().mean(1, keepdim=True)
        )
        error = F.avg_pool2d(error, self.side, BLOCK)[:, 0]  # (B, places, places)
        places = torch.randint(
            error.shape[-1], (2, 2, len(pictures), per_scene), generator=self.generator
        )
        row = torch.arange(len(pictures))[:, None]
        a, b = error[row, places[0, 0], places[0, 1]], error[row, places[1, 0], places[1, 1]]
        y, x = (torch.where(a > b, places[0], places[1]) * BLOCK).flatten(1)
        row = row.expand(-1, per_scene).flatten()
        crops = [
            pictures[r, :, i : i + self.side, j : j + self.side]
            for r, i, j in zip(row.tolist(), y.tolist(), x.tolist(), strict=True)
        ]
        return torch.stack(crops)[:number]

    def _draw(self, number: int) -> None:
        total = sum(share for _, share in SIZES.values())
        crops = [
            self._scene_crops(size, -(-number * share // total))
            for size, (_, share) in SIZES.items()
        ]
        fresh = (torch.cat(crops) * 255).round().byte()
        at = (torch.arange(len(fresh)) + self.next) % len(self.pixels)
        self.pixels[at] = fresh
        self.next = int(at[-1]) + 1
        self.filled = min(self.filled + len(fresh), len(self.pixels))

    def batch(self, number: int) -> Tensor:
        """`number` random crops (B, 3, side, side) in 0 .. 1."""
        self.owed += number / self.reuse
        if self.filled < 8 * number or self.owed > 120:
            self._draw(120)
            self.owed = max(0.0, self.owed - 120)
        rows = torch.randint(self.filled, (number,), generator=self.generator)
        return self.pixels[rows].float() / 255


class Trainer:
    """Trains the decoder: float32 weights, a bfloat16 copy for both passes, a moving average to
    keep."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.out = Path(args.out)
        self.step = 0
        self.seconds = 0.0
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        start = Decoder()
        self.fast = Decoder().to(torch.bfloat16)
        self.fast.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        # Muon wants matrices: convolution weights are kept as (out, in * 9).
        self.weights = {
            n: nn.Parameter(p.detach().flatten(1) if p.ndim == 4 else p.detach().clone())
            for n, p in start.named_parameters()
        }
        self.ema = {n: p.detach().clone() for n, p in self.weights.items()}
        inner = {
            n for n, p in self.weights.items() if p.ndim == 2 and not n.startswith(("1.", "19."))
        }
        matrices = [p for n, p in self.weights.items() if n in inner]
        rest = [p for n, p in self.weights.items() if n not in inner]
        self.optimisers = [
            torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, weight_decay=0.01),
        ]
        self.generator = torch.Generator().manual_seed(args.seed)
        self.map = LatentMap.load()
        self.crops = Crops(args.crop, self.map, self.generator, args.pool, args.reuse)
        self.resume()

    def resume(self) -> None:
        if not (self.out / "state.pt").exists():
            return
        state = torch.load(self.out / "state.pt", weights_only=True)
        for name, value in state["weights"].items():
            self.weights[name].data.copy_(value)
        self.ema = state["ema"]
        self.step = state["step"]
        self.seconds = state["seconds"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"])

    def save(self) -> None:
        """Written beside and renamed, so that a kill leaves the old or the new state."""
        state = {
            "weights": {n: p.data for n, p in self.weights.items()},
            "ema": self.ema,
            "step": self.step,
            "seconds": self.seconds,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
        }
        torch.save(state, self.out / "state.tmp")
        (self.out / "state.tmp").rename(self.out / "state.pt")

    def settings(self) -> dict:
        """What the training depends on; a resumed one may go on with others."""
        names = ("steps", "batch", "crop", "lr", "decay", "l1", "pool", "reuse", "seed")
        return {name: getattr(self.args, name) for name in names}

    def decoder(self) -> Decoder:
        """The moving average, rounded as it is shipped."""
        decoder = Decoder()
        own = decoder.state_dict()
        decoder.load_state_dict({n: v.half().view_as(own[n]) for n, v in self.ema.items()})
        return decoder.requires_grad_(False)

    def update(self) -> float:
        """One step on `--l1` L1 + 8 L2."""
        pictures = self.crops.batch(self.args.batch)
        for name, fast in self.fast.named_parameters():
            fast.data.copy_(self.weights[name].data.view_as(fast))
            fast.grad = None
        latents = self.map.encode(pictures).to(torch.bfloat16, memory_format=torch.channels_last)
        difference = self.fast(latents).float() - pictures
        (self.args.l1 * difference.abs().mean() + 8 * difference.square().mean()).backward()
        for name, fast in self.fast.named_parameters():
            assert fast.grad is not None
            self.weights[name].grad = fast.grad.float().reshape(self.weights[name].shape)
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        left = (1 - self.step / self.args.steps) / self.args.decay
        rate = self.args.lr * min(1.0, (self.step + 1) / 40, left + 0.01)
        # Adam's steps are as large for the few weights of the first and last layer: a fifth keeps
        # them quiet.
        for optimiser, factor in zip(self.optimisers, (1.0, 0.2), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = factor * rate
            optimiser.step()
        self.step += 1
        keep = min(0.99, (1 + self.step) / (10 + self.step))
        for name, value in self.ema.items():
            value.lerp_(self.weights[name].data, 1 - keep)
        return float(difference.detach().square().mean())

    def log(self, row: dict) -> None:
        with open(self.out / "autoencoder.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **row}) + "\n")

    def run(self) -> None:
        """Train to `--steps`; state every 200, a log line every 50."""
        if self.step < self.args.steps:
            self.log({"settings": self.settings()})
        bar = tqdm(
            total=self.args.steps,
            initial=self.step,
            unit="step",
            desc="train decoder",
            mininterval=5,
        )
        errors: list[float] = []
        while self.step < self.args.steps:
            start = time.monotonic()
            errors.append(self.update())
            self.seconds += time.monotonic() - start
            bar.update()
            if self.step % 50 == 0:
                mse = round(sum(errors) / len(errors), 6)
                self.log({"seconds": round(self.seconds, 1), "mse": mse})
                errors = []
            if self.step % 200 == 0:
                self.save()
        self.save()
        bar.close()


@torch.no_grad()
def psnr(decoder: Decoder | LatentMap, size: int, number: int = 64, split: str = "dev") -> float:
    """Mean PSNR in dB of decoded latents of drawn scenes of a split."""
    generator = torch.Generator().manual_seed(1)
    latents = LatentMap.load()
    total = 0.0
    chosen = scenes.sample(number, generator, split)
    for row in range(number):
        picture = scenes.draw(chosen.take(slice(row, row + 1)), size, size, generator)
        code = latents.encode(picture)
        decoded = (
            decoder.decode(code) if isinstance(decoder, LatentMap) else decoder(code).clamp(0, 1)
        )
        total += rows.psnr(decoded[0], picture[0])
    return total / number


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--out", required=True, help="folder of state and log; resumed if it exists"
    )
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--crop", type=int, default=64, help="side of the crops in px, a multiple of 8"
    )
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument(
        "--decay", type=float, default=0.3, help="last share of the steps, where the rate falls"
    )
    parser.add_argument(
        "--l1", type=float, default=1.0, help="weight of L1; 0 in the end, where PSNR counts"
    )
    parser.add_argument("--pool", type=int, default=6000, help="crops kept in memory")
    parser.add_argument("--reuse", type=float, default=3.0, help="times a crop is used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", action="store_true", help="measure, then write demo/models")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    trainer.run()
    if args.export:
        decoder = trainer.decoder()
        figures = {str(size): round(psnr(decoder, size), 2) for size in SIZES}
        row = {"psnr_dev": figures, "settings": trainer.settings()}
        trainer.log(row)
        note = {k: json.dumps(v) for k, v in row.items()}
        encoder = exact_encoder(trainer.map)
        save_one_file(decoder, encoder, "taef1", DECODER, note)
        (MODELS / "logs").mkdir(exist_ok=True)
        shutil.copyfile(trainer.out / "autoencoder.jsonl", MODELS / "logs" / "autoencoder.jsonl")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
