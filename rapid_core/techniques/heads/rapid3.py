"""RAPID3: three heads decide for each image and evaluation whether to skip ahead, reuse the blocks,
or attend sparsely.

Step-Skip looks at the model's latest output and gives a Beta-distributed jump: the next noise level
to compute at is that share of the present one, and evaluations of the sampler's grid above it are
held. Cache-Reuse looks at how far the latent has moved since the model was last computed.
Sparse-Attention looks at the latent. In use the most likely choice is taken; in training choices
are drawn, and everything that made them is written to a tape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ...types import FULL, Action, HeadInput, ImageState, Mode, Observation, Sparsity, Window
from ..step_skip.schedule import MOST_WEIGHTS, Weights, max_evaluations, multistep
from .network import Condition, Head, beta, on_device, packed
from .prior import RUNGS
from .rollout import Decision, RolloutBuffer

HEADS = ("step", "cache", "sparse")  # RAPID3's
# Beta's parameters; recompute, reuse; dense and three densities; which plan to follow (`planned`)
OUTPUTS = {"step": 2, "cache": 2, "sparse": 4, "pace": len(RUNGS)}
INPUTS = {"step": "derivative", "cache": "moved", "sparse": "latent", "pace": "derivative"}
CLIP = 1e-3  # jumps lie within CLIP .. 1 - CLIP


class Heads(nn.Module):
    """The heads of a policy and their common condition. scales: what each head's input is divided
    by."""

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
        self.channels, self.hidden, self.width, self.numbers = channels, hidden, width, numbers
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
        some = [(name, head) for name, head in self.heads.items() if name in inputs]
        return {
            name: head(inputs[name].float() / self.scales[name], condition) for name, head in some
        }


def pooled_vector(pooled: Tensor | None, hidden: int, like: Tensor) -> tuple[Tensor, bool]:
    """The model's pooled vector (hidden,) for the heads, and whether it is known: zeros where its
    family shows none."""
    if pooled is None or pooled.numel() != hidden:
        return like.new_zeros(hidden, dtype=torch.float32), False
    return pooled.flatten().float(), True


def blind(source: str) -> str:
    """What a record says where the pooled vector is not known."""
    return f"{source}: the model's pooled vector is not known; the heads decide without it"


@dataclass(frozen=True)
class HeadsPolicy:
    """Trained heads within a budget. speedup: a ceiling on what is spent, as dense over spent
    evaluations; forecast_order: of what is held, 0 being the paper's larger Euler step; densities:
    of the three sparse levels; tape, seed: where set, choices are drawn and written down; use:
    heads that decide. Without "step" nothing is held, however much was spent: a sampler that jumps
    by itself evaluates only where it wants the model."""

    heads: Heads = field(compare=False, repr=False)
    speedup: float
    forecast_order: int = 0
    densities: tuple[float, float, float] = (0.5, 0.25, 0.125)
    sparsity: Sparsity | None = None
    source: str = ""
    rollout: RolloutBuffer | None = field(default=None, compare=False, repr=False)
    seed: int = 0
    start_percent: float = 0.0
    end_percent: float = 1.0
    technique: str = "rapid3"
    regional: bool = False
    history: int = MOST_WEIGHTS
    use: tuple[str, ...] = tuple(OUTPUTS)

    @property
    def names(self) -> tuple[str, ...]:
        """Heads that are there and in use."""
        return tuple(name for name in self.heads.heads if name in self.use)

    @property
    def levels(self) -> frozenset[Mode]:
        hold = (Mode.SKIP,) if "step" in self.use else ()
        reuse = (Mode.REUSE,) if "cache" in self.names else ()
        return frozenset((*hold, Mode.RUN, *reuse))

    def start(self, window: Window) -> HeadsActor:
        return HeadsActor(self)

    def settings(self) -> dict:
        plain = {
            k: v for k, v in vars(self).items() if k not in ("heads", "tape", "sparsity", "use")
        }
        return {**plain, "heads": sorted(self.names)}


class HeadsActor:
    """The heads in one run."""

    needs_logits = True
    leaps = "step"  # the head that says what is computed next

    def __init__(self, policy: HeadsPolicy):
        self.policy = policy
        self.heads = (
            policy.heads
        )  # or a copy on the latents' device: the policy's own stays where it is
        self.target: dict[int, float] = {}  # noise level down to which an image is held
        self.charged: dict[
            int, set[int]
        ] = {}  # steps whose evaluation was computed, whoever wanted it
        self.before = 0  # step of the evaluation before
        self.seen: dict[int, tuple] = {}  # what the tape wants to know
        self.asked, self.steps = list[int](), 1  # steps of the run, as the last observation had it
        self.generator = torch.Generator().manual_seed(policy.seed)
        self.notes: list[str] = []

    def ask(self, looks: Sequence[HeadInput | None], sigma: Tensor) -> Tensor | None:
        """Logits of all heads for the images that are known, (images * outputs,), on their device:
        fetched together with what the engine wants to know."""
        self.asked = [i for i, look in enumerate(looks) if look is not None]
        some = [look for look in looks if look is not None]
        names = self.policy.names
        if not some or not names:
            return None
        self.heads = heads = on_device(self.heads, some[0].latent.device)
        inputs = {
            name: torch.cat([packed(getattr(look, INPUTS[name])[None]) for look in some])
            for name in names
        }
        pooled = torch.stack([self._pooled(look, heads.hidden) for look in some])
        numbers = self._numbers(sigma)
        if self.policy.rollout is not None:  # what is written down is what was decided on
            inputs, pooled = {n: x.half() for n, x in inputs.items()}, pooled.half()
        with torch.no_grad():
            logits = heads(inputs, numbers, pooled)
        if self.policy.rollout is not None:
            for row, i in enumerate(self.asked):
                kept = {name: x[row].cpu() for name, x in inputs.items()}
                self.seen[i] = kept, numbers[row].cpu(), pooled[row].cpu()
        return torch.cat([logits[name] for name in names], 1).flatten()

    def _numbers(self, sigma: Tensor) -> Tensor:
        """Noise level and, where the heads know budgets, the share of all evaluations that may
        still be computed."""
        level = sigma.float().expand(len(self.asked), 1)
        if self.policy.heads.numbers == 1:
            return level
        left = [
            (self._most(self.steps) - len(self.charged.get(i, ()))) / self.steps for i in self.asked
        ]
        filled = torch.stack(
            [level.new_full((), n) for n in left]
        )  # a copy to the device would be waited for
        return torch.cat((level, filled[:, None]), 1)

    def _pooled(self, look: HeadInput, hidden: int) -> Tensor:
        """The model's pooled vector, zeros where its family shows none."""
        found, known = pooled_vector(look.pooled, hidden, look.latent)
        if not known:
            self.notes = sorted({*self.notes, blind(self.policy.source)})
        return found

    def act(self, observation: Observation) -> tuple[Action, ...]:
        self.steps, logits = observation.steps, self._by_image(observation.answers)
        for i, image in enumerate(observation.images):
            if image.computed and image.since_computed == 0:
                self.charged.setdefault(i, set()).add(self.before)
        self.before = observation.step
        return tuple(
            self._one(i, image, observation, logits.get(i))
            for i, image in enumerate(observation.images)
        )

    def _by_image(self, answers: Sequence[float]) -> dict[int, dict[str, Tensor]]:
        names, out, at = self.policy.names, {}, 0
        if any(map(math.isnan, answers)):
            raise ValueError(
                f"policy {self.policy.source}: its heads answer what is not a number; use another one"
            )
        for i in self.asked:
            out[i] = {}
            for name in names:
                out[i][name] = torch.tensor(answers[at : at + OUTPUTS[name]])
                at += OUTPUTS[name]
        return out

    def _one(
        self, number: int, image: ImageState, observation: Observation, logits: dict | None
    ) -> Action:
        if logits is None or not image.computed:
            return FULL
        leap, charged = Decision(), self.charged.get(number, set())
        start, here = self._levels(image, observation)
        paid = observation.step in charged  # a second look at a step costs nothing more
        broke = (
            "step" in self.policy.use and not paid and len(charged) >= self._most(observation.steps)
        )
        if (
            image.since_computed == 0 and self.leaps in logits and not broke
        ):  # the model has spoken since
            self.target[number], leap = self._leap(number, logits[self.leaps], start, observation)
        if broke:
            self._note_broke(observation)
        if broke or here > self.target.get(number, math.inf) + 1e-6:
            self._write(number, observation.index, leap)
            return Action(Mode.SKIP, weights=self._weights(number, image, observation))
        cache = self._pick(logits["cache"]) if "cache" in logits else None
        if cache:
            self._write(number, observation.index, replace(leap, cache=cache))
            return Action(Mode.REUSE)
        sparse = self._pick(logits["sparse"]) if "sparse" in logits else None
        self._write(number, observation.index, replace(leap, cache=cache, sparse=sparse))
        return Action(density=self.policy.densities[sparse - 1]) if sparse else FULL

    def _note_broke(self, observation: Observation) -> None:
        """Say when a budget is spent long before the end: heads that were not trained for it do not
        spread it."""
        left, most = observation.steps - observation.step, self._most(observation.steps)
        if left > 2 * observation.steps / most and not any("budget" in note for note in self.notes):
            said = f"{self.policy.source}: the budget was spent {left} steps before the end, which are forecast"
            self.notes = [*self.notes, f"{said}; a lower speedup leaves more"]

    def _most(self, steps: int) -> int:
        """Evaluations that an image may have computed."""
        return max_evaluations(self.policy.speedup, steps)

    def _levels(self, image: ImageState, observation: Observation) -> tuple[float, float]:
        """Noise levels that a jump starts from, and that an evaluation is at."""
        return (image.levels[-1] if image.levels else observation.sigma), observation.sigma

    def _leap(
        self, number: int, logits: Tensor, start: float, observation: Observation
    ) -> tuple[float, Decision]:
        """Noise level down to which an image is held, and what was chosen."""
        jump = self._jump(logits)
        return self._landing(start, jump), Decision(jump)

    def _weights(self, number: int, image: ImageState, observation: Observation) -> Weights:
        return multistep(image, observation, self.policy.forecast_order)

    def _landing(self, start: float, jump: float) -> float:
        """Noise level that a jump from `start` goes to: the paper's timesteps are whole
        thousandths."""
        return math.floor(1000 * start * jump) / 1000

    def _jump(self, logits: Tensor) -> float:
        alpha, other = beta(logits)
        if self.policy.rollout is None:
            found = float((alpha - 1) / (alpha + other - 2))
        else:
            x, y = (
                torch._standard_gamma(p[None], generator=self.generator) for p in (alpha, other)
            )
            found = float(x / (x + y))
        return min(max(found, CLIP), 1 - CLIP)

    def _pick(self, logits: Tensor) -> int:
        if self.policy.rollout is None:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(0), 1, generator=self.generator))

    def _write(self, number: int, evaluation: int, choice: Decision) -> None:
        if self.policy.rollout is not None:
            self.policy.rollout.add(number, evaluation, *self.seen[number], choice)
