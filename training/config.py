"""Settings of a training: every flag of train_policy.py is a field of `TrainConfig`, and what is
written below a field is the flag's help."""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import shlex
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rapid_core.calibration.gaps import LONGEST
from rapid_core.engine.sparse import NAMES
from rapid_core.policy_file.format import MAX_SPEEDUP
from rapid_core.policy_file.heads import PLUS
from rapid_core.techniques.heads.rapid3 import HEADS, OUTPUTS
from rapid_core.techniques.heads.rapid_plus import MODES
from rapid_core.types import Aim
from training.features import FEATURES
from training.rewards import REWARDS, parsed

METHODS = ("rapid3", PLUS)  # kinds that are heads
KINDS = ("schedule", "threshold", *METHODS)
SEARCHED = ("schedule", PLUS)  # kinds that search schedules
TARGETS = {
    "full": "the full run of the same seed",
    "solution": "the run of the same seed with {parts} times the steps",
}
AIMS = {"full": Aim.FULL_PICTURE, "solution": Aim.BEST_PICTURE}  # by target
REFINED = 8  # Euler steps in each of the workflow's, for references near the solution

LR = {"rapid3": 1e-3, PLUS: 2e-3}  # learning rate unless given
# Weight of the pace head's divergence from heads that say nothing, unless given. Without it a head
# is sure before it has looked, and learns no rule that it could see (docs/lab.md).
KL = {PLUS: 0.3}
OMEGA = {"rapid3": 1.0, PLUS: 0.0}  # weight of the discriminator unless given
MORE_SCHEDULES = "give --speedups two or more, or --start with a schedule for several"


def setting(
    default: Any,
    *,
    decides: Sequence[str] = (),
    fixes: Sequence[str] = (),
    heads: bool = False,
    **flag: Any,
) -> Any:
    """A field of `TrainConfig`.

    decides: kinds whose result depends on it, so that the command on a policy's card names it;
    fixes: kinds whose state folder belongs to one value of it; heads: whether it is about heads
    alone; flag: further arguments of `argparse`."""
    return field(
        default=default,
        metadata={"decides": decides, "fixes": fixes, "heads": heads, "flag": flag},
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings as `parse` makes them of a command line. Fields that may be None have defaults that
    depend on the kind, see `resolved`."""

    workflow: Path
    """API workflow to train on"""
    prompts: Path
    """text file, one prompt a line"""
    out: str
    """name of the policy"""
    policies: Path | None = setting(None)
    """folder of the policy (default: ComfyUI's models/rapid_policies)"""
    state: Path | None = setting(None)
    """folder of what is kept between runs (default: rapid_training/NAME)"""
    comfyui: Path | None = setting(None)
    """ComfyUI's folder (default: the one this pack lies in)"""
    host_arguments: str = setting("")
    """ComfyUI's own flags in one text, with an equals sign: --host-arguments="--lowvram
    --base-directory DIR\""""
    sampler: str | None = setting(None, decides=KINDS)
    """id of the sampler node, where the workflow has several"""
    text: tuple[str, ...] = setting((), decides=KINDS, nargs="*", metavar="ID.NAME")
    """inputs that hold the prompt"""
    kind: str = setting("schedule", decides=KINDS, fixes=KINDS, choices=KINDS)
    """what is trained: a searched schedule, Cache Reuse's threshold for every speed-up, RAPID3's
    heads as published, or heads that begin with a schedule (rapid+)"""
    speedups: tuple[float, ...] = setting((2.0, 3.0, 4.0), decides=KINDS, fixes=METHODS)
    """speed-ups to make it for"""
    calibration: int = setting(
        16, decides=(*SEARCHED, "threshold"), fixes=("schedule", "threshold")
    )
    """prompts that gaps are measured on, or thresholds searched on"""
    held_out: int = setting(16, decides=KINDS, fixes=("schedule", "threshold"))
    """prompts that the result is measured on: of heads the file's last, else those after
    --calibration"""
    longest_gap: int = setting(LONGEST, decides=SEARCHED)
    """steps of the longest gap that is measured; what longer ones cost follows from it"""
    plans: int = setting(0, decides=SEARCHED)
    """schedules that are tried for each speed-up by drawing calibration prompts, beginning with the
    best one by what gaps cost (default: none, and that one is taken)"""
    start: Path | None = setting(None, decides=(PLUS,), metavar="FILE")
    """schedule file that rapid+ begins with (default: it searches one first)"""
    oracle: int = setting(0)
    """of older commands, and without effect: schedules are no longer searched for single
    pictures"""
    target: str = setting("full", decides=KINDS, fixes=KINDS, choices=("full", "solution", "dense"))
    """what pictures are to be near: the full run's, or the solution of the model's ODE, as the full
    run is itself (dense: an older word for full)"""
    heads: tuple[str, ...] = setting(
        (), decides=METHODS, fixes=METHODS, heads=True, choices=tuple(OUTPUTS), nargs="+"
    )
    """heads to train (default: rapid3 step, cache and sparse, rapid+ pace)"""
    sparse_backend: str = setting("auto", decides=METHODS, fixes=METHODS, heads=True, choices=NAMES)
    """what computes the attention that the sparse head makes sparse, in training and in use
    (default: what was measured faster than dense attention; where nothing was, that head is not
    trained)"""
    mode: str = setting("cap", decides=METHODS, fixes=METHODS, heads=True, choices=MODES)
    """rapid+: no image spends more than its budget, or images spend it in the mean (average)"""
    advantages: str | None = setting(
        None, decides=METHODS, fixes=METHODS, heads=True, choices=("values", "ranks")
    )
    """what a group's rewards count by (default: rapid3 values, as published, rapid+ ranks)"""
    train_prompts: int | None = setting(None, decides=METHODS, heads=True)
    """prompts that heads learn on (default: all but --held-out)"""
    iterations: int = setting(100, decides=METHODS, heads=True)
    """updates"""
    prompts_per_update: int = setting(4, decides=METHODS, fixes=METHODS, heads=True)
    """groups of rollouts an update"""
    group: int = setting(8, decides=METHODS, fixes=METHODS, heads=True)
    """rollouts of a prompt, from the same noise"""
    lr: float | None = setting(None, decides=METHODS, fixes=METHODS, heads=True)
    """learning rate (default: rapid3 0.001, rapid+ 0.002)"""
    kl: float | None = setting(None, decides=(PLUS,), fixes=(PLUS,), heads=True)
    """rapid+: weight of the pace head's divergence from heads that say nothing, which follow their
    schedule; 0 for none (default: 0.3)"""
    reward: tuple[str, ...] = setting(
        ("psnr",), decides=METHODS, heads=True, metavar="NAME[:WEIGHT]"
    )
    """quality of a picture: the weighted mean of some of {rewards}. psnr and decibels are of the
    latent, the others decode; lpips, imagereward and clip need packages and weights, judge prompts
    of the demo's scenes"""
    omega: float | None = setting(None, decides=METHODS, heads=True)
    """weight beside --reward of a discriminator, which learns to tell full runs' pictures from the
    policy's (default: rapid3 1, rapid+ 0, which is none)"""
    discriminator_warm_up: int = setting(100, decides=METHODS, heads=True)
    """its steps before the first update"""
    features: str = setting("auto", decides=METHODS, heads=True, choices=("auto", *FEATURES))
    """what it looks at: CLIP, the demo's training judge or fixed random convolutions (default:
    CLIP, or random without it)"""
    discount: float = setting(0.97, decides=METHODS, fixes=METHODS, heads=True)
    """rapid3: what an equivalent step costs (lambda)"""
    width: int = setting(128, decides=METHODS, fixes=METHODS, heads=True)
    """channels of the heads"""
    seed: int = setting(0, decides=KINDS, fixes=KINDS)
    """of noise and search"""
    patience: float = setting(2.0, metavar="HOURS")
    """for how long processes that were started by torchrun wait for the slowest of them"""
    licence: str = setting("unspecified")
    """of the policy file"""
    quick: bool = setting(False)
    """a few prompts and schedules: whether it runs, not how well"""

    @property
    def searches(self) -> bool:
        """Whether rapid+ searches the schedule that it begins with."""
        return self.kind == PLUS and self.start is None

    @property
    def prompts_needed(self) -> int:
        """Prompts that the file must have."""
        if self.kind not in METHODS:
            return self.calibration + self.held_out
        searched_on = self.calibration + self.held_out if self.searches else 1
        return max(searched_on, self.train_prompts or 1) + self.held_out

    @property
    def refined(self) -> int:
        """Into how many equal ones the steps of references are cut."""
        return REFINED if self.target == "solution" else 1

    @property
    def aim(self) -> Aim:
        """Which picture gaps are corrected towards, so that runs come near the target."""
        return AIMS[self.target]

    @property
    def target_in_words(self) -> str:
        """What pictures are to be near."""
        return TARGETS[self.target].format(parts=REFINED)

    @property
    def state_settings(self) -> dict[str, Any]:
        """Settings that the state folder of a training of this kind belongs to."""
        return {f.name: getattr(self, f.name) for f in _fields("fixes", self.kind)}

    @property
    def command(self) -> str:
        """The command line with all that decides the result."""
        words = ["--workflow", self.workflow.name]
        for f in _fields("decides", self.kind):
            value = getattr(self, f.name)
            search_only = f.name in ("calibration", "longest_gap", "plans")
            if value in (None, ()) or (search_only and self.kind == PLUS and not self.searches):
                continue
            values = value if isinstance(value, tuple) else (value,)
            words += [_flag(f.name), *map(_shown, values)]
        return "training/" + shlex.join(["train_policy.py", *words])

    def resolved(self) -> TrainConfig:
        """With what --quick means and with the defaults of its kind. Raises ValueError for settings
        that make no sense."""
        config = self._quicker() if self.quick else self
        default_heads = HEADS if config.kind == "rapid3" else ("pace",)
        config = replace(
            config,
            target="full" if config.target == "dense" else config.target,
            heads=config.heads or default_heads,
            advantages=config.advantages or ("ranks" if config.kind == PLUS else "values"),
            lr=LR.get(config.kind, 1.0) if config.lr is None else config.lr,
            kl=KL.get(config.kind, 0.0) if config.kl is None else config.kl,
            omega=OMEGA.get(config.kind, 0.0) if config.omega is None else config.omega,
        )
        config._check_numbers()
        config._check_heads()
        return config

    def _quicker(self) -> TrainConfig:
        return replace(
            self,
            calibration=2,
            held_out=2,
            longest_gap=2,
            plans=min(self.plans, 4),
            iterations=2,
            prompts_per_update=1,
            group=4,
            width=16,
            discriminator_warm_up=4,
            speedups=self.speedups[: 2 if self.kind == PLUS else 1],
            train_prompts=2,
        )

    def _check_numbers(self) -> None:
        speedups = self.speedups
        in_range = all(1 < speedup <= MAX_SPEEDUP for speedup in speedups)
        if not in_range or sorted(set(speedups)) != list(speedups):
            raise ValueError(
                f"--speedups {' '.join(map(str, speedups))}: give rising numbers above 1 and at "
                f"most {MAX_SPEEDUP:g}"
            )
        for name in (
            "calibration",
            "held_out",
            "longest_gap",
            "iterations",
            "prompts_per_update",
            "width",
            "train_prompts",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_flag(name)} {value}: give 1 or more")
        assert self.omega is not None and self.lr is not None and self.kl is not None
        if not 0 <= self.omega < math.inf or self.discriminator_warm_up < 0:
            raise ValueError("--omega and --discriminator-warm-up must be 0 or more")
        try:
            parsed(self.reward)
        except ValueError as error:
            raise ValueError(f"--reward: {error}") from None
        positive = self.lr > 0 and self.patience > 0
        if self.group < 2 or not 0 < self.discount < 1 or not positive or self.plans < 0:
            raise ValueError(
                "--group must be 2 or more, --discount between 0 and 1, --lr and --patience above 0, "
                "--plans 0 or more"
            )
        if self.kind != PLUS and self.start is not None:
            raise ValueError(f"--start is what rapid+ begins with; --kind {self.kind} needs none")
        if not 0 <= self.kl < math.inf or (self.kl and self.kind != PLUS):
            raise ValueError(f"--kl {self.kl:g}: give 0 or more, and that with --kind rapid+ alone")
        if self.kind == "rapid3" and self.mode != "cap":
            raise ValueError(f"--mode {self.mode} is of rapid+; --kind rapid3 has no budgets")

    def _check_heads(self) -> None:
        foreign = "step" if self.kind == PLUS else "pace"
        if self.kind in METHODS and foreign in self.heads:
            raise ValueError(
                f"--heads {' '.join(self.heads)}: rapid3 has step, cache and sparse, rapid+ pace in "
                "place of step"
            )
        if self.kind == PLUS and "pace" not in self.heads:
            raise ValueError(
                f"--heads {' '.join(self.heads)}: rapid+ begins with a schedule, which the pace head "
                "leaves; name pace, too"
            )
        if self.searches and len(self.speedups) < 2 and self.heads == ("pace",):
            raise ValueError(
                f"--speedups {min(self.speedups):g}: the pace head chooses among the schedules of "
                f"several speed-ups; {MORE_SCHEDULES}"
            )


def parse(flags: Sequence[str] | None = None, description: str | None = None) -> TrainConfig:
    """Settings of a command line, of this process's for None. Raises SystemExit for what makes no
    sense."""
    given = vars(parser(description).parse_args(flags))
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    try:
        return TrainConfig(**values).resolved()
    except ValueError as error:
        raise SystemExit(str(error)) from None


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """A flag a field."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    heads = made.add_argument_group("heads")
    types = typing.get_type_hints(TrainConfig)
    texts = field_docs(TrainConfig)
    for f in fields(TrainConfig):
        help_text = texts[f.name].replace("{rewards}", ", ".join(REWARDS))
        options: dict[str, Any] = {"help": help_text.replace("%", "%%")}
        if types[f.name] is bool:
            options["action"] = "store_true"
        else:
            options["type"] = _scalar(types[f.name])
            if _is_tuple(types[f.name]):
                options["nargs"] = "+"
        if f.default is MISSING:
            options["required"] = True
        else:
            options["default"] = f.default
        group = heads if f.metadata.get("heads") else made
        group.add_argument(_flag(f.name), **{**options, **f.metadata.get("flag", {})})
    return made


def field_docs(cls: type) -> dict[str, str]:
    """What is written below each field of a dataclass, as one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, below in pairwise(definition.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            docs[ast.unparse(statement.target)] = " ".join(text.split())
    return docs


def _fields(role: str, kind: str) -> list[Field]:
    return [f for f in fields(TrainConfig) if kind in f.metadata.get(role, ())]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parts(annotation: Any) -> list[Any]:
    """The types in an annotation but None and `...`, outermost first."""
    inner = [a for a in typing.get_args(annotation) if a not in (type(None), ...)]
    return [annotation] if not inner else [typing.get_origin(annotation), *_parts(inner[0])]


def _is_tuple(annotation: Any) -> bool:
    return tuple in _parts(annotation)


def _scalar(annotation: Any) -> type:
    return _parts(annotation)[-1]


def _shown(value: object) -> str:
    # Where a file lies is nobody's business.
    return value.name if isinstance(value, Path) else str(value)
