"""The demo's table: the full run, RAPID Accelerate as it comes, Cache Reuse, the host's EasyCache and
LazyCache, and fewer steps, in one run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from demo.scene_judge import SceneJudge
from evaluation.batches import batches
from evaluation.rows import Row, Spread, averaged, psnr, ssim
from evaluation.subjects import FAMILIES, STEPS, Sampled, Subject, patcher

THRESHOLDS = Path(__file__).parent / "thresholds.json"
QUALITY_SIZE = 256  # pixels
CLOCK_SIZE = 512
ODE_STEPS = 100  # of Heun: 200 evaluations, second order
CLOCK_REPETITIONS = 5  # with as many prompts or more; once otherwise
SPEEDUP = 2.0  # as RAPID Accelerate comes
CACHES = ("cache_reuse", "easycache", "lazycache")


def thresholds(kind: str) -> dict[str, float]:
    """Thresholds that leave about half of 28 evaluations, fitted once on 16 development prompts
    (demo/fit.py)."""
    fitted = json.loads(THRESHOLDS.read_text(encoding="utf-8"))[kind]
    return {method: figures["threshold"] for method, figures in fitted.items()}


@dataclass
class Tally:
    """What one method drew, picture by picture."""

    psnr: list[float] = field(default_factory=list)
    psnr_ode: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)
    right: int = 0
    named: int = 0
    equal: int = 0

    def add(self, picture: Tensor, full: Tensor, ode: Tensor, computed: float) -> None:
        """One picture (3, H, W) beside the full and the converged one."""
        same = torch.equal(picture, full)
        self.equal += same
        if not same:
            self.psnr.append(psnr(picture, full))
            self.ssim.append(ssim(picture, full))
        self.psnr_ode.append(psnr(picture, ode))
        self.computed.append(computed)

    def judged(self, right: int, named: int) -> None:
        """What a picture shows of what its prompt names."""
        self.right += right
        self.named += named


class Measurement:
    """All methods on one demo model."""

    def __init__(self, comfy: Any, kind: str, number: int):
        """number: of prompts."""
        self.subject = Subject(comfy, FAMILIES[kind])
        self.kind = kind
        self.judge = SceneJudge.of(self.subject.weights, number)
        self.prompts = self.judge.prompts
        fitted = thresholds(kind)
        base = self.subject.model
        given = {"speedup": SPEEDUP, "policy_file": "none"}
        (accelerated,) = comfy.run_node("RAPID_Accelerate", model=base, **given)
        self.models = {"full": base, "accelerate": accelerated}
        for cache in CACHES:
            self.models[cache] = patcher(comfy, cache, fitted[cache])(base)
        self.tallies: dict[str, Tally] = {}

    def draw(self, method: str, number: int, size: int) -> Sampled:
        """One picture of a method; `fewer_steps` takes as many steps as RAPID Accelerate computed on
        average, rounded up."""
        prompt = self.prompts[number]
        if method == "fewer_steps":
            steps = max(2, math.ceil(mean(self.tallies["accelerate"].computed)))
            return self.subject.sample(self.models["full"], prompt, number, size, steps=steps)
        return self.subject.sample(self.models[method], prompt, number, size)

    def converged(self) -> list[Tensor]:
        """Pictures of the converged ODE, drawn several at a time."""
        pictures = []
        groups = batches(range(len(self.prompts)))
        for numbers in tqdm(groups, desc=f"{self.kind}: converged", unit="batch"):
            latents = self.subject.sample_many(
                self.models["full"],
                [self.prompts[n] for n in numbers],
                numbers,
                QUALITY_SIZE,
                ODE_STEPS,
                "heun",
            ).latent
            pictures += [self.subject.picture(latent[None]) for latent in latents]
        return pictures

    def quality(self) -> None:
        """Every method on every prompt at 256 px, beside the full and the converged picture."""
        converged = self.converged()
        full: list[Tensor] = []
        for method in [*self.models, "fewer_steps"]:
            tally = Tally()
            bar = tqdm(range(len(self.prompts)), desc=f"{self.kind}: {method}", unit="prompt")
            for number in bar:
                sampled = self.draw(method, number, QUALITY_SIZE)
                picture = self.subject.picture(sampled.latent)
                if method == "full":
                    full.append(picture)
                tally.add(picture, full[number], converged[number], sampled.computed)
                tally.judged(*self.judge.right(picture, number))
            self.tallies[method] = tally

    def clock(self) -> dict[str, tuple[float, float]]:
        """Median seconds and mean computed evaluations at 512 px, methods interleaved, the model
        warm."""
        self.subject.sample(self.models["full"], self.prompts[0], 0, CLOCK_SIZE, steps=2)
        times: dict[str, list[float]] = {m: [] for m in self.tallies}
        computed: dict[str, list[float]] = {m: [] for m in self.tallies}
        rounds = CLOCK_REPETITIONS if len(self.prompts) >= CLOCK_REPETITIONS else 1
        for number in tqdm(
            range(rounds), desc=f"{self.kind}: clock at {CLOCK_SIZE} px", unit="round"
        ):
            for method in times:
                sampled = self.draw(method, number, CLOCK_SIZE)
                times[method].append(sampled.seconds)
                computed[method].append(sampled.computed)
        return {m: (median(times[m]), mean(computed[m])) for m in times}

    def rows(self) -> list[Row]:
        """Quality at 256 px and the clock at 512 px, one row a method."""
        self.quality()
        clock = self.clock()
        full_seconds, full_computed = clock["full"]
        rows = []
        for method, tally in self.tallies.items():
            seconds, computed = clock[method]
            near = Spread.of(tally.psnr)
            rows.append(
                Row(
                    suite="demo",
                    model=self.kind,
                    method=method,
                    target="half",
                    cost=mean(tally.computed) / STEPS,
                    evaluations=STEPS,
                    computed=mean(tally.computed),
                    seconds=seconds,
                    speedup_measured=full_seconds / seconds,
                    speedup_theoretical=full_computed / computed,
                    psnr=near.mean,
                    psnr_ode=mean(tally.psnr_ode),
                    ssim=averaged(tally.ssim),
                    accuracy=tally.right / tally.named,
                    prompts=len(self.prompts),
                    ci=near.ci,
                    equal=tally.equal,
                    psnr_p5=near.p5,
                    psnr_worst=near.worst,
                )
            )
        return rows
