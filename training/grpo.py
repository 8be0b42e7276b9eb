"""Group relative policy optimisation (GRPO) of heads on rollouts of a workflow, in one file.

Implements GRPO (Shao et al. 2024, arXiv 2402.03300) as RAPID3 (Zhao et al. 2025) uses it: outcome
rewards, no reference model, and one ratio a trajectory. The pace head of `rapid+`, which RAPID3 does
not have, is held to a reference, heads that say nothing. For a group of images i = 1 .. G of one
prompt from one initial noise, which differ by what the heads drew,

    A_i   = (r_i - mean r) / std r                                        `advantages`
    phi_i = pi(I_i) / pi_old(I_i),  log pi(I) = sum over decisions of log pi(decision)
                                                                          `trajectory_log_p`
    loss  = - mean_i min(phi_i A_i, clip(phi_i, 1 - eps, 1 + eps) A_i)
            - entropy mean entropy of the categorical heads
            + kl mean KL(heads that say nothing || pace head)             `Learner.gradient`

Groups whose rewards are equal say nothing: they are dropped and counted.

Read `Trainer.train` first: rollouts, rewards, advantages, some epochs of updates, a checkpoint.
Every random choice follows from seed and iteration, sums are taken in the order of their numbers,
and so a training comes to the same end however often it is killed and however many processes share
it. Scalars have the names of CleanRL's ppo.py; `approx_kl_k3` is its low-variance estimate of
KL(old || new), ((phi - 1) - log phi), which is never negative. (`approx_kl` of earlier versions of
this file was the mean of -log phi.)"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Beta
from tqdm import tqdm

from evaluation.files import replaced
from rapid_core.calibration.search import latent_psnr
from rapid_core.techniques.heads.network import beta
from rapid_core.techniques.heads.prior import OWN, RUNGS, mixture
from rapid_core.techniques.heads.rapid3 import INPUTS, Heads
from rapid_core.techniques.heads.rollout import Decision
from training.host import attach, equivalent_steps, family_of, last_record
from training.job import Job
from training.methods import Method
from training.processes import all_gather, broadcast_from_rank0, rank, shard
from training.references import Reference, reference
from training.scalars import TensorBoardLog, write_lines
from training.scorer import Scorer

MIN_SPREAD = 1e-4  # of a group's rewards
MAX_ADVANTAGE = 5.0


@dataclass(frozen=True)
class GRPOConfig:
    """Hyperparameters of an update."""

    lr: float = 1e-3
    clip: float = 0.2
    """eps of the ratio."""
    epochs: int = 2
    """Updates on the same rollouts."""
    entropy: float = 1e-3
    """Weight of the categorical heads' entropy."""
    kl: float = 0.0
    """Weight of KL(prior || pace head), the prior being heads that say nothing. GRPO's divergence
    has them the other way about, and hardly a gradient once a head is sure of something."""
    max_grad_norm: float = 1.0
    ranks: bool = False
    """Whether a group's rewards count by their order only, so that a few very bad rollouts do not
    drown what tells the others apart."""


# ------------------------------------------------------------------------------- rollouts


@dataclass(frozen=True)
class Step:
    """One decision of one image: what the heads saw, and what they chose."""

    inputs: dict[str, Tensor]
    """(C, H, W) by head."""
    numbers: Tensor
    pooled: Tensor
    choice: Decision


class RolloutBuffer:
    """Decisions of one run by image, see `techniques.heads.rollout.RolloutBuffer`."""

    def __init__(self) -> None:
        self.steps: dict[int, list[Step]] = {}

    def add(
        self,
        image: int,
        evaluation: int,
        inputs: dict[str, Tensor],
        numbers: Tensor,
        pooled: Tensor,
        choice: Decision,
    ) -> None:
        """One decision. Evaluations at which nothing was chosen (skipped on an earlier jump) are
        not kept."""
        if choice != Decision():
            self.steps.setdefault(image, []).append(Step(inputs, numbers, pooled, choice))


@dataclass(frozen=True)
class Trajectory:
    """One image."""

    steps: Sequence[Step]
    reward: float
    log_p: Tensor
    """0-d: of all decisions together, when they were drawn."""


# --------------------------------------------------------------------------- probabilities


class Likelihood(NamedTuple):
    """Of decisions, by the heads as they are."""

    log_p: Tensor
    """(n,) of what was chosen at each step, or in each trajectory."""
    entropy: Tensor
    """Of the categorical heads: (n,) at each step, or 0-d of all together."""
    kl: Tensor
    """KL(prior || pace head), likewise."""


def log_probability(heads: Heads, steps: Sequence[Step]) -> Likelihood:
    """Of each step, a head that is absent or void counting nothing. The same sums in the rollout
    and in the update."""
    inputs = {name: torch.stack([step.inputs[name] for step in steps]) for name in heads.heads}
    numbers = torch.stack([step.numbers for step in steps])
    pooled = torch.stack([step.pooled for step in steps])
    logits = heads(inputs, numbers, pooled)
    log_p = torch.zeros(len(steps))
    entropy = torch.zeros(len(steps))
    kl = torch.zeros(len(steps))
    if "step" in logits:
        jumps = [step.choice.jump for step in steps]
        values = torch.tensor([0.5 if jump is None else jump for jump in jumps])
        log_p = log_p + Beta(*beta(logits["step"])).log_prob(values) * made(jumps)
    for name in ("cache", "sparse", "pace"):
        if name in logits:
            choices = [getattr(step.choice, name) for step in steps]
            mask = made(choices)
            if name == "pace":
                prior = prior_of(steps)
                log_ps = mixture(logits[name], prior).clamp_min(1e-30).log()
                log_prior = prior.log_softmax(1)
                log_ratio = log_prior - (logits[name] + prior).log_softmax(1)
                kl = kl + (log_prior.exp() * log_ratio).sum(1) * mask
            else:
                log_ps = logits[name].log_softmax(1)
            picked = torch.tensor([choice or 0 for choice in choices])
            log_p = log_p + log_ps.gather(1, picked[:, None])[:, 0] * mask
            entropy = entropy - (log_ps.exp() * log_ps).sum(1) * mask
    return Likelihood(log_p, entropy, kl)


def prior_of(steps: Sequence[Step]) -> Tensor:
    """(n, rungs) what was added to the pace head's logits."""
    nothing = (0.0,) * len(RUNGS)
    return torch.tensor([step.choice.prior_logits or nothing for step in steps])


def made(choices: Sequence[float | None]) -> Tensor:
    """(n,) 1 where something was chosen."""
    return torch.tensor([choice is not None for choice in choices], dtype=torch.float32)


def trajectory_log_p(heads: Heads, trajectories: Sequence[Sequence[Step]]) -> Likelihood:
    """Of whole trajectories, with the sums of all their entropies and divergences."""
    flat = [step for steps in trajectories for step in steps]
    of_steps = log_probability(heads, flat)
    owner = torch.tensor(
        [i for i, steps in enumerate(trajectories) for _ in steps], dtype=torch.long
    )
    log_p = torch.zeros(len(trajectories)).index_add(0, owner, of_steps.log_p)
    return Likelihood(log_p, of_steps.entropy.sum(), of_steps.kl.sum())


def departures(heads: Heads, steps: Sequence[Step]) -> tuple[int, int]:
    """In how many of these decisions the likeliest pace is not the schedule's, and how many of them
    there are."""
    paces = [s for s in steps if s.choice.pace is not None] if "pace" in heads.heads else []
    if not paces:
        return 0, 0
    with torch.no_grad():
        inputs = {"pace": torch.stack([step.inputs["pace"] for step in paces])}
        numbers = torch.stack([step.numbers for step in paces])
        pooled = torch.stack([step.pooled for step in paces])
        logits = heads(inputs, numbers, pooled)["pace"] + prior_of(paces)
    return int((logits.argmax(1) != OWN).sum()), len(paces)


# --------------------------------------------------------------------------------- updates


def advantages(rewards: Sequence[float], ranks: bool = False) -> Tensor | None:
    """(n,) (r - mean) / std of a group, within +-MAX_ADVANTAGE; None for a group that says nothing.
    ranks: see `GRPOConfig`."""
    values = torch.tensor(rewards, dtype=torch.float64)
    if ranks and float(values.max() - values.min()) > MIN_SPREAD:
        above = (values[:, None] > values + MIN_SPREAD).sum(1)
        below = (values[:, None] < values - MIN_SPREAD).sum(1)
        values = (above - below).double()  # equal ones share a place
    spread = values.std(unbiased=False)
    if len(values) < 2 or not spread > MIN_SPREAD:
        return None
    scaled = ((values - values.mean()) / spread).clamp(-MAX_ADVANTAGE, MAX_ADVANTAGE)
    return (scaled - scaled.mean()).float()  # in a large group one that was cut would leave a sum


@dataclass(frozen=True)
class GroupBatch:
    """What a group says: its images that chose anything, and their advantages."""

    trajectories: Sequence[Trajectory]
    advantages: Tensor
    """(n,)"""

    @classmethod
    def of(cls, group: Sequence[Trajectory], ranks: bool = False) -> GroupBatch | None:
        """None for a group that says nothing."""
        scaled = advantages([t.reward for t in group], ranks)
        chose = [bool(t.steps) for t in group]
        if scaled is None or not any(chose):
            return None
        return cls([t for t in group if t.steps], scaled[chose])

    @property
    def steps(self) -> list[Sequence[Step]]:
        """Decisions by image."""
        return [t.steps for t in self.trajectories]

    @property
    def size(self) -> tuple[int, int]:
        """Images and decisions."""
        return len(self.trajectories), sum(map(len, self.steps))


class Learner:
    """The heads and their optimiser."""

    def __init__(self, heads: Heads, config: GRPOConfig = GRPOConfig()):
        self.heads = heads
        self.config = config
        self.optimiser = torch.optim.AdamW(
            heads.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0
        )

    def update(self, groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
        """Learn from groups of rollouts, of which each process has its shard; returns scalars.
        Gradients are computed group by group where the group is, and summed in the groups' order,
        so that the sum does not depend on the number of processes."""
        config = self.config
        batches = [GroupBatch.of(group, config.ranks) for group in groups]
        sizes = all_gather([batch and batch.size for batch in batches])
        kept = [size for size in sizes if size is not None]
        scalars = {"dropped_groups": float(len(sizes) - len(kept))}
        images = sum(n for n, _ in kept)
        steps = sum(n for _, n in kept)
        if not images:
            return scalars
        parameters = list(self.heads.parameters())
        for epoch in range(config.epochs):
            parts = all_gather([batch and self.gradient(batch, images, steps) for batch in batches])
            gradients, sums = zip(*(part for part in parts if part is not None), strict=True)
            gradient = reduce(torch.add, gradients)
            split = gradient.split([p.numel() for p in parameters])
            for parameter, part in zip(parameters, split, strict=True):
                parameter.grad = part.view_as(parameter)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            self.optimiser.step()

            objective, ratio, clipped, kl, entropy, prior_kl = reduce(torch.add, sums).tolist()
            entropy /= steps
            prior_kl /= steps
            if epoch == 0:
                scalars["first_ratio"] = ratio / images
            scalars |= {
                "loss": -objective / images - config.entropy * entropy + config.kl * prior_kl,
                "ratio": ratio / images,
                "clip_fraction": clipped / images,
                "approx_kl_k3": kl / images,
                "entropy": entropy,
                "prior_kl": prior_kl,
                "grad_norm": float(norm),
            }
        return scalars

    def gradient(self, batch: GroupBatch, images: int, steps: int) -> tuple[Tensor, Tensor]:
        """Gradient (parameters,) of one group's part of the loss, and sums (6,) of what is
        reported, float64. images, steps: of all groups of all processes."""
        config = self.config
        new_log_p, entropy, prior_kl = trajectory_log_p(self.heads, batch.steps)
        old_log_p = torch.stack([t.log_p for t in batch.trajectories])
        log_ratio = (new_log_p - old_log_p).clamp(-20, 20)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        objective = torch.minimum(ratio * batch.advantages, clipped * batch.advantages).sum()
        loss = -objective / images + (config.kl * prior_kl - config.entropy * entropy) / steps
        self.optimiser.zero_grad()
        loss.backward()
        gradient = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in self.heads.parameters()
        ]
        approx_kl = ((ratio - 1) - log_ratio).sum()
        sums = (objective, ratio.sum(), (ratio != clipped).sum(), approx_kl, entropy, prior_kl)
        return (
            torch.cat([part.flatten() for part in gradient]),
            torch.stack([value.detach().double() for value in sums]),
        )


# ---------------------------------------------------------------------------------- the loop


class Trainer:
    """Rollouts, updates and checkpoints. job: its prompts are those that heads learn on; held_out:
    those that the result is measured on, here because no state goes on with others."""

    def __init__(self, job: Job, method: Method, scorer: Scorer, held_out: Sequence[str] = ()):
        self.job = job
        self.graph = job.graph
        self.config = job.config
        self.prompts = list(job.prompts)
        self.method = method
        self.scorer = scorer
        self.held_out = list(held_out)
        # A search has a folder of its own, which is sure of its settings.
        searched = job.state / "plan" if self.config.searches else job.state
        self.references = searched / "references"
        job.open_state(
            self.prompts,
            scorer.decodes,
            **{"reward": scorer.about, "plan": method.digest, "held out": self.held_out},
        )
        architecture = family_of(self.graph.model)
        first = self.reference(0)
        if not method.fits(first.sigmas):
            raise ValueError(
                "the schedule that heads begin with (--start) was searched on other sigmas than this "
                "workflow's"
            )
        hidden = architecture.width(self.graph.model.model.diffusion_model)
        torch.manual_seed(self.config.seed)  # here: drawing pictures sets it, too
        channels = first.latent.shape[1]
        self.heads = Heads(channels, hidden, self.config.heads, method.numbers, self.config.width)
        method.begin(self.heads)
        ranks = self.config.advantages == "ranks"
        assert self.config.lr is not None and self.config.kl is not None
        settings = GRPOConfig(lr=self.config.lr, kl=self.config.kl, ranks=ranks)
        self.learner = Learner(self.heads, settings)
        self.fresh = copy.deepcopy(self.heads)  # as they begin
        self.iteration = 0
        self.log: list[dict] = []
        self._resume()
        self.fresh.scales = self.heads.scales

    def train(self) -> None:
        """All iterations that are left."""
        if self.iteration == 0:
            self._warm_up()
        iterations = self.config.iterations
        with tqdm(
            total=iterations,
            initial=self.iteration,
            desc="policy",
            unit="update",
            disable=rank() > 0,
        ) as bar:
            while self.iteration < iterations:
                scalars = self._iterate()
                self.iteration += 1
                self._save(scalars)
                shown = ("reward", "psnr", "equivalent_steps")
                bar.set_postfix({name: f"{scalars[name]:.3g}" for name in shown})
                bar.update()

    def _iterate(self) -> dict[str, float]:
        """Rollouts and one update; returns scalars."""
        started = time.monotonic()
        numbers = shard(range(self.config.prompts_per_update))
        rollouts = [self.rollout(number) for number in numbers]
        groups = [group for group, _ in rollouts]
        images = [t for group in groups for t in group]
        left = all_gather([departures(self.heads, t.steps) for t in images if t.steps])
        scalars = self.learner.update(groups) | self.scorer.learn(self.iteration)
        scalars["reward"] = mean(all_gather([t.reward for t in images]))
        decisions = sum(n for _, n in left)
        if decisions:
            scalars["left_plan"] = sum(n for n, _ in left) / decisions
        outcomes = all_gather([outcome for _, some in rollouts for outcome in some])
        scalars |= self.method.learn([(speedup, steps) for _, steps, speedup in outcomes])
        scalars["psnr"] = mean(psnr for psnr, _, _ in outcomes)
        scalars["equivalent_steps"] = mean(steps for _, steps, _ in outcomes)
        scalars["rollouts_per_second"] = len(outcomes) / (time.monotonic() - started)
        return scalars

    def rollout(self, number: int) -> tuple[list[Trajectory], list[tuple[float, float, float]]]:
        """A group of one prompt of this iteration, and (PSNR, equivalent steps, speed-up) of its
        images."""
        images = self.config.group
        generator = random.Random(f"{self.config.seed}/{self.iteration}/{number}")
        target = self.reference(generator.randrange(len(self.prompts)))
        speedup = generator.choice(self.method.speedups)
        buffer = RolloutBuffer()
        latents, steps = self.draw(target, speedup, images, generator.randrange(2**31), buffer)
        quality = self.scorer.scores(latents, target)
        rewards = self.method.rewards(quality, steps, speedup)
        decisions = [buffer.steps.get(i, []) for i in range(images)]
        log_p = torch.zeros(images)
        if any(decisions):
            with torch.no_grad():
                log_p = trajectory_log_p(self.heads, decisions).log_p
        psnr = [latent_psnr(latent[None], target.latent) for latent in latents]
        outcomes = [(p, k, speedup) for p, k in zip(psnr, steps, strict=True)]
        group = [Trajectory(*one) for one in zip(decisions, rewards, log_p, strict=True)]
        return group, outcomes

    def draw(
        self,
        target: Reference,
        speedup: float,
        images: int = 1,
        seed: int = 0,
        buffer: RolloutBuffer | None = None,
        heads: Heads | None = None,
    ) -> tuple[Tensor, list[float]]:
        """Latents (images, ...) of a reference's prompt from one initial noise, and the equivalent
        steps of each. buffer: where choices are drawn, None for the likeliest; heads: other than
        those that learn."""
        policy = self.method.policy(heads or self.heads, speedup, buffer, seed)
        model = attach(self.graph.model, policy)
        latents = self.graph.sample(target.prompt, target.seed, model, images)
        record = last_record(model)
        return latents.cpu(), [equivalent_steps(record, i) for i in range(images)]

    def reference(self, number: int) -> Reference:
        """What the picture of a prompt of the list is to be near."""
        number %= len(self.prompts)
        return self.reference_of(self.prompts[number], number)

    def reference_of(self, prompt: str, number: int) -> Reference:
        """The reference of a prompt, whose seed follows from its number."""
        seed = self.config.seed + number
        return reference(self.graph, prompt, seed, self.references, self.config.refined)

    def _warm_up(self) -> None:
        """RAPID3's phase 3: the discriminator learns on rollouts of fresh heads."""

        def draw(number: int) -> tuple[Tensor, Reference]:
            generator = random.Random(f"{self.config.seed}/beginning/{number}")
            speedup = generator.choice(self.method.speedups)
            target = self.reference(number)
            seed = generator.randrange(2**31)
            latents, _ = self.draw(target, speedup, self.config.group, seed, RolloutBuffer())
            return latents, target

        # A run of its own, which a later start leaves alone.
        board = TensorBoardLog(self.job.state / "tensorboard" / "warm_up")
        steps = self.scorer.warm_up(draw, len(self.prompts), self.job.state / "warm_up")
        for step, scalars in enumerate(steps):
            board.add(step, scalars)
        board.close()

    # Checkpoints.

    def _save(self, scalars: dict[str, float]) -> None:
        line = {"iteration": self.iteration, "when": time.time(), **scalars}
        self.log = [*self.log, line]
        if rank() > 0:
            return
        body = {
            "heads": self.heads.state_dict(),
            "scales": self.heads.scales,
            "optimiser": self.learner.optimiser.state_dict(),
            "scorer": self.scorer.state(),
            "course": self.method.course,
            "iteration": self.iteration,
            "log": self.log,
        }
        replaced(self.job.state / "checkpoint.pt", lambda part: torch.save(body, part))
        write_lines(self.job.state / "scalars.jsonl", self.log)
        self.board.add_lines(self.log[-1:])

    def _resume(self) -> None:
        body = broadcast_from_rank0(self._read_checkpoint)
        if body is None:
            self.heads.scales = broadcast_from_rank0(self._measured_scales)
        else:
            self.heads.load_state_dict(body["heads"])
            self.heads.scales = body["scales"]
            self.method.course = body["course"]
            self.learner.optimiser.load_state_dict(body["optimiser"])
            self.scorer.load(body["scorer"])
            self.iteration = body["iteration"]
            self.log = body["log"]
        if self.iteration > self.config.iterations:
            raise ValueError(
                f"{self.job.state} holds heads after {self.iteration} updates, more than --iterations "
                f"{self.config.iterations}; give another --state or --out, or delete it"
            )
        self.board = TensorBoardLog(self.job.state / "tensorboard")
        self.board.add_lines(self.log)
        if rank() == 0:
            write_lines(self.job.state / "scalars.jsonl", self.log)

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self.job.state / "checkpoint.pt"
        return torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None

    def _measured_scales(self) -> dict[str, float]:
        """Root mean square of each head's input in a first rollout."""
        buffer = RolloutBuffer()
        self.draw(self.reference(0), self.method.speedups[0], buffer=buffer)
        steps = [step for some in buffer.steps.values() for step in some]
        scales = {}
        for name in INPUTS:
            if name in self.heads.heads:
                sizes = [float(step.inputs[name].float().square().mean().sqrt()) for step in steps]
                scales[name] = max(1e-3, mean(sizes))
        return scales
