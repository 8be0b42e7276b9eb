"""A suite: methods by prompts on a demo model, picture by picture, resumable; quality rows at the
end.

Every picture's figures are one line of `<out>/<suite>-<model>.jsonl`; a suite that was stopped goes
on where it was. What was fitted once, and the weights it all holds for, lie in
`<out>/<suite>-<model>.json`, references (the full and the converged latents) in
`<out>/references`, what the judge sees in each picture in `<out>/features`."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation import fid
from evaluation.batches import BATCH, batches
from evaluation.decisions import Decision, closeness, decisions, reasons
from evaluation.files import replaced, write_text
from evaluation.judges import PictureJudge
from evaluation.references import References
from evaluation.rows import Row, Spread, averaged, interval, psnr, ssim
from evaluation.subjects import Subject
from rapid_core.types import Mode

VERSION = 2  # of the log
CostOf = Callable[[list[Decision]], float]
GOALS = {"full": "psnr", "converged": "psnr_ode"}  # of pictures, and their figure


@dataclass(frozen=True)
class Scale:
    """How large pictures are, and how exact their converged reference."""

    size: int = 256
    """Pixels."""
    ode_steps: int = 100
    """Steps of ipndm, fourth order: within 67 dB of Heun's twice as many evaluations on the same
    steps, while other 200 steps of Heun's are at 62 to 66 dB of them."""
    width: int | None = None
    """Pixels, where `size` is the height alone."""


QUICK = Scale(128, 10)  # to see whether a suite runs


def unchanged(model: Any) -> Any:
    """The patch of a method without any."""
    return model


@dataclass(frozen=True)
class FullRun:
    """A run with every evaluation computed, whose pictures those of others are compared with."""

    sampler: str = "euler"
    steps: int | None = None
    """None: the suite's."""
    alone: bool = False
    """Whether each picture is drawn in a run of its own, since the noise that some samplers add
    depends on the batch."""


@dataclass(frozen=True)
class Method:
    """How pictures are drawn."""

    name: str
    target: str
    """What it is compared at, e.g. "0.5"."""
    patch: Callable[[Any], Any] = unchanged
    """Patch of the model."""
    steps: int | None = None
    """None: the suite's."""
    sampler: str = "euler"
    reference: FullRun = FullRun()
    """Compared with where it is of the same sampler: other samplers have other full pictures."""
    each: Callable[[Any, list[int]], Any] | None = None
    """In place of `patch`: of the model and the numbers of pictures drawn together."""
    batch: int = BATCH
    """Pictures a run."""
    noise: int = 0
    """Added to the seeds, so that pictures are other ones of the same prompts."""
    late: bool = False
    """Whether it is drawn when all others are."""

    @property
    def key(self) -> str:
        """Name of the method's lines in the log."""
        return f"{self.name}/{self.target}"


def picked(methods: list[Method], names: Sequence[str] | None) -> list[Method]:
    """The methods of these names (None: all), and the full run."""
    return [m for m in methods if names is None or m.name in ("full", *names)]


@dataclass(frozen=True)
class Picture:
    """Figures of one picture."""

    method: str
    """Key of a `Method`."""
    seed: int
    """Number of the prompt."""
    decisions: list[Decision]
    """Of every evaluation."""
    seconds: float
    psnr: float | None
    """To the full picture; None where it is equal, or of another sampler or noise."""
    psnr_ode: float | None
    """To the converged picture."""
    ssim: float | None
    right: int
    """Of the `named` things that the prompt names and the judge sees."""
    named: int
    equal: bool
    """Whether it equals the full picture."""
    reasons: list[str] = field(default_factory=list)
    """What the run's record says of it, in words."""
    closeness: float | None = None
    """PSNR in dB to the full picture as the run itself predicts it; None where it does not."""

    @classmethod
    def read(cls, line: str) -> Picture:
        """A line of the log."""
        picture = cls(**json.loads(line))
        return replace(picture, decisions=[Decision(*d) for d in picture.decisions])


@dataclass(frozen=True)
class Drawn:
    """Some pictures that were drawn in one run."""

    latents: Tensor
    """(B, 16, h, w)."""
    seconds: float
    """A picture."""
    computed: int
    """Evaluations of a picture that passed the blocks."""


class Suite:
    """Draws what is missing and reads what is there. steps: None for the model's."""

    def __init__(
        self,
        name: str,
        subject: Subject,
        judge: PictureJudge,
        out: Path,
        scale: Scale = Scale(),
        steps: int | None = None,
    ):
        self.name = name
        self.subject = subject
        self.judge = judge
        self.out = out
        self.scale = scale
        self.kind = subject.family.kind
        self.steps = steps or subject.family.steps
        self.prompts = judge.prompts
        self.references = References(out / "references", self.kind)
        (out / "features").mkdir(parents=True, exist_ok=True)
        self.log = out / f"{name}-{self.kind}.jsonl"
        # Of the log: its size, and what it says.
        self._read: tuple[int, dict[tuple[str, int], Picture]] = (0, {})
        self._mend()
        self._check()

    def _mend(self) -> None:
        """Take half a line off the end of the log: the suite was stopped while it wrote it."""
        if not self.log.exists():
            return
        text = self.log.read_bytes()
        if not text.endswith(b"\n"):
            self.log.write_bytes(text[: text.rfind(b"\n") + 1])

    def _check(self) -> None:
        """Refuse a folder whose figures are not those of this suite."""
        if self.log.exists() and "version" not in self._state():
            raise self._refusal("of an older version of RAPID")
        weights = hashlib.sha256(self.subject.weights.read_bytes()).hexdigest()
        if self.once("weights", lambda: weights) != weights:
            raise self._refusal(f"of other {self.kind} weights")
        scale = {name: value for name, value in asdict(self.scale).items() if value is not None}
        if self.once("scale", lambda: scale) != scale:
            raise self._refusal("of pictures of another size")
        if self.once("version", lambda: VERSION) != VERSION:
            raise self._refusal("of another version of RAPID")

    def _refusal(self, what: str) -> SystemExit:
        return SystemExit(f"{self.out} holds figures {what}; use another --out or delete it")

    def _state(self) -> dict[str, Any]:
        path = self.log.with_suffix(".json")
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What `find` gives, in JSON form; kept, so that a suite that goes on goes on with the
        same."""
        state = self._state()
        if name not in state:
            value = find()
            # Another process may have added something in the meantime.
            state = {**self._state(), name: value}
            write_text(self.log.with_suffix(".json"), json.dumps(state, indent=1) + "\n")
        return state[name]

    def done(self) -> list[Picture]:
        """Pictures in the log; of one that two processes drew the latter."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if self._read[0] != size:  # some 10 MB of lines, asked for pair by pair
            lines = self.log.read_text(encoding="utf-8").splitlines()
            pictures = [Picture.read(line) for line in lines]
            self._read = (size, {(p.method, p.seed): p for p in pictures})
        return list(self._read[1].values())

    def latents(self, kind: str, method: Method, numbers: list[int]) -> Tensor:
        """Latents of the reference `kind`, drawn once, as `method` draws them."""
        missing = self.references.missing(kind, numbers)
        for group in batches(missing, method.batch):
            drawn = self._draw(method, self.subject.model, group)
            self.references.keep(kind, group, drawn.latents)
        return self.references.read(kind, numbers)

    def _shown(self, kind: str, method: Method, numbers: list[int]) -> list[Tensor]:
        self.latents(kind, method, numbers)  # drawn where they are missing
        return [self.references.picture(kind, n, self.subject.picture) for n in numbers]

    def _kind(self, run: FullRun) -> str:
        """The name by which references of a full run are kept: "full" that of the model's."""
        steps = run.steps or self.steps
        alone = "_alone" if run.alone else ""
        if run.sampler == "euler" and steps == self.subject.family.steps:
            return f"full{alone}"
        return f"full_{run.sampler}_{steps}{alone}"

    def _is_full(self, method: Method) -> bool:
        """Whether a method draws its own reference."""
        patched = method.patch is not unchanged or method.each is not None or method.noise
        run = method.reference
        same = (method.sampler, method.steps or self.steps, method.batch == 1) == (
            run.sampler,
            run.steps or self.steps,
            run.alone,
        )
        return same and not patched

    def _draw(self, method: Method, model: Any, numbers: list[int]) -> Drawn:
        """Pictures of these prompts in one run."""
        sampled = self.subject.sample_many(
            model,
            [self.prompts[n] for n in numbers],
            [n + method.noise for n in numbers],
            self.scale.size,
            method.steps or self.steps,
            method.sampler,
            self.scale.width,
        )
        computed = round(sampled.computed / len(numbers))
        return Drawn(sampled.latent, sampled.seconds / len(numbers), computed)

    def run(
        self, methods: list[Method], share: tuple[int, int] = (0, 1), first: int | None = None
    ) -> None:
        """Draw every picture that is not in the log yet, a few prompts at a time with all methods,
        so that a suite that is stopped has them all of the same prompts; those that follow the
        pictures of others (`late`) come last. share: (number, of how many) of the process, where
        several draw for one log; first: prompts that are drawn, None for all."""
        jobs = self._jobs(methods, share, len(self.prompts) if first is None else first)
        models = {method.key: method.patch(self.subject.model) for method, _ in jobs}
        with tqdm(
            total=sum(len(numbers) for _, numbers in jobs),
            desc=f"{self.name} {self.kind}",
            unit="picture",
        ) as bar:
            for method, numbers in jobs:
                for group in batches(numbers, method.batch):
                    model = models[method.key]
                    if method.each:
                        model = method.each(self.subject.model, group)
                    self._append(self._figures(method, model, group))
                    bar.update(len(group))

    def _jobs(
        self, methods: list[Method], share: tuple[int, int], first: int
    ) -> list[tuple[Method, list[int]]]:
        """Methods and the pictures of each that are to be drawn, in order."""
        there = {(p.method, p.seed) for p in self.done()}
        parts = batches(range(min(first, len(self.prompts))))[share[0] :: share[1]]
        jobs = []
        for late in (False, True):
            now = [method for method in methods if method.late == late]
            for part, method in itertools.product(parts, now):
                missing = [n for n in part if (method.key, n) not in there]
                if missing:
                    jobs.append((method, missing))
        return jobs

    def _append(self, pictures: list[Picture]) -> None:
        with open(self.log, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(p)) + "\n" for p in pictures)

    def _figures(self, method: Method, model: Any, numbers: list[int]) -> list[Picture]:
        drawn = self._draw(method, model, numbers)
        run = method.reference
        kind = self._kind(run)
        if self._is_full(method):
            self.references.keep(kind, numbers, drawn.latents)
        batch = 1 if run.alone else BATCH
        full_run = Method("full", "1.0", steps=run.steps, sampler=run.sampler, batch=batch)
        full = self._shown(kind, full_run, numbers)
        converged = Method("ode", "1.0", steps=self.scale.ode_steps, sampler="ipndm")
        ode = self._shown("ode", converged, numbers)
        pictures = []
        for row, n in enumerate(numbers):
            picture = self.subject.picture(drawn.latents[row][None])
            right, named = self.judge.right(picture, n)
            features = self.judge.features(picture).half()
            replaced(self._features_file(method.key, n), partial(torch.save, features))
            equal = torch.equal(picture, full[row])
            comparable = method.sampler == run.sampler and not method.noise and not equal
            pictures.append(
                Picture(
                    method=method.key,
                    seed=n,
                    decisions=decisions(model, row, drawn.computed),
                    seconds=drawn.seconds,
                    psnr=psnr(picture, full[row]) if comparable else None,
                    psnr_ode=None if method.noise else psnr(picture, ode[row]),
                    ssim=ssim(picture, full[row]) if comparable else None,
                    right=right,
                    named=named,
                    equal=equal,
                    reasons=reasons(model),
                    closeness=closeness(model, row),
                )
            )
        return pictures

    def _features_file(self, method: str, number: int) -> Path:
        """Where the judge's features of a picture lie."""
        name = method.replace("/", "-")
        return self.out / "features" / f"{self.name}-{self.kind}-{name}-{number}.pt"

    @cached_property
    def true_features(self) -> Tensor:
        """The judge's features of true pictures."""
        return self.judge.true_features(self.scale.size)

    def rows(self, cost_of: CostOf) -> list[Row]:
        """One row a method, in the order of the log; cost_of: cost of decisions in full
        evaluations."""
        groups: dict[str, list[Picture]] = {}
        for picture in self.done():
            groups.setdefault(picture.method, []).append(picture)
        return [self._row(key, pictures, cost_of) for key, pictures in groups.items()]

    def _row(self, key: str, pictures: list[Picture], cost_of: CostOf) -> Row:
        method, target = key.split("/")
        cost = sum(cost_of(p.decisions) for p in pictures) / len(pictures) / self.steps
        files = [self._features_file(p.method, p.seed) for p in pictures]
        features = torch.cat([torch.load(file, weights_only=True) for file in files])
        near = Spread.of([p.psnr for p in pictures if p.psnr is not None])

        def count(*modes: Mode) -> float | None:
            names = [mode.value for mode in modes]
            return averaged([sum(d.mode in names for d in p.decisions) for p in pictures])

        return Row(
            suite=self.name,
            model=self.kind,
            method=method,
            target=target,
            cost=cost,
            evaluations=count(*Mode),
            computed=count(Mode.RUN),
            reused=count(Mode.REUSE),
            skipped=count(Mode.SKIP),
            seconds=averaged([p.seconds for p in pictures]),
            speedup_theoretical=1 / cost,
            psnr=near.mean,
            psnr_ode=averaged([p.psnr_ode for p in pictures]),
            ssim=averaged([p.ssim for p in pictures]),
            accuracy=sum(p.right for p in pictures) / sum(p.named for p in pictures),
            fid=fid.distance(features, self.true_features),
            prompts=len(pictures),
            ci=near.ci,
            equal=sum(p.equal for p in pictures),
            psnr_p5=near.p5,
            psnr_worst=near.worst,
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

    def paired(self, owns: Sequence[str], targets: Iterable[str]) -> list[dict[str, Any]]:
        """Paired differences in dB of our methods to all others at the same target, with their 95 %
        intervals; rows as docs/results has them."""
        there = sorted({p.method for p in self.done()})
        rows = []
        for target, own, goal in itertools.product(targets, owns, GOALS):
            key = f"{own}/{target}"
            others = [m for m in there if m.endswith(f"/{target}") and m != key]
            rows += [self.pair(key, other, goal) for other in others]
        return [row for row in rows if row is not None]

    def pair(self, one: str, other: str, goal: str) -> dict[str, Any] | None:
        """The paired difference of two methods (keys) at one target; None where it has no interval.
        goal: one of GOALS, what they are near to."""
        differences = self.differences(one, other, GOALS[goal])
        span = interval(differences)
        if span is None:
            return None
        method, target = one.split("/")
        return {
            "suite": self.name,
            "model": self.kind,
            "target": target,
            "method": method,
            "against": other.split("/")[0],
            "to": goal,
            "prompts": len(differences),
            "difference": round(mean(differences), 2),
            "ci": [round(end, 2) for end in span],
        }

    def verdicts(self, owns: Sequence[str], targets: Iterable[str]) -> list[str]:
        """`paired` in words."""
        return [
            f"{row['model']}: {row['method']}/{row['target']} - {row['against']}, to the "
            f"{row['to']} picture: {row['difference']:+.2f} dB "
            f"({row['ci'][0]:+.2f} .. {row['ci'][1]:+.2f})"
            for row in self.paired(owns, targets)
        ]
