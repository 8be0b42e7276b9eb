"""RAPID3 (Zhao et al. 2025): three heads decide for each image and evaluation whether to skip ahead,
reuse the blocks, or attend sparsely.

Step-Skip looks at the model's latest output and gives a Beta-distributed jump: the next sigma to
compute at is that share of the present one, and evaluations of the sampler's grid above it are
skipped. Cache-Reuse looks at how far the latent has moved since the model was last computed.
Sparse-Attention looks at the latent. In use the most likely choice is taken; in training choices
are drawn, and everything that made them is written to a rollout buffer."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ...quadrature.multistep import MAX_TERMS, prediction_weights
from ...quadrature.spacing import max_evaluations
from ...reasons import ReasonCode
from ...types import (
    FULL,
    Action,
    Actor,
    HeadInput,
    Mode,
    Observation,
    Policy,
    PredictionWeights,
    Reason,
    Requirements,
    Sparsity,
    Window,
)
from .network import Condition, Head, RunHeads, beta, packed
from .prior import RUNGS
from .rollout import Decision, RolloutBuffer

HEADS = ("step", "cache", "sparse")  # RAPID3's
# Beta's parameters; recompute, reuse; dense and three densities; which schedule to follow.
OUTPUTS = {"step": 2, "cache": 2, "sparse": 4, "pace": len(RUNGS)}
# What each head looks at, by the name of `HeadInput`.
INPUTS = {
    "step": "derivative",
    "cache": "latent_change",
    "sparse": "latent",
    "pace": "derivative",
}
CLIP = 1e-3  # jumps lie within CLIP .. 1 - CLIP
ROUNDING = 1e-6  # sigmas that are so near are one


class Heads(nn.Module):
    """The heads of a policy and their common condition.

    channels: of a latent. hidden: length of the model's pooled vector. numbers: that the condition
    is told. scales: what each head's input is divided by."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        heads: Sequence[str] = HEADS,
        numbers: int = 1,
        width: int = 128,
        scales: dict[str, float] | None = None,
    ):
        super().__init__()
        self.channels = channels
        self.hidden = hidden
        self.width = width
        self.numbers = numbers
        self.scales = {name: 1.0 for name in heads} | (scales or {})
        self.condition = Condition(hidden, numbers, width)
        self.heads = nn.ModuleDict(
            {name: Head(4 * channels, width, OUTPUTS[name], width) for name in heads}
        )

    def forward(
        self, inputs: dict[str, Tensor], numbers: Tensor, pooled: Tensor
    ) -> dict[str, Tensor]:
        """Logits (B, outputs) of the heads that are given inputs, by head (B, 4 C, H, W); numbers
        (B, n), pooled (B, hidden)."""
        condition = self.condition(pooled.float(), numbers.float())
        return {
            name: head(inputs[name].float() / self.scales[name], condition)
            for name, head in self.heads.items()
            if name in inputs
        }


def pooled_vector(pooled: Tensor | None, hidden: int, like: Tensor) -> tuple[Tensor, bool]:
    """The model's pooled vector (hidden,) for the heads, and whether it is known: zeros where its
    family shows none."""
    if pooled is None or pooled.numel() != hidden:
        return like.new_zeros(hidden, dtype=torch.float32), False
    return pooled.flatten().float(), True


@dataclass(frozen=True, kw_only=True)
class Rapid3Policy(Policy):
    """Trained heads within a budget."""

    technique: ClassVar[str] = "rapid3"

    heads: Any = field(compare=False, repr=False)
    """`Heads`, or another module with `heads` by name and `hidden`; not moved or changed."""
    speedup: float
    """A ceiling on what is spent: evaluations of the full run over computed ones, at least 1."""
    prediction_order: int = 0
    """Of the polynomial that predicts what is skipped; 0 is the paper's larger Euler step."""
    densities: tuple[float, float, float] = (0.5, 0.25, 0.125)
    """Of attention, as the sparse head chooses it."""
    sparsity: Sparsity | None = None
    """How attention is made sparse; None where there is no sparse head."""
    source: str = ""
    """File that the heads are from."""
    rollout: RolloutBuffer | None = field(default=None, compare=False, repr=False)
    """Where it is set, choices are drawn and written down in it."""
    seed: int = 0
    """Of what is drawn."""
    use: tuple[str, ...] = tuple(OUTPUTS)
    """Heads that decide. Without "step" nothing is skipped, however much was spent: a sampler that
    jumps by itself evaluates only where it wants the model."""

    _latest: weakref.ref[RunHeads] | None = field(
        default=None, init=False, compare=False, repr=False
    )

    @property
    def names(self) -> tuple[str, ...]:
        """Heads that are there and in use."""
        return tuple(name for name in self.heads.heads if name in self.use)

    @property
    def requirements(self) -> Requirements:
        modes = {Mode.RUN}
        if "step" in self.use:
            modes.add(Mode.SKIP)
        if "cache" in self.names:
            modes.add(Mode.REUSE)
        return Requirements(
            modes=frozenset(modes),
            prediction_order=self.prediction_order,
            history=MAX_TERMS,
            attention=self.sparsity,
            attention_density=max(self.densities),
            logits=True,
            decides_schedule=True,
        )

    def with_attention(self, attention: Sparsity) -> Policy:
        """These settings with the sparse attention that a run can have."""
        return self if self.sparsity is None else replace(self, sparsity=attention)

    @override
    def start(self, window: Window, image: int = 0) -> Rapid3Actor:
        return Rapid3Actor(self, self._run_heads(image), image)

    def _run_heads(self, image: int) -> RunHeads:
        """The heads that the actors of one run share. A run begins with the actor of image 0, and
        nothing but its actors keeps them: copies of an earlier run would be of heads that training
        has changed since."""
        run = self._latest() if image and self._latest is not None else None
        if run is None:
            run = RunHeads(self.heads)
            object.__setattr__(self, "_latest", weakref.ref(run))
        return run

    def to_record(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "technique": self.technique,
            "speedup": self.speedup,
            "prediction_order": self.prediction_order,
            "heads": sorted(self.names),
            "source": self.source,
        }
        if "sparse" in self.names:
            record["densities"] = list(self.densities)
        if self.rollout is not None:
            record["seed"] = self.seed
        return record


def seed_of(seed: int, image: int) -> int:
    """Seed of what is drawn for an image of a batch: that of the policy for the first, and for
    others one that depends on nothing but the two."""
    if image == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{image}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


class Rapid3Actor(Actor):
    """The heads for one image of a run."""

    needs_logits: ClassVar[bool] = True
    deciding_head: ClassVar[str] = "step"  # says what is computed next

    def __init__(self, policy: Rapid3Policy, run: RunHeads, image: int = 0):
        self.policy = policy
        self.run = run
        self.image = image
        self.known = False  # whether the heads could look
        self.target: float | None = None  # sigma down to which evaluations are skipped
        self.charged: set[int] = set()  # steps whose evaluation was computed, whoever wanted it
        self.spent = 0  # of those, what was known at the decision before this
        self.step = 0
        self.steps = 1
        self.seen: tuple = ()  # what the rollout buffer wants to know of a decision
        self.generator = torch.Generator().manual_seed(seed_of(policy.seed, image))
        self._notes: dict[str, Reason] = {}

    @property
    def notes(self) -> Sequence[Reason]:
        return tuple(self._notes.values())

    def logits(self, seen: HeadInput | None, sigma: Tensor) -> Tensor | None:
        """Logits of all heads, (outputs,), on the latent's device; None where there is nothing to
        look at."""
        names = self.policy.names
        self.known = seen is not None
        if seen is None or not names:
            return None
        heads = self.run.on(seen.latent.device)
        inputs = {name: packed(getattr(seen, INPUTS[name])[None]) for name in names}
        pooled = self._pooled(seen, heads.hidden)[None]
        numbers = self._numbers(seen, sigma)
        if self.policy.rollout is not None:  # what is written down is what was decided on
            inputs = {name: x.half() for name, x in inputs.items()}
            pooled = pooled.half()
        with torch.no_grad():
            logits = heads(inputs, numbers, pooled)
        if self.policy.rollout is not None:
            shown = {name: x[0].cpu() for name, x in inputs.items()}
            self.seen = shown, numbers[0].cpu(), pooled[0].cpu()
        return torch.cat([logits[name] for name in names], 1).flatten()

    def _numbers(self, seen: HeadInput, sigma: Tensor) -> Tensor:  # noqa: ARG002
        """(1, n): sigma and, where the heads know budgets, the share of all evaluations that may
        still be computed, counted before the latest was."""
        known = sigma.float().expand(1, 1)
        if self.policy.heads.numbers == 1:
            return known
        left = (self._max_evaluations(self.steps) - self.spent) / self.steps
        # Filled and not copied to the device, which would be waited for.
        return torch.cat((known, known.new_full((1, 1), left)), 1)

    def _pooled(self, seen: HeadInput, hidden: int) -> Tensor:
        vector, known = pooled_vector(seen.pooled, hidden, seen.latent)
        if not known:
            self._note(Reason(ReasonCode.POOLED_UNKNOWN, file=self.policy.source))
        return vector

    def _note(self, reason: Reason) -> None:
        self._notes.setdefault(reason.code, reason)

    def act(self, observation: Observation) -> Action:
        self.spent = len(self.charged)
        self.step = observation.step
        self.steps = observation.steps
        return self._decide(observation, self._by_head(observation.logits))

    def executed(self, action: Action) -> None:
        if action.mode is Mode.RUN:
            self.charged.add(self.step)

    def _by_head(self, numbers: Sequence[float]) -> dict[str, Tensor] | None:
        """Logits by head, none where nothing was asked anew; None where the heads could not look.
        Raises ValueError for NaN."""
        if any(map(math.isnan, numbers)):
            raise ValueError(
                f"policy {self.policy.source}: its heads answer what is not a number; use another one"
            )
        if not self.known:
            return None
        out: dict[str, Tensor] = {}
        at = 0
        for name in self.policy.names if numbers else ():
            out[name] = torch.tensor(numbers[at : at + OUTPUTS[name]])
            at += OUTPUTS[name]
        return out

    def _decide(self, observation: Observation, logits: dict[str, Tensor] | None) -> Action:
        if logits is None or not observation.computed:
            return FULL
        decision = Decision()
        start, sigma = self._sigmas(observation)
        budget_spent = self._budget_spent(observation)
        if budget_spent:
            self._note_budget_spent(observation)
        elif observation.since_computed == 0 and self.deciding_head in logits:
            # The model has spoken since the last jump.
            self.target, decision = self._jump_to(logits[self.deciding_head], start, observation)
        above_target = self.target is not None and sigma > self.target + ROUNDING
        if budget_spent or above_target:
            self._write(observation, decision)
            return Action(Mode.SKIP, prediction_weights=self._prediction_weights(observation))
        cache = self._pick(logits["cache"]) if "cache" in logits else None
        if cache:
            self._write(observation, replace(decision, cache=cache))
            return Action(Mode.REUSE)
        sparse = self._pick(logits["sparse"]) if "sparse" in logits else None
        self._write(observation, replace(decision, cache=cache, sparse=sparse))
        return Action(density=self.policy.densities[sparse - 1]) if sparse else FULL

    def _budget_spent(self, observation: Observation) -> bool:
        """Whether nothing more may be computed; a second look at a step that was paid for costs
        nothing more."""
        if "step" not in self.policy.use or observation.step in self.charged:
            return False
        return len(self.charged) >= self._max_evaluations(observation.steps)

    def _note_budget_spent(self, observation: Observation) -> None:
        """Say when a budget is spent long before the end: heads that were not trained for it do not
        spread it."""
        left = observation.steps - observation.step
        if left > 2 * observation.steps / self._max_evaluations(observation.steps):
            self._note(Reason(ReasonCode.BUDGET_SPENT, file=self.policy.source, steps=left))

    def _max_evaluations(self, steps: int) -> int:
        """Evaluations that may be computed."""
        return max_evaluations(self.policy.speedup, steps)

    def _sigmas(self, observation: Observation) -> tuple[float, float]:
        """Sigmas that a jump starts from, and that the evaluation is at."""
        history = observation.history
        return (history[-1] if history else observation.sigma), observation.sigma

    def _jump_to(
        self,
        logits: Tensor,
        start: float,
        observation: Observation,  # noqa: ARG002
    ) -> tuple[float, Decision]:
        """Sigma down to which evaluations are skipped, and what was chosen."""
        jump = self._jump(logits)
        return self._landing(start, jump), Decision(jump)

    def _prediction_weights(self, observation: Observation) -> PredictionWeights | None:
        return prediction_weights(observation, self.policy.prediction_order)

    def _landing(self, start: float, jump: float) -> float:
        """Sigma that a jump from `start` goes to: the paper's timesteps are whole thousandths."""
        return math.floor(1000 * start * jump) / 1000

    def _jump(self, logits: Tensor) -> float:
        alpha, other = beta(logits)
        if self.policy.rollout is None:
            jump = float((alpha - 1) / (alpha + other - 2))
        else:  # a Beta is made of two Gammas
            x = torch._standard_gamma(alpha[None], generator=self.generator)  # pyright: ignore
            y = torch._standard_gamma(other[None], generator=self.generator)  # pyright: ignore
            jump = float(x / (x + y))
        return min(max(jump, CLIP), 1 - CLIP)

    def _pick(self, logits: Tensor) -> int:
        if self.policy.rollout is None:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(0), 1, generator=self.generator))

    def _write(self, observation: Observation, choice: Decision) -> None:
        if self.policy.rollout is not None:
            inputs, numbers, pooled = self.seen
            index = observation.index
            self.policy.rollout.add(self.image, index, inputs, numbers, pooled, choice)
