"""Train a model of the emoji world by flow matching. No ComfyUI; CPU or GPU; resumes after a kill.

    python -m demo.emoji.train --out RUN --init demo/models/diffusion_models/flux.safetensors --stages 200k:128

Flow matching (Lipman et al. 2023; Esser et al. 2024): x = (1 - t) data + t noise, the model gives noise - data;
t is logit-normal, shifted towards noise. Matrices inside blocks are trained by Muon, everything else by AdamW; the
weights saved are an exponential moving average. Latents under objects weigh more in the loss: this moves gradients to
where a picture is hard and leaves the optimum, a mean for each latent, where it is.

`--guidance 3` puts guidance into the weights of a FLUX-like model, as FLUX.1 dev has it (Meng et al. 2023): the model
is told a strength g, of half of the pictures 1 and else anything up to 3, and learns (noise - data) + (g - 1) (v - v0),
where v and v0 are what it gives itself at g = 1 with and without the prompt.

`--teacher` has a model of another kind learn the velocities of one that is trained already, which have none of the
chance that is in noise - data (Salimans and Ho 2022). Losses are to the teacher then, not to data. At a start it did
not pay: after 150 s of a core an SD3-like model's loss on data was 0.47 with and 0.40 without, since steps take longer.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from demo.emoji import scenes
from demo.emoji.demo_model import CONFIGS, DemoModel, export, load, start_from_shapes
from demo.emoji.latents import MAP_FILE
from demo.emoji.muon import Muon
from demo.latents import MAP_FILE as OLD_MAP
from demo.latents import LatentMap
from demo.pack.emoji_words import PAD, TOKENS
from demo.train import SHIFT, STACK, TOKENS_A_STEP, Stage


class Pool:
    """Latents, word counts and loss weights of scenes of one size; each is used `reuse` times, then drawn anew."""

    def __init__(
        self,
        size: int,
        latents: LatentMap,
        generator: torch.Generator,
        capacity: int,
        reuse: float,
        device,
    ):
        self.size, self.map, self.generator, self.device = size, latents, generator, device
        self.reuse, self.filled, self.next, self.owed = reuse, 0, 0, 0.0
        side = size // 8
        self.latents = torch.empty(capacity, 16, side, side, dtype=torch.float16)
        self.counts = torch.empty(capacity, TOKENS, PAD + 1, dtype=torch.uint8)
        self.covered = torch.empty(capacity, side, side, dtype=torch.bool)

    def _draw(self, number: int) -> None:
        """Draw scenes into the pool, over the oldest once it is full."""
        chosen = scenes.sample(number, self.generator)
        at = (torch.arange(number) + self.next) % len(self.latents)
        size = self.size
        moves = scenes.jitter(number, size, size, self.generator)
        self.covered[at] = scenes.cover(chosen, size, size, moves)[:, 4::8, 4::8]
        self.latents[at] = self.map.encode(
            scenes.draw(chosen, size, size, self.generator, moves)
        ).half()
        self.counts[at] = chosen.bag().byte()
        self.next = int(at[-1]) + 1
        self.filled = min(self.filled + number, len(self.latents))

    def batch(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """`number` random members: latents, counts, cover; drawing keeps pace with use."""
        self.owed += number / self.reuse
        fresh = max(int(self.owed), min(2 * number, 16 * number - self.filled))
        if fresh > 0:
            self.owed = max(0.0, self.owed - fresh)
            self._draw(min(fresh, len(self.latents)))
        rows = torch.randint(self.filled, (number,), generator=self.generator)
        parts = self.latents[rows].float(), self.counts[rows].float(), self.covered[rows]
        return tuple(part.to(self.device) for part in parts)


def optimisers(model: DemoModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks but the modulations, AdamW for the rest."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        inside = STACK.search(name) and p.ndim == 2 and "mod" not in name.lower()
        (matrices if inside else rest).append(p)
    return [Muon(matrices, lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def faster_dtype(device: torch.device) -> torch.dtype:
    """float32 or bfloat16: CPUs differ by fifty in the latter, so a product of a block's size is timed in both."""
    if device.type != "cpu":
        return torch.bfloat16
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(4096, 256).to(dtype), torch.randn(256, 1792).to(dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    print(
        "seconds of a product: " + ", ".join(f"{k} {v:.4f}" for k, v in seconds.items()), flush=True
    )
    return min(seconds, key=seconds.get)


class Trainer:
    """State of one training, saved whole."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        self.model = load(Path(args.init)) if args.init else DemoModel(args.model)
        if self.model.kind != args.model:
            raise SystemExit(
                f"--init: {args.init} is {self.model.kind}-like, --model {args.model} given"
            )
        if args.shapes:
            start_from_shapes(self.model, Path(args.shapes), OLD_MAP)
        self.model.to(self.device)
        self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.dtype = (
            faster_dtype(self.device) if args.dtype == "auto" else getattr(torch, args.dtype)
        )
        self.fast = (
            self.model
            if self.dtype == torch.float32
            else DemoModel(args.model).to(self.device, self.dtype)
        )
        self.teacher = load(Path(args.teacher)) if args.teacher else None
        if self.teacher is not None:
            self.teacher.to(self.device, self.dtype).requires_grad_(False)
        self.optimisers = optimisers(self.model, args.lr)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.seen = self.step = 0
        self.seconds = 0.0
        self.map = LatentMap.load(MAP_FILE)
        self.pools: dict[int, Pool] = {}
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.stopped = False

    def stop(self, *_: object) -> None:
        """Signal handler: end after the step at hand, with the state saved."""
        self.stopped = True

    def pool(self, size: int) -> Pool:
        if size not in self.pools:
            capacity = self.args.pool * 64 // (size // 16) ** 2
            self.pools[size] = Pool(
                size, self.map, self.generator, capacity, self.args.reuse, self.device
            )
        return self.pools[size]

    def save(self) -> None:
        """Everything needed to go on, written beside and renamed, so that a kill leaves the old or the new one."""
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
        # Exported beside and renamed, too: someone may be looking.
        folder = self.out / "exported"
        folder.mkdir(exist_ok=True)
        middle = (1 + self.args.guidance) / 2  # of what was taught: more is too strong in colour
        weights = folder / f"{self.args.model}.safetensors"
        export(self.args.model, self.ema, weights, self.seen, middle)
        for file in folder.iterdir():
            file.rename(self.out / file.name)

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
        self.seen, self.step, self.seconds = state["seen"], state["step"], state["seconds"]

    def rate(self, total: int) -> float:
        """Learning rate factor: short warm-up, constant, linear decay over the last `--decay` share."""
        left = max(0.0, 1 - self.seen / total) / max(self.args.decay, 1e-9)
        return min(1.0, (self.step + 1) / 100) * min(1.0, left + 0.02)

    def loss(self, size: int) -> tuple[Tensor, Tensor]:
        """The weighted loss and the plain one."""
        tokens = (size // 16) ** 2
        seen_tokens = max(1, round(self.args.tokens * tokens))
        number = max(1, TOKENS_A_STEP * self.args.batch // 64 // seen_tokens)
        data, counts, covered = self.pool(size).batch(number)
        gen = self.generator
        drop = (torch.rand(number, generator=gen) < self.args.drop).to(self.device)
        counts[drop] = 0
        counts[drop, :, PAD] = 1
        u = torch.randn(number, generator=gen).sigmoid().to(self.device)
        # The more pixels show a layout, the more noise it takes to hide it (Esser et al. 2024, eq. 23).
        shift = SHIFT * max(1.0, size / 256)
        t = shift * u / (1 + (shift - 1) * u)
        noise = torch.randn(data.shape, generator=gen).to(self.device)
        x = torch.lerp(data, noise, t[:, None, None, None]).to(self.dtype)
        self.seen += number
        counts, target, strength = counts.to(self.dtype), noise - data, torch.ones_like(t)
        if self.args.guidance > 1:
            u = torch.rand(number, generator=gen).to(self.device)
            strength += (self.args.guidance - 1) * (2 * u - 1).clamp_min(0)
            guided = (strength > 1) & ~drop
            strength[~guided] = 1.0  # nothing to strengthen without a prompt
            more = (strength[guided] - 1)[:, None, None, None]
            target[guided] += more * self.change_by_prompt(x[guided], t[guided], counts[guided])
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(x, t, counts, strength).float()
        weight = 1 + (self.args.object_weight - 1) * covered
        more = {}
        if seen_tokens < tokens:
            more["keep"] = self.chosen_tokens(covered, seen_tokens)
            none = torch.zeros_like(weight[:, ::2, ::2])
            kept = none.flatten(1).scatter(1, more["keep"], 1.0).view_as(none)
            weight = weight * kept.repeat_interleave(2, 1).repeat_interleave(2, 2)
        velocity = self.fast(x, t, counts, strength, **more)
        error = (velocity.float() - target).square().mean(1)
        seen = weight > 0
        plain = (error.detach() * seen).sum() / seen.sum()
        return (error * weight).sum() / weight.sum(), plain

    def chosen_tokens(self, covered: Tensor, number: int) -> Tensor:
        """(B, number): the tokens under objects, as many as there is room for, and of the others some at random.

        Where objects are is what a prompt says, so the choice gives nothing away."""
        under = F.max_pool2d(covered[:, None].float(), 2).flatten(1)
        chance = torch.rand(under.shape, generator=self.generator).to(under)
        return (under + chance).topk(number, 1).indices

    @torch.no_grad()
    def change_by_prompt(self, x: Tensor, t: Tensor, counts: Tensor) -> Tensor:
        """(B, 16, h, w): what a prompt changes of the velocity, without guidance."""
        if not len(x):
            return x.float()
        none = torch.zeros_like(counts)
        none[..., PAD] = 1
        plain = torch.ones(2 * len(x), device=x.device)
        both = self.fast(torch.cat([x, x]), torch.cat([t, t]), torch.cat([counts, none]), plain)
        with_it, without = both.float().chunk(2)
        return with_it - without

    def update(self, size: int, total: int) -> float:
        """One optimiser step; in bfloat16 on copies of the float32 weights."""
        copied = self.fast is not self.model
        pairs = (
            list(zip(self.model.parameters(), self.fast.parameters(), strict=True))
            if copied
            else []
        )
        for slow, fast in pairs:
            fast.data.copy_(slow.data)
            fast.grad = None
        loss, plain = self.loss(size)
        loss.backward()
        for slow, fast in pairs:
            slow.grad = None if fast.grad is None else fast.grad.float()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.args.lr * self.rate(total)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        keep = min(self.args.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        torch._foreach_lerp_([self.ema[key] for key in state], list(state.values()), 1 - keep)
        return float(plain)

    def run(self, stages: list[Stage]) -> None:
        """Train through the stages; state every `--save-minutes`, a log line every 50 steps."""
        self.resume()
        signal.signal(signal.SIGTERM, self.stop)
        total = sum(stage.pictures for stage in stages)
        bar = tqdm(
            total=total,
            initial=self.seen,
            unit="picture",
            desc=f"train emoji {self.args.model}",
            mininterval=30,
        )
        saved, losses, ends = time.monotonic(), [], 0
        for stage in stages:
            ends += stage.pictures
            while self.seen < ends and not self.stopped:
                start, before = time.monotonic(), self.seen
                size = stage.sizes[self.step % len(stage.sizes)]
                losses.append((size, self.update(size, total)))
                self.seconds += time.monotonic() - start
                bar.update(self.seen - before)
                if self.step % 50 == 0:
                    self.log(losses, total)
                    losses = []
                if time.monotonic() - saved > 60 * self.args.save_minutes:
                    self.save()
                    saved = time.monotonic()
        self.save()
        bar.close()

    def log(self, losses: list[tuple[int, float]], total: int) -> None:
        by_size = {}
        for size, value in losses:
            by_size.setdefault(size, []).append(value)
        row = {
            "step": self.step,
            "pictures": self.seen,
            "seconds": round(self.seconds, 1),
            "rate": round(self.args.lr * self.rate(total), 6),
            "loss": {str(s): round(sum(v) / len(v), 4) for s, v in by_size.items()},
        }
        with open(self.out / f"{self.args.model}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(CONFIGS), default="flux")
    parser.add_argument(
        "--out",
        required=True,
        help="folder of state, log and exported weights; resumed if it exists",
    )
    parser.add_argument(
        "--stages", nargs="+", type=Stage.parse, required=True, help="PICTURES:SIZE+SIZE ..."
    )
    parser.add_argument("--shapes", help="start from weights of the drawn shapes' world")
    parser.add_argument("--init", help="start from exported weights of this world")
    parser.add_argument(
        "--teacher",
        help="exported weights of this world, of any kind, whose velocities are learned",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=64,
        help="pictures of 128 px a step (same tokens at other sizes)",
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--decay", type=float, default=0.15, help="share of the training over which the rate falls"
    )
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument(
        "--drop", type=float, default=0.05, help="share of pictures trained without their prompt"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="largest strength of guidance that a FLUX-like model is taught; 1 teaches none",
    )
    parser.add_argument(
        "--object-weight", type=float, default=3.0, help="of latents under objects; 1 is plain"
    )
    parser.add_argument(
        "--tokens",
        type=float,
        default=1.0,
        help="share of a picture's tokens that an SD3-like model is trained on, those under objects first",
    )
    parser.add_argument("--pool", type=int, default=16000, help="scenes of 128 px kept in memory")
    parser.add_argument("--reuse", type=float, default=3.0, help="times a drawn scene is used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the model's arithmetic; auto takes the faster",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-minutes", type=float, default=5)
    args = parser.parse_args()
    if args.guidance < 1 or (args.guidance > 1 and args.model != "flux"):
        raise SystemExit(
            f"--guidance: {args.guidance:g} given for {args.model}; it is 1 or more, and 1 for all "
            "but flux, since no other model is told a strength"
        )
    if not 0 < args.tokens <= 1 or (args.tokens < 1 and args.model != "sd3"):
        raise SystemExit(
            f"--tokens: {args.tokens:g} given for {args.model}; it is more than 0 and up to 1, and 1 for all but sd3"
        )
    if args.tokens < 1 and args.teacher:
        raise SystemExit(
            "--teacher and --tokens given; a teacher sees whole pictures, so give one of them"
        )
    if args.guidance > 1 and args.teacher:
        raise SystemExit(
            "--teacher and --guidance given; a guided model teaches itself, so give one of them"
        )
    torch.set_num_threads(args.threads)
    Trainer(args).run(args.stages)


if __name__ == "__main__":
    main()
