"""A suite: methods by prompts on a demo model, picture by picture, resumable; quality rows at the
end.

Every picture's figures are one line of `<out>/<suite>-<model>.jsonl`; a suite that was stopped goes
on where it was. What was fitted once, and the weights it all holds for, lie in
`<out>/<suite>-<model>.json`, references (the dense and the converged latents) in
`<out>/references`, what the judge sees in each picture in `<out>/features`."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import fid
from benchmarks.costs import Decision, decisions
from benchmarks.parts import BATCH, batches
from benchmarks.references import References
from benchmarks.rows import Row, averaged, interval, psnr, ssim
from benchmarks.subject import Subject
from demo import judge, rules
from demo.scenes import Scenes
from training.files import replaced, write_text

DENSE = "dense/1.0"  # key of the method that is the reference of the others
MODELS = Path(__file__).parent.parent / "demo" / "models" / "diffusion_models"
CostOf = Callable[[list[Decision]], float]


@dataclass(frozen=True)
class Scale:
    """Side of the pictures in pixels, and steps of the converged reference (ipndm, fourth order:
    within 67 dB of Heun's twice as many evaluations on the same steps, while other 200 steps of
    Heun's are at 62 to 66 dB of them)."""

    size: int = 256
    ode_steps: int = 100


@dataclass(frozen=True)
class Method:
    """How pictures are drawn: a patch of the model, or `each` of the model and the numbers of
    pictures drawn together; steps (None: the model's) and sampler; batch: pictures a run; noise:
    added to the seeds, so that pictures are other ones of the same prompts; late: drawn when all
    others are. target: what it is compared at, e.g. "0.5"."""

    name: str
    target: str
    patch: Callable[[Any], Any] = lambda model: model
    steps: int | None = None
    sampler: str = "euler"
    each: Callable[[Any, list[int]], Any] | None = None
    batch: int = BATCH
    noise: int = 0
    late: bool = False

    @property
    def key(self) -> str:
        """Name of the method's lines in the log."""
        return f"{self.name}/{self.target}"


def picked(methods: list[Method], names: Sequence[str] | None) -> list[Method]:
    """The methods of these names (None: all), and dense."""
    return [m for m in methods if names is None or m.name in ("dense", *names)]


@dataclass(frozen=True)
class Picture:
    """Figures of one picture. decisions: of every evaluation; right: of `named` colours,
    backgrounds and shapes."""

    method: str
    seed: int
    decisions: list[Decision]
    seconds: float
    psnr: float | None
    psnr_ode: float | None
    ssim: float | None
    right: int
    named: int
    equal: bool


class Suite:
    """Draws what is missing and reads what is there."""

    def __init__(
        self, name: str, subject: Subject, chosen: Scenes, out: Path, scale: Scale = Scale()
    ):
        self.name, self.subject, self.chosen, self.out, self.scale = (
            name,
            subject,
            chosen,
            out,
            scale,
        )
        self.kind, self.steps = subject.family.kind, subject.family.steps
        self.texts = chosen.prompts()
        self.critic = judge.load()
        self.references = References(out / "references", self.kind)
        (out / "features").mkdir(parents=True, exist_ok=True)
        self.log = out / f"{name}-{self.kind}.jsonl"
        self._read: tuple[int, dict[tuple[str, int], Picture]] = (
            0,
            {},
        )  # of the log: its size, and what it says
        if self.log.exists() and not (whole := self.log.read_bytes()).endswith(
            b"\n"
        ):  # stopped while it wrote a line
            self.log.write_bytes(whole[: whole.rfind(b"\n") + 1])
        weights = hashlib.sha256((MODELS / f"{self.kind}.safetensors").read_bytes()).hexdigest()
        if self.once("weights", lambda: weights) != weights:
            raise SystemExit(
                f"{out} holds figures of other {self.kind} weights; use another --out or delete it"
            )
        if self.once("scale", lambda: asdict(scale)) != asdict(scale):
            raise SystemExit(
                f"{out} holds figures of pictures of another size; use another --out or delete it"
            )

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What `find` gives, in JSON form; kept, so that a suite that goes on goes on with the
        same."""
        path = self.log.with_suffix(".json")
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if name not in kept:
            found, again = (
                find(),
                path.exists(),
            )  # another process may have found something in the meantime
            kept = {**(json.loads(path.read_text(encoding="utf-8")) if again else {}), name: found}
            write_text(path, json.dumps(kept, indent=1) + "\n")
        return kept[name]

    def done(self) -> list[Picture]:
        """Pictures in the log; of one that two processes drew the latter."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if self._read[0] != size:  # some 10 MB of lines, asked for pair by pair
            lines = self.log.read_text(encoding="utf-8").splitlines()
            self._read = (
                size,
                {(p.method, p.seed): p for p in (Picture(**json.loads(line)) for line in lines)},
            )
        return list(self._read[1].values())

    def latents(self, kind: str, numbers: list[int]) -> Tensor:
        """Reference latents, drawn once: "dense" or "ode"."""
        missing = self.references.missing(kind, numbers)
        if missing:
            steps, sampler = (
                (self.steps, "euler") if kind == "dense" else (self.scale.ode_steps, "ipndm")
            )
            self.references.keep(
                kind, missing, self.draw(self.subject.model, missing, steps, sampler)[0]
            )
        return self.references.read(kind, numbers)

    def _shown(self, kind: str, numbers: list[int]) -> list[Tensor]:
        self.latents(kind, numbers)  # drawn where they are missing
        return [self.references.picture(kind, n, self.subject.picture) for n in numbers]

    def draw(
        self, model: Any, numbers: list[int], steps: int, sampler: str, noise: int = 0
    ) -> tuple[Tensor, float, int]:
        """Latents of these prompts, seconds a picture, and evaluations that passed the blocks."""
        texts, seeds = [self.texts[n] for n in numbers], [n + noise for n in numbers]
        sampled = self.subject.sample_many(model, texts, seeds, self.scale.size, steps, sampler)
        return (
            sampled.latent,
            sampled.seconds / len(numbers),
            round(sampled.computed / len(numbers)),
        )

    def run(self, methods: list[Method], share: tuple[int, int] = (0, 1)) -> None:
        """Draw every picture that is not in the log yet, a few prompts at a time with all methods,
        so that a suite that is stopped has them all of the same prompts; those that follow the
        pictures of others (`late`) come last. share: (number, of how many) of the process, where
        several draw for one log."""
        there = {(p.method, p.seed) for p in self.done()}
        parts = batches(range(len(self.texts)))[share[0] :: share[1]]
        first, last = ([m for m in methods if m.late == late] for late in (False, True))
        jobs = [
            (m, some)
            for stage in (first, last)
            for part in parts
            for m in stage
            if (some := [n for n in part if (m.key, n) not in there])
        ]
        models = {m.key: m.patch(self.subject.model) for m, _ in jobs}
        with tqdm(
            total=sum(len(some) for _, some in jobs),
            desc=f"{self.name} {self.kind}",
            unit="picture",
        ) as bar:
            for method, numbers in jobs:
                for group in batches(numbers, method.batch):
                    own = (
                        method.each(self.subject.model, group)
                        if method.each
                        else models[method.key]
                    )
                    self._append(self._figures(method, own, group))
                    bar.update(len(group))

    def _append(self, pictures: list[Picture]) -> None:
        with open(self.log, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(p)) + "\n" for p in pictures)

    def _figures(self, method: Method, model: Any, numbers: list[int]) -> list[Picture]:
        steps = method.steps or self.steps
        latents, seconds, computed = self.draw(model, numbers, steps, method.sampler, method.noise)
        if method.key == DENSE:
            self.references.keep("dense", numbers, latents)
        dense, ode = self._shown("dense", numbers), self._shown("ode", numbers)
        out, comparable = [], method.sampler == "euler" and not method.noise
        for row, n in enumerate(numbers):
            picture = self.subject.picture(latents[row][None])
            right, named = self._right(picture, n)
            seen = judge.features(self.critic, picture[None])[0].half()
            replaced(self._seen(method.key, n), partial(torch.save, seen))
            equal = torch.equal(picture, dense[row])
            out.append(
                Picture(
                    method.key,
                    n,
                    decisions(model, row, computed),
                    seconds,
                    psnr(picture, dense[row]) if comparable and not equal else None,
                    None if method.noise else psnr(picture, ode[row]),
                    ssim(picture, dense[row]) if comparable and not equal else None,
                    right,
                    named,
                    equal,
                )
            )
        return out

    def _right(self, picture: Tensor, number: int) -> tuple[int, int]:
        """How many of the colours, backgrounds and shapes of a prompt the picture shows, and how
        many there are."""
        scene = self.chosen.take([number])
        colours, grounds = rules.colours_right(picture[None], scene)
        shapes, index = judge.shapes(self.critic, picture[None], scene)
        found = [colours, grounds, shapes == scene.shape[index[:, 0], index[:, 1]]]
        return sum(int(part.sum()) for part in found), sum(part.numel() for part in found)

    def _seen(self, method: str, seed: int) -> Path:
        """Where the judge's features of a picture lie."""
        return (
            self.out / "features" / f"{self.name}-{self.kind}-{method.replace('/', '-')}-{seed}.pt"
        )

    @cached_property
    def true_features(self) -> Tensor:
        """The judge's features of the scenes themselves."""
        return fid.true_features(self.critic, self.chosen, self.scale.size)

    def rows(self, cost_of: CostOf) -> list[Row]:
        """One row a method, in the order of the log; cost_of: cost of decisions as a share of
        dense."""
        groups: dict[str, list[Picture]] = {}
        for picture in self.done():
            groups.setdefault(picture.method, []).append(picture)
        return [self._row(*key.split("/"), pictures, cost_of) for key, pictures in groups.items()]

    def _row(self, method: str, target: str, pictures: list[Picture], cost_of: CostOf) -> Row:
        near = [p.psnr for p in pictures if p.psnr is not None]
        ordered = sorted(near)
        cost = (
            sum(cost_of([Decision(*d) for d in p.decisions]) for p in pictures)
            / len(pictures)
            / self.steps
        )
        seen = torch.cat(
            [torch.load(self._seen(p.method, p.seed), weights_only=True) for p in pictures]
        )

        def count(*levels):
            return averaged([sum(d[0] in levels for d in p.decisions) for p in pictures])

        return Row(
            suite=self.name,
            model=self.kind,
            method=method,
            target=target,
            cost=cost,
            evaluations=count("run", "reuse", "hold"),
            computed=count("run"),
            reused=count("reuse"),
            held=count("hold"),
            seconds=averaged([p.seconds for p in pictures]),
            allowed_speedup=1 / cost,
            psnr=averaged(near),
            psnr_ode=averaged([p.psnr_ode for p in pictures]),
            ssim=averaged([p.ssim for p in pictures]),
            accuracy=sum(p.right for p in pictures) / sum(p.named for p in pictures),
            prompts=len(pictures),
            fid=fid.distance(seen, self.true_features),
            ci=interval(near),
            equal=sum(p.equal for p in pictures),
            psnr_p5=ordered[int(0.05 * len(ordered))] if ordered else None,
            psnr_worst=ordered[0] if ordered else None,
        )

    def differences(self, one: str, other: str, figure: str = "psnr_ode") -> list[float]:
        """Paired differences of two methods (keys), prompt by prompt."""
        values: dict[str, dict[int, float]] = {one: {}, other: {}}
        for p in self.done():
            value = getattr(p, figure)
            if p.method in values and value is not None:
                values[p.method][p.seed] = value
        return [
            values[one][seed] - values[other][seed]
            for seed in sorted(values[one].keys() & values[other].keys())
        ]

    def verdicts(self, owns: Sequence[str], targets: Iterable[str]) -> list[str]:
        """Paired differences of our methods to all others at the same target, with their 95 %
        intervals."""
        lines, there = [], {p.method for p in self.done()}
        for target, own, figure in itertools.product(targets, owns, ("psnr", "psnr_ode")):
            key = f"{own}/{target}"
            for other in sorted(m for m in there if m.endswith(f"/{target}") and m != key):
                found = self.differences(key, other, figure)
                span = interval(found)
                if span:
                    lines.append(
                        f"{self.kind}: {key} - {other}, {figure}: {mean(found):+.2f} dB "
                        f"({span[0]:+.2f} .. {span[1]:+.2f})"
                    )
        return lines
