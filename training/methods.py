"""What is trained: RAPID3's heads as published, or heads that begin with a schedule (`rapid+`)."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from rapid_core.policy_file.format import PolicyFile
from rapid_core.policy_file.heads import PLUS, head_metadata, head_tensors
from rapid_core.policy_file.schedules import nearest_schedule, schedule_tensors, schedules_of
from rapid_core.quadrature.spacing import max_evaluations
from rapid_core.techniques.heads.rapid3 import Heads, Rapid3Policy
from rapid_core.techniques.heads.rapid_plus import NUMBERS, RapidPlusPolicy
from rapid_core.techniques.heads.rollout import RolloutBuffer
from rapid_core.types import Sparsity
from training.config import MORE_SCHEDULES, TrainConfig
from training.rewards import discounted

DENSITIES = (0.5, 0.25, 0.125)
# Biases with which fresh heads recompute, attend densely and jump by about a fifth: TPDM's, and
# ours.
NEAR_FULL = {"step": (2.5, 1.0), "cache": (2.0, 0.0), "sparse": (2.0, 0.0, 0.0, 0.0)}
PRICE = 0.1  # of a whole budget at the beginning
PRICE_RATE = 0.5  # how fast it follows what is spent
# Rollouts of a speed-up that say what heads spend that say nothing, since leaving a schedule at
# random costs.
SILENT_ROLLOUTS = 64


class Method(ABC):
    """How heads of a kind begin, draw, are paid and are written down."""

    numbers: int
    """That heads are told, see `Heads`."""
    speedups: Sequence[float]
    """Of rollouts."""
    digest: str = ""
    """Of what it begins with."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.course: dict[str, dict[float, float]] = {}
        """What `learn` changes, by name and speed-up."""

    def fits(self, sigmas: Sequence[float]) -> bool:
        """Whether it was made for runs on these sigmas."""
        return True

    @abstractmethod
    def begin(self, heads: Heads) -> None:
        """Weights of fresh heads."""

    @abstractmethod
    def policy(
        self, heads: Heads, speedup: float, rollout: RolloutBuffer | None = None, seed: int = 0
    ) -> Rapid3Policy:
        """The heads in use; drawn and written down where there is a buffer."""

    @abstractmethod
    def rewards(
        self, quality: Sequence[float], steps: Sequence[float], speedup: float
    ) -> list[float]:
        """What images are worth that took so many equivalent steps."""

    def learn(self, spent: Sequence[tuple[float, float]]) -> dict[str, float]:
        """After an update: (speed-up, equivalent steps) of all its rollouts; returns scalars."""
        return {}

    @abstractmethod
    def tensors(self, heads: Heads) -> dict[str, Tensor]:
        """Of the policy file."""

    @abstractmethod
    def metadata(self, heads: Heads, reward: str) -> dict[str, Any]:
        """Of the policy file, beside what all have. reward: in words."""

    def sparsity(self, heads: Heads) -> Sparsity | None:
        """Sparse attention, where a head chooses its density."""
        return Sparsity(self.backend) if "sparse" in heads.heads else None


class Published(Method):
    """RAPID3: no budgets, a discount by equivalent steps instead, and larger Euler steps over what
    is skipped."""

    numbers = 1
    speedups = (1.0,)

    def __init__(self, config: TrainConfig):
        super().__init__(config.sparse_backend)
        self.discount = config.discount

    def begin(self, heads: Heads) -> None:
        head: Any
        for name, head in heads.heads.items():
            head.fc2.bias.data.copy_(torch.tensor(NEAR_FULL[name]))

    def policy(
        self, heads: Heads, speedup: float, rollout: RolloutBuffer | None = None, seed: int = 0
    ) -> Rapid3Policy:
        return Rapid3Policy(
            heads=heads,
            speedup=speedup,
            prediction_order=0,
            densities=DENSITIES,
            sparsity=self.sparsity(heads),
            source="training",
            rollout=rollout,
            seed=seed,
        )

    def rewards(
        self, quality: Sequence[float], steps: Sequence[float], speedup: float
    ) -> list[float]:
        return discounted(quality, steps, self.discount)

    def tensors(self, heads: Heads) -> dict[str, Tensor]:
        return head_tensors(heads)

    def metadata(self, heads: Heads, reward: str) -> dict[str, Any]:
        return {
            "reward": f"{reward}, discounted by {self.discount:g} an equivalent step",
            "budgets": [1.0],
            **head_metadata(heads, 0, DENSITIES, self.backend),
        }


class RapidPlus(Method):
    """rapid+: heads begin as the schedules of a file and know what is left of their budget.

    In the mode "average" an image may spend more than its budget, at a price that follows what is
    spent in the mean beyond what heads spend that say nothing: their schedule's budget in use, and
    more where drawn departures cost more than they save."""

    numbers = NUMBERS

    def __init__(self, config: TrainConfig, file: PolicyFile):
        super().__init__(config.sparse_backend)
        self.file = file
        self.speedups = list(config.speedups)
        self.mode = config.mode
        self.aim = config.aim
        if not set(self.speedups) <= set(file.budgets):
            budgets = ", ".join(f"{budget:g}" for budget in file.budgets)
            raise file.field_error("budgets", f"= {budgets}; --speedups must be some of them")
        self.schedules = [nearest_schedule(file, speedup) for speedup in self.speedups]
        self.ladder = schedules_of(file)
        if config.heads == ("pace",) and len({one.computed for one in self.ladder}) < 2:
            raise file.field_error(
                "budgets",
                f"= {file.budgets[0]:g}: the pace head chooses among the schedules of a file, and "
                f"here there is one; {MORE_SCHEDULES}",
            )
        self.steps = len(self.schedules[0].computed)
        if any(max_evaluations(speedup, self.steps) < 2 for speedup in self.speedups):
            raise ValueError(
                f"--speedups {self.speedups}: of {self.steps} steps {self.speedups[-1]:g}x leaves "
                "one evaluation, and nothing to choose; take more steps or lower speed-ups"
            )
        self.course = {
            "price": dict.fromkeys(self.speedups, PRICE),
            "silent": dict.fromkeys(self.speedups, 0.0),
            "silent_rollouts": dict.fromkeys(self.speedups, 0),
        }
        marks = [(one.computed, one.sigmas) for one in self.ladder]
        grams = [
            body.numpy().tobytes() for _, body in sorted(schedule_tensors(self.ladder).items())
        ]
        text = b"".join((repr(marks).encode(), *grams))
        self.digest = hashlib.blake2b(text, digest_size=12).hexdigest()

    def fits(self, sigmas: Sequence[float]) -> bool:
        return self.schedules[0].fits(sigmas)

    def begin(self, heads: Heads) -> None:
        head: Any
        for name, head in heads.heads.items():
            # TPDM's 0.02 leaves a thirtieth of a signal to fc2, and a hundredth of what the
            # condition says.
            for layer in (head.conv1, head.conv2, head.fc1, head.norm1.linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if name == "pace":  # says nothing: the schedule as it is
                head.fc2.weight.data.zero_()
            else:
                head.fc2.bias.data.copy_(torch.tensor(NEAR_FULL[name]))

    def policy(
        self, heads: Heads, speedup: float, rollout: RolloutBuffer | None = None, seed: int = 0
    ) -> RapidPlusPolicy:
        return RapidPlusPolicy(
            heads=heads,
            speedup=speedup,
            prediction_order=1,
            densities=DENSITIES,
            sparsity=self.sparsity(heads),
            source="training",
            rollout=rollout,
            seed=seed,
            schedule=self.schedules[self.speedups.index(speedup)],
            ladder=tuple(reversed(self.ladder)),
            mode=self.mode,
            learned_aim=self.aim,
        )

    def rewards(
        self, quality: Sequence[float], steps: Sequence[float], speedup: float
    ) -> list[float]:
        price = self.course["price"][speedup] if self.mode == "average" else 0.0
        budget = max_evaluations(speedup, self.steps)
        return [q - price * k / budget for q, k in zip(quality, steps, strict=True)]

    def learn(self, spent: Sequence[tuple[float, float]]) -> dict[str, float]:
        if self.mode != "average":
            return {}
        prices = self.course["price"]
        silent = self.course["silent"]
        for speedup in self.speedups:
            steps = [k for s, k in spent if s == speedup]
            if not steps:
                continue
            before = self.course["silent_rollouts"][speedup]
            if before < SILENT_ROLLOUTS:
                # Heads have hardly learned anything yet; the price stands still.
                total = math.fsum((silent[speedup] * before, *steps))  # in whatever order
                after = before + len(steps)
                self.course["silent_rollouts"][speedup] = after
                silent[speedup] = total / after
            else:
                excess = mean(steps) / silent[speedup] - 1
                prices[speedup] = max(0.0, prices[speedup] + PRICE_RATE * excess)
        return {
            f"{name}/{speedup:g}": self.course[name][speedup]
            for name in ("price", "silent")
            for speedup in self.speedups
        }

    def tensors(self, heads: Heads) -> dict[str, Tensor]:
        return {**head_tensors(heads), **schedule_tensors(self.ladder)}

    def metadata(self, heads: Heads, reward: str) -> dict[str, Any]:
        return {
            "reward": reward,
            "budgets": list(self.file.budgets),
            "learned_at": self.speedups,
            "structure": PLUS,
            "mode": self.mode,
            "aim": self.aim.value,
            "plan": f"{self.file.name}: {self.file.metadata.get('reward', '')}",
            **head_metadata(heads, 1, DENSITIES, self.backend),
        }
