"""What is trained: RAPID3's heads as published, or heads that begin with a plan (`rapid+`)."""

from __future__ import annotations

import hashlib
import math
from argparse import Namespace
from collections.abc import Sequence
from statistics import mean
from typing import Any, Protocol

import torch
from torch import nn

from rapid_core.policy_file.format import PolicyFile
from rapid_core.policy_file.policies import (
    PLUS,
    head_metadata,
    head_tensors,
    nearest_plan,
    plan_tensors,
    plans_of,
)
from rapid_core.techniques.heads.rapid3 import Heads, HeadsPolicy, RolloutBuffer
from rapid_core.techniques.heads.rapid_plus import NUMBERS, PlannedPolicy
from rapid_core.techniques.sparse_attention.policy import SparsePolicy
from rapid_core.techniques.step_skip.schedule import max_evaluations
from rapid_core.types import Sparsity
from training.graph import Graph
from training.host import attach, last_record
from training.processes import rank
from training.rewards import discounted

DENSITIES = (0.5, 0.25, 0.125)
# Biases with which fresh heads recompute, attend densely and jump by about a fifth: TPDM's, and
# ours.
NEAR_DENSE = {"step": (2.5, 1.0), "cache": (2.0, 0.0), "sparse": (2.0, 0.0, 0.0, 0.0)}
PRICE, RATE = 0.1, 0.5  # of a whole budget at the beginning, and how fast it follows what is spent
SILENT = 64  # rollouts of a speed-up that say what heads spend that say nothing, since leaving a plan at random costs
LR = {"rapid3": 1e-3, PLUS: 2e-4}  # learning rate unless given; 2e-3 saturates rapid+ in 5 updates
MORE_PLANS = "give --speedups two or more, or --start with a schedule for several"
OMEGA = {"rapid3": 1.0, PLUS: 0.0}  # weight of the discriminator unless given


class Method(Protocol):
    """How heads of a kind begin, draw, are paid and are written down. speedups: those of rollouts;
    numbers: see `Heads`; course: what `learn` changes, by name and speed-up."""

    speedups: Sequence[float]
    numbers: int
    course: dict[str, dict[float, float]]
    digest: str  # of what it begins with

    def fits(self, schedule: Sequence[float]) -> bool:
        """Whether it was made for runs on these noise levels."""
        ...

    def begin(self, heads: Heads) -> None:
        """Weights of fresh heads."""
        ...

    def policy(
        self, heads: Heads, speedup: float, rollout: RolloutBuffer | None, seed: int
    ) -> HeadsPolicy:
        """The heads in use; drawn and written down where there is a tape."""
        ...

    def rewards(
        self, quality: Sequence[float], steps: Sequence[float], speedup: float
    ) -> list[float]:
        """What images are worth that took so many equivalent steps."""
        ...

    def learn(self, seen: Sequence[tuple[float, float]]) -> dict[str, float]:
        """After an update: (speed-up, equivalent steps) of all its rollouts; returns scalars."""
        ...

    def tensors(self, heads: Heads) -> dict[str, torch.Tensor]:
        """Of the policy file."""
        ...

    def about(self, heads: Heads, reward: str) -> dict[str, Any]:
        """Metadata of the policy file."""
        ...


def sparsity_of(heads: Heads, backend: str) -> Sparsity | None:
    """Sparse attention, where a head chooses its density."""
    return Sparsity(backend) if "sparse" in heads.heads else None


def acting(graph: Graph, prompt: str, args: Namespace) -> list[str]:
    """The heads to train: without the sparse one where attention stays dense whatever it says,
    since what is void is no choice. Raises ValueError where none is left."""
    if "sparse" not in args.heads:
        return args.heads
    model = attach(graph.model, SparsePolicy(min(DENSITIES), Sparsity(args.sparse_backend)))
    graph.sample(prompt, args.seed, model, 1)
    record = last_record(model)
    if any(e.cost[0] < e.dense_cost[0] for e in record.evaluations):
        return args.heads
    left = [name for name in args.heads if name != "sparse"]
    said = f"the sparse head has nothing to choose on this machine: {'; '.join(record.notes)}"
    more = (
        "; --sparse-backend gather computes it all the same"
        if args.sparse_backend == "auto"
        else ""
    )
    if not left:
        raise ValueError(f"{said}{more}")
    if rank() == 0:
        print(f"{said}. Trained are {', '.join(left)}{more}", flush=True)
    return left


def searches(args: Namespace) -> bool:
    """Whether rapid+ searches the schedule that it begins with."""
    return args.kind == PLUS and args.start is None


class Published:
    """RAPID3: no budgets, a discount by equivalent steps instead, and larger Euler steps over what
    is held."""

    speedups, numbers, digest = (1.0,), 1, ""

    def __init__(self, args: Namespace):
        self.discount, self.backend = args.discount, args.sparse_backend
        self.course: dict[str, dict[float, float]] = {}

    def fits(self, schedule: Sequence[float]) -> bool:
        return True

    def begin(self, heads: Heads) -> None:
        for name, head in heads.heads.items():
            head.fc2.bias.data.copy_(torch.tensor(NEAR_DENSE[name]))

    def policy(
        self, heads: Heads, speedup: float, rollout: RolloutBuffer | None, seed: int
    ) -> HeadsPolicy:
        return HeadsPolicy(
            heads,
            speedup,
            0,
            DENSITIES,
            sparsity_of(heads, self.backend),
            "training",
            rollout,
            seed,
        )

    def rewards(
        self, quality: Sequence[float], steps: Sequence[float], speedup: float
    ) -> list[float]:
        return discounted(quality, steps, self.discount)

    def learn(self, seen: Sequence[tuple[float, float]]) -> dict[str, float]:
        return {}

    def tensors(self, heads: Heads) -> dict[str, torch.Tensor]:
        return head_tensors(heads)

    def about(self, heads: Heads, reward: str) -> dict[str, Any]:
        return {
            "reward": f"{reward}, discounted by {self.discount:g} an equivalent step",
            "budgets": [1.0],
            **head_metadata(heads, 0, DENSITIES, self.backend),
        }


class Planned:
    """rapid+: heads begin as the plans of a schedule file and know what is left of their budget. In
    the mode "average" an image may spend more than its budget, at a price that follows what is
    spent in the mean beyond what heads spend that say nothing: their plan's budget in use, and more
    where drawn departures cost more than they save."""

    numbers = NUMBERS

    def __init__(self, args: Namespace, file: PolicyFile):
        self.file, self.speedups, self.mode, self.backend = (
            file,
            list(args.speedups),
            args.mode,
            args.sparse_backend,
        )
        if not set(self.speedups) <= set(file.budgets):
            budgets = ", ".join(f"{budget:g}" for budget in file.budgets)
            raise file.field_error("budgets", f"= {budgets}; --speedups must be some of them")
        self.plans, self.ladder = [nearest_plan(file, s) for s in self.speedups], plans_of(file)
        if args.heads == ["pace"] and len({plan.computed for plan in self.ladder}) < 2:
            raise file.field_error(
                "budgets",
                f"= {file.budgets[0]:g}: the pace head chooses among the plans of a file, and "
                f"here there is one; {MORE_PLANS}",
            )
        self.steps = len(self.plans[0].computed)
        if any(max_evaluations(s, self.steps) < 2 for s in self.speedups):
            raise ValueError(
                f"--speedups {self.speedups}: of {self.steps} steps {self.speedups[-1]:g}x leaves one "
                "evaluation, and nothing to choose; take more steps or lower speed-ups"
            )
        self.course = {
            name: dict.fromkeys(self.speedups, value)
            for name, value in {"price": PRICE, "silent": 0.0, "silent_rollouts": 0}.items()
        }
        grams = [
            tensor.numpy().tobytes() for _, tensor in sorted(plan_tensors(self.ladder).items())
        ]
        self.digest = hashlib.blake2b(
            b"".join((repr(self.ladder).encode(), *grams)), digest_size=12
        ).hexdigest()

    def fits(self, schedule: Sequence[float]) -> bool:
        return self.plans[0].fits(schedule)

    def begin(self, heads: Heads) -> None:
        for name, head in heads.heads.items():
            # TPDM's .02 leaves a thirtieth of a signal to fc2, and a hundredth of what the
            # condition says.
            for layer in (head.conv1, head.conv2, head.fc1, head.norm1.linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if name == "pace":  # says nothing: the plan as it is
                head.fc2.weight.data.zero_()
            else:
                head.fc2.bias.data.copy_(torch.tensor(NEAR_DENSE[name]))

    def policy(
        self, heads: Heads, speedup: float, rollout: RolloutBuffer | None, seed: int
    ) -> PlannedPolicy:
        plan = self.plans[self.speedups.index(speedup)]
        return PlannedPolicy(
            heads,
            speedup,
            1,
            DENSITIES,
            sparsity_of(heads, self.backend),
            "training",
            rollout,
            seed,
            plan=plan,
            ladder=tuple(reversed(self.ladder)),
            mode=self.mode,
        )

    def rewards(
        self, quality: Sequence[float], steps: Sequence[float], speedup: float
    ) -> list[float]:
        price = self.course["price"][speedup] if self.mode == "average" else 0.0
        budget = max_evaluations(speedup, self.steps)
        return [q - price * k / budget for q, k in zip(quality, steps, strict=True)]

    def learn(self, seen: Sequence[tuple[float, float]]) -> dict[str, float]:
        if self.mode != "average":
            return {}
        prices, silent, rollouts = (
            self.course[name] for name in ("price", "silent", "silent_rollouts")
        )
        for speedup in self.speedups:
            spent = [steps for s, steps in seen if s == speedup]
            if not spent:
                continue
            if (
                rollouts[speedup] < SILENT
            ):  # heads have hardly learned anything yet; the price stands still
                total = math.fsum(
                    (silent[speedup] * rollouts[speedup], *spent)
                )  # in whatever order
                rollouts[speedup] += len(spent)
                silent[speedup] = total / rollouts[speedup]
            else:
                prices[speedup] = max(
                    0.0, prices[speedup] + RATE * (mean(spent) / silent[speedup] - 1)
                )
        return {
            f"{name}/{s:g}": self.course[name][s]
            for name in ("price", "silent")
            for s in self.speedups
        }

    def tensors(self, heads: Heads) -> dict[str, torch.Tensor]:
        return {**head_tensors(heads), **plan_tensors(self.ladder)}

    def about(self, heads: Heads, reward: str) -> dict[str, Any]:
        return {
            "reward": reward,
            "budgets": list(self.file.budgets),
            "learned_at": self.speedups,
            "structure": PLUS,
            "mode": self.mode,
            "plan": f"{self.file.name}: {self.file.metadata.get('reward', '')}",
            **head_metadata(heads, 1, DENSITIES, self.backend),
        }


METHODS = ("rapid3", PLUS)
