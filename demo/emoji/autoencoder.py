"""Train the emoji world's TAESD decoder to invert its latent map; the encoder is the map itself, by construction.

    python -m demo.emoji.autoencoder --out RUN --steps 1500 --noise 0.3 --start demo/models/vae/shapes.safetensors
    python -m demo.emoji.autoencoder --out RUN --steps 1500 --noise 0.3 --export
    python -m demo.emoji.autoencoder --construct

The first command starts from the drawn shapes' decoder, its first layer turned to the new map. It and the second
resume RUN. Noise on the latents in training makes a decoder that cleans what a model leaves wrong in its latents,
as RAE's has it (Zheng et al. 2025): without it edges are ragged and blocks of 8 pixels show. The third command writes
a decoder that equals the map's inverse (`linear_decoder`), without any training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from demo import autoencoder as shapes
from demo.emoji import scenes
from demo.emoji.latents import MAP_FILE, MODELS
from demo.emoji.muon import Muon
from demo.emoji.train import faster_dtype
from demo.latents import BLOCK, LatentMap
from demo.latents import MAP_FILE as OLD_MAP
from demo.linear_decoder import linear_decoder
from demo.taesd import FOLDER, Decoder, exact_encoder, load_decoder, save_pair

NAMES = ("taef1", "taesd3")  # of the files, by which VAELoader knows them
SIZES = shapes.SIZES
MEASURED = {128: 16, 256: 16, 512: 2}  # scenes by pixels, of a decoder that is constructed


class Crops(shapes.Crops):
    """Crops of scenes of this world, drawn at several sizes."""

    def _scene_crops(self, size: int, number: int) -> Tensor:
        """Of each two places on the latent grid, that which the map's own inverse gets more wrong."""
        per_scene = SIZES[size][0]
        chosen = scenes.sample(-(-number // per_scene), self.generator)
        pictures = scenes.draw(chosen, size, size, self.generator)
        error = (
            (self.map.decode(self.map.encode(pictures)) - pictures).square().mean(1, keepdim=True)
        )
        error = nn.functional.avg_pool2d(error, self.side, BLOCK)[:, 0]  # (B, places, places)
        crops = []
        for row in range(len(pictures)):
            for _ in range(per_scene):
                places = torch.randint(error.shape[-1], (2, 2), generator=self.generator).tolist()
                y, x = max(places, key=lambda at, row=row: float(error[row, at[0], at[1]]))
                y, x = y * BLOCK, x * BLOCK
                crops.append(pictures[row, :, y : y + self.side, x : x + self.side])
        return torch.stack(crops)[:number]


def turned(path: Path, old: LatentMap, new: LatentMap) -> dict[str, Tensor]:
    """Weights of a decoder of another latent map, the first layer turned to the channels of `new`."""
    weights = load_decoder(path).state_dict()
    first = weights["1.weight"]  # (64, 16, 3, 3); what the soft limit before it bends is small
    weights["1.weight"] = torch.einsum("ocyx,cd->odyx", first, old.forward @ new.backward)
    weights["1.bias"] = weights["1.bias"] + first.sum((2, 3)) @ (
        old.forward @ (new.mean - old.mean)
    )
    return weights


class Trainer:
    """Trains the decoder on float32 weights, computing in the faster type; keeps a moving average."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out, self.step, self.seconds = args, Path(args.out), 0, 0.0
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        self.map = LatentMap.load(MAP_FILE)
        start = Decoder()
        if args.start:
            start.load_state_dict(turned(Path(args.start), LatentMap.load(OLD_MAP), self.map))
        self.dtype = faster_dtype(torch.device("cpu"))
        self.fast = Decoder().to(self.dtype, memory_format=torch.channels_last)
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
        self.optimisers = [Muon(matrices, args.lr), torch.optim.AdamW(rest, weight_decay=0.01)]
        self.generator = torch.Generator().manual_seed(args.seed)
        self.crops = Crops(args.crop, self.map, self.generator, args.pool, args.reuse)
        self.resume()

    def resume(self) -> None:
        if not (self.out / "state.pt").exists():
            return
        state = torch.load(self.out / "state.pt", weights_only=True)
        for name, value in state["weights"].items():
            self.weights[name].data.copy_(value)
        self.ema, self.step, self.seconds = state["ema"], state["step"], state["seconds"]
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
        names = ("steps", "batch", "crop", "lr", "decay", "l1", "noise", "pool", "reuse", "seed")
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
        latents = self.map.encode(pictures)
        level = self.args.noise * torch.rand(len(latents), 1, 1, 1, generator=self.generator)
        latents = latents + level * torch.randn(latents.shape, generator=self.generator)
        latents = latents.to(self.dtype, memory_format=torch.channels_last)
        difference = self.fast(latents).float() - pictures
        (self.args.l1 * difference.abs().mean() + 8 * difference.square().mean()).backward()
        for name, fast in self.fast.named_parameters():
            self.weights[name].grad = fast.grad.float().reshape(self.weights[name].shape)
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        left = (1 - self.step / self.args.steps) / self.args.decay
        rate = self.args.lr * min(1.0, (self.step + 1) / 40, left + 0.01)
        # Adam's steps are as large for the few weights of the first and last layer: a fifth keeps them quiet.
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
        """Train to `--steps`; state every 50, with a log line."""
        if self.step < self.args.steps:
            self.log({"settings": self.settings()})
        bar = tqdm(
            total=self.args.steps,
            initial=self.step,
            unit="step",
            desc="train decoder",
            mininterval=30,
        )
        errors: list[float] = []
        while self.step < self.args.steps:
            start = time.monotonic()
            errors.append(self.update())
            self.seconds += time.monotonic() - start
            bar.update()
            if self.step % 50 == 0:
                mse = sum(errors) / len(errors)
                self.log({"seconds": round(self.seconds, 1), "mse": round(mse, 6)})
                bar.set_postfix(mse=f"{mse:.6f}")
                errors = []
                self.save()
        self.save()
        bar.close()


@torch.no_grad()
def psnr(
    decoder: Decoder, latents: LatentMap, size: int, number: int = 32, split: str = "dev"
) -> float:
    """Mean PSNR in dB of decoded latents of scenes of a split."""
    generator = torch.Generator().manual_seed(1)
    chosen = scenes.sample(number, generator, split)
    values = []
    for row in range(number):
        picture = scenes.draw(chosen.take(slice(row, row + 1)), size, size, generator)
        error = (decoder(latents.encode(picture)).clamp(0, 1) - picture).square().mean()
        values.append(float(-10 * error.clamp_min(1e-10).log10()))
    return sum(values) / number


def construct() -> None:
    """Write the decoder that equals the map's inverse, with what it measures."""
    latents = LatentMap.load(MAP_FILE)
    decoder = linear_decoder(latents)
    decoder.load_state_dict({k: v.half().float() for k, v in decoder.state_dict().items()})
    figures = {}
    for size, number in MEASURED.items():
        figures[str(size)] = round(psnr(decoder, latents, size, number), 2)
        print(f"{size} px: {figures[str(size)]} dB, {number} scenes", flush=True)
    note = {"psnr_dev": json.dumps(figures), "made_by": "demo.linear_decoder"}
    save(decoder, latents, note)
    print(json.dumps({"psnr_dev": figures}))


def save(decoder: Decoder, latents: LatentMap, note: dict[str, str]) -> None:
    """Write the decoder and the encoder that equals the map for all models of this world."""
    encoder = exact_encoder(latents)
    for name in NAMES:
        save_pair(decoder, encoder, name, FOLDER, note)


def flags() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="folder of state and log; resumed if it exists")
    parser.add_argument("--construct", action="store_true", help="train nothing: the map's inverse")
    parser.add_argument("--start", help="decoder of the drawn shapes' world to start from")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--crop", type=int, default=64, help="side of the crops in px, a multiple of 8"
    )
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument(
        "--decay", type=float, default=0.3, help="last share of the steps, where the rate falls"
    )
    parser.add_argument("--l1", type=float, default=0.0, help="weight of L1; 0 is for PSNR alone")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="largest deviation of noise on the latents, which a decoder for models learns to clean",
    )
    parser.add_argument("--pool", type=int, default=6000, help="crops kept in memory")
    parser.add_argument("--reuse", type=float, default=3.0, help="times a crop is used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", action="store_true", help="measure, then write demo/models")
    return parser


def main() -> None:
    parser = flags()
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.construct:
        construct()
        return
    if args.out is None:
        parser.error("--out: a folder is needed for a training; or give --construct")
    trainer = Trainer(args)
    trainer.run()
    if args.export:
        decoder = trainer.decoder()
        figures = {str(size): round(psnr(decoder, trainer.map, size), 2) for size in SIZES}
        row = {"psnr_dev": figures, "settings": trainer.settings()}
        trainer.log(row)
        note = {k: json.dumps(v) for k, v in row.items()}
        save(decoder, trainer.map, note)
        (MODELS / "logs").mkdir(exist_ok=True)
        shutil.copyfile(trainer.out / "autoencoder.jsonl", MODELS / "logs" / "autoencoder.jsonl")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
