"""The demo's table: dense, Cache Reuse, the host's EasyCache and LazyCache, and fewer steps, in one
run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.rows import Row, averaged, interval, psnr, ssim
from benchmarks.subject import FAMILIES, STEPS, Sampled, Subject, patcher
from demo import judge, rules, scenes
from demo.scenes import Scenes

THRESHOLDS = Path(__file__).parent / "thresholds.json"
QUALITY_SIZE, CLOCK_SIZE = 256, 512
ODE_STEPS = 100  # of Heun: 200 evaluations, second order
BATCH = 8  # pictures of the converged reference drawn together
CLOCK_REPETITIONS = 5  # with as many prompts or more; once otherwise
PART = 64  # prompts drawn by one seed
METHODS = ("dense", "cache_reuse", "easycache", "lazycache")


def thresholds(kind: str) -> dict[str, float]:
    """Thresholds that leave about half of 28 evaluations, fitted once on 16 development prompts
    (demo/fit.py)."""
    return {
        m: v["threshold"]
        for m, v in json.loads(THRESHOLDS.read_text(encoding="utf-8"))[kind].items()
    }


def prompts(number: int, split: str = "test", seed: int = 7) -> Scenes:
    """Scenes of a split; a longer list begins with the shorter one."""
    seeds = [seed + 1000 * part for part in range(math.ceil(number / PART))]
    parts = [scenes.sample(PART, torch.Generator().manual_seed(s), split) for s in seeds]
    return Scenes.joined(parts).take(slice(0, number))


@dataclass
class Tally:
    """What one method drew, picture by picture."""

    psnr: list[float] = field(default_factory=list)
    psnr_ode: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    equal: int = 0

    def add(self, picture: Tensor, dense: Tensor, ode: Tensor, computed: float) -> None:
        """One picture (3, H, W) beside the dense and the converged one."""
        same = torch.equal(picture, dense)
        self.equal += same
        if not same:
            self.psnr.append(psnr(picture, dense))
            self.ssim.append(ssim(picture, dense))
        self.psnr_ode.append(psnr(picture, ode))
        self.computed.append(computed)
        self.pictures.append(picture)

    def accuracy(self, chosen: Scenes, critic: judge.Judge) -> float:
        """Share of object colours, background colours and shapes that are as the prompt says."""
        pictures = torch.stack(self.pictures)
        colours, grounds = rules.colours_right(pictures, chosen)
        named, index = judge.shapes(critic, pictures, chosen)
        right = named == chosen.shape[index[:, 0], index[:, 1]]
        return float(
            torch.cat([part.float().flatten() for part in (colours, grounds, right)]).mean()
        )


class Measurement:
    """All methods on one demo model."""

    def __init__(self, comfy, kind: str, chosen: Scenes):
        self.subject = Subject(comfy, FAMILIES[kind])
        self.kind, self.chosen, self.texts = kind, chosen, chosen.prompts()
        found = thresholds(kind)
        base = self.subject.model
        self.models = {"dense": base}
        for method in METHODS[1:]:
            if method in found:
                self.models[method] = patcher(comfy, method, found[method])(base)
        self.tallies: dict[str, Tally] = {}

    def draw(self, method: str, prompt: str, seed: int, size: int) -> Sampled:
        """One picture of a method; `fewer_steps` takes as many steps as Cache Reuse computed on
        average, rounded up."""
        if method == "fewer_steps":
            steps = max(2, math.ceil(averaged(self.tallies["cache_reuse"].computed)))
            return self.subject.sample(self.models["dense"], prompt, seed, size, steps=steps)
        return self.subject.sample(self.models[method], prompt, seed, size)

    def converged(self) -> list[Tensor]:
        """Pictures of the converged ODE, drawn several at a time."""
        out, dense = [], self.models["dense"]
        groups = torch.arange(len(self.texts)).split(BATCH)
        for group in tqdm(groups, desc=f"{self.kind}: converged", unit=f"{BATCH} prompts"):
            seeds, texts = group.tolist(), [self.texts[i] for i in group]
            latents = self.subject.sample_many(
                dense, texts, seeds, QUALITY_SIZE, ODE_STEPS, "heun"
            ).latent
            out += [self.subject.picture(latent[None]) for latent in latents]
        return out

    def quality(self) -> None:
        """Every method on every prompt at 256 px, beside the dense and the converged picture."""
        subject, dense, ode = self.subject, [], self.converged()
        for seed, text in enumerate(tqdm(self.texts, desc=f"{self.kind}: dense", unit="prompt")):
            dense.append(self.draw("dense", text, seed, QUALITY_SIZE))
        shown = [subject.picture(d.latent) for d in dense]
        self.tallies["dense"] = tally = Tally()
        for picture, reference, sampled in zip(shown, ode, dense, strict=True):
            tally.add(picture, picture, reference, sampled.computed)
        for method in [*list(self.models)[1:], "fewer_steps"]:
            tally = Tally()
            for seed, text in enumerate(
                tqdm(self.texts, desc=f"{self.kind}: {method}", unit="prompt")
            ):
                sampled = self.draw(method, text, seed, QUALITY_SIZE)
                tally.add(subject.picture(sampled.latent), shown[seed], ode[seed], sampled.computed)
            self.tallies[method] = tally

    def clock(self) -> dict[str, tuple[float, float]]:
        """Median seconds and mean computed evaluations at 512 px, methods interleaved, the model
        warm."""
        self.subject.sample(self.models["dense"], self.texts[0], 0, CLOCK_SIZE, steps=2)
        times: dict[str, list[float]] = {m: [] for m in self.tallies}
        computed: dict[str, list[float]] = {m: [] for m in self.tallies}
        number = CLOCK_REPETITIONS if len(self.texts) >= CLOCK_REPETITIONS else 1
        for prompt in tqdm(
            range(number), desc=f"{self.kind}: clock at {CLOCK_SIZE} px", unit="round"
        ):
            for method in times:
                sampled = self.draw(method, self.texts[prompt], prompt, CLOCK_SIZE)
                times[method].append(sampled.seconds)
                computed[method].append(sampled.computed)
        return {m: (median(times[m]), averaged(computed[m])) for m in times}

    def rows(self, critic: judge.Judge) -> list[Row]:
        """Quality at 256 px and the clock at 512 px, one row a method."""
        self.quality()
        clock = self.clock()
        dense_seconds, dense_computed = clock["dense"]
        out = []
        for method, tally in self.tallies.items():
            seconds, computed = clock[method]
            ordered = sorted(tally.psnr)
            out.append(
                Row(
                    suite="demo",
                    model=self.kind,
                    method=method,
                    target="half",
                    cost=averaged(tally.computed) / STEPS,
                    evaluations=STEPS,
                    computed=averaged(tally.computed),
                    seconds=seconds,
                    speedup=dense_seconds / seconds,
                    allowed_speedup=dense_computed / computed,
                    psnr=averaged(tally.psnr),
                    psnr_ode=averaged(tally.psnr_ode),
                    ssim=averaged(tally.ssim),
                    accuracy=tally.accuracy(self.chosen, critic),
                    prompts=len(self.texts),
                    ci=interval(tally.psnr),
                    equal=tally.equal,
                    psnr_p5=ordered[int(0.05 * len(ordered))] if ordered else None,
                    psnr_worst=ordered[0] if ordered else None,
                )
            )
        return out
