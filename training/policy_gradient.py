"""Phase 4: heads learn by GRPO on rollouts of the workflow, and are measured on prompts they have not seen."""

from __future__ import annotations

import random
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from rapid_core.actions import Sparsity
from rapid_core.policies.from_file import head_metadata, head_tensors
from rapid_core.policies.heads import INPUTS, Heads, HeadsPolicy
from rapid_core.policy_file import PolicyFile, write
from training.files import replaced, write_text
from training.graph import Graph
from training.grpo import Learner, Settings, Trajectory, trajectory_log_p
from training.host import attach, family_of, last_record
from training.likelihood import TrajectoryTape
from training.plan_search import latent_psnr
from training.processes import from_first, rank, share, together
from training.references import Reference, reference
from training.rewards import discounted
from training.scalars import Board, write_lines
from training.scorer import scorer_for
from training.state import claim

DENSITIES = (0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Plus:
    """What differs from the published method. budgets: heads know what is left of the budget, and one file serves all
    speed-ups; order: of the forecast of what is held; omega: weight of the discriminator unless given; published: 0, a
    discount in place of budgets, and 1."""

    budgets: bool
    order: int
    omega: float


KINDS = {"rapid3": Plus(False, 0, 1.0), "rapid+": Plus(True, 1, 0.0)}


class Trainer:
    """Rollouts, updates and checkpoints. Every random choice follows from seed and iteration, so that training that was
    killed goes on as if it had not been."""

    def __init__(self, graph: Graph, prompts: Sequence[str], args: Namespace, state: Path):
        self.graph, self.prompts, self.args, self.state = graph, list(prompts), args, state
        self.plus = KINDS[args.kind]
        self.scorer = scorer_for(graph, prompts, args, state)
        names = ("kind", "heads", "speedups", "prompts_per_update", "group", "lr", "discount", "width", "seed")
        settings = {name: getattr(args, name) for name in names}
        claim(state, graph.own_nodes, prompts, {**settings, "reward": self.scorer.about})
        architecture = family_of(graph.model)
        first = self.reference(0)
        self.family, hidden = architecture.family, int(getattr(graph.model.model.diffusion_model, architecture.hidden))
        torch.manual_seed(args.seed)  # here: drawing pictures sets it, too
        self.heads = Heads(first.latent.shape[1], hidden, args.heads, 2 if self.plus.budgets else 1, args.width)
        self._start_near_dense()
        self.heads.scales = from_first(self._scales)
        self.learner = Learner(self.heads, Settings(lr=args.lr))
        self.iteration = 0
        self._resume()

    def reference(self, number: int) -> Reference:
        """Dense reference of a prompt of the list."""
        number %= len(self.prompts)
        return reference(self.graph, self.prompts[number], self.args.seed + number, self.state / "references")

    def _start_near_dense(self) -> None:
        """Biases with which fresh heads recompute, attend densely and jump by about a fifth: TPDM's, and ours."""
        for name, bias in (("step", (2.5, 1.0)), ("cache", (2.0, 0.0)), ("sparse", (2.0, 0.0, 0.0, 0.0))):
            if name in self.heads.heads:
                self.heads.heads[name].fc2.bias.data.copy_(torch.tensor(bias))

    def _scales(self) -> dict[str, float]:
        """Root mean square of each head's input in a first rollout."""
        tape = TrajectoryTape()
        self.draw(self.reference(0), 1.0, 1, 0, tape)
        rows = [row for some in tape.rows.values() for row in some]
        return {name: max(1e-3, mean(float(row.inputs[name].float().square().mean().sqrt()) for row in rows))
                for name in INPUTS if name in self.heads.heads}  # fmt: skip

    def draw(
        self, wanted: Reference, speedup: float, images: int, seed: int, tape: TrajectoryTape | None
    ) -> tuple[torch.Tensor, list[float]]:
        """Latents (images, ...) of a prompt from one initial noise, and the equivalent steps of each."""
        sparsity = Sparsity(left_out="means") if "sparse" in self.heads.heads else None
        policy = HeadsPolicy(self.heads, speedup, self.plus.order, DENSITIES, sparsity, "training", tape, seed)
        model = attach(self.graph.model, policy)
        latents = self.graph.sample(wanted.prompt, wanted.seed, model, images)
        evaluations = last_record(model).evaluations
        steps = [sum(e.cost[i] / max(e.dense_cost[i], 1.0) for e in evaluations) for i in range(images)]
        return latents.cpu(), steps

    def group(self, number: int) -> list[Trajectory]:
        """Rollouts of one prompt of this iteration."""
        args = self.args
        generator = random.Random(f"{args.seed}/{self.iteration}/{number}")
        wanted = self.reference(generator.randrange(len(self.prompts)))
        speedup = generator.choice(args.speedups) if self.plus.budgets else 1.0
        tape = TrajectoryTape()
        latents, steps = self.draw(wanted, speedup, args.group, generator.randrange(2**31), tape)
        quality = self.scorer.scores(latents, wanted)
        rewards = quality if self.plus.budgets else discounted(quality, steps, args.discount)
        rows = [tape.rows.get(i, []) for i in range(args.group)]
        with torch.no_grad():
            old = trajectory_log_p(self.heads, rows)[0] if any(rows) else torch.zeros(args.group)
        self.seen += [(latent_psnr(x[None], wanted.latent), k) for x, k in zip(latents, steps, strict=True)]
        return [Trajectory(r, reward, p) for r, reward, p in zip(rows, rewards, old, strict=True)]

    def beginning(self, number: int) -> tuple[torch.Tensor, Reference]:
        """Rollouts of a prompt as they are before the first update, and its reference."""
        generator = random.Random(f"{self.args.seed}/beginning/{number}")
        speedup = generator.choice(self.args.speedups) if self.plus.budgets else 1.0
        wanted, seed = self.reference(number), generator.randrange(2**31)
        return self.draw(wanted, speedup, self.args.group, seed, TrajectoryTape())[0], wanted

    def train(self) -> None:
        """All iterations that are left."""
        if self.iteration == 0:
            self.scorer.warm_up(self.beginning, len(self.prompts), self.state / "warm_up")
        with tqdm(total=self.args.iterations, initial=self.iteration, desc="policy", unit="update",
                  disable=rank() > 0) as bar:  # fmt: skip
            while self.iteration < self.args.iterations:
                self.seen: list[tuple[float, float]] = []
                began = time.monotonic()
                groups = [self.group(n) for n in share(range(self.args.prompts_per_update))]
                scalars = self.learner.update(groups) | self.scorer.learn(self.iteration)
                rewards, seen = together([t.reward for group in groups for t in group]), together(self.seen)
                scalars["reward"] = mean(rewards)
                scalars["psnr"], scalars["equivalent_steps"] = (mean(column) for column in zip(*seen, strict=True))
                scalars["rollouts_per_second"] = len(seen) / (time.monotonic() - began)
                self.iteration += 1
                self._save(scalars)
                bar.set_postfix({k: f"{scalars[k]:.3g}" for k in ("reward", "psnr", "equivalent_steps")})
                bar.update()

    # Checkpoints.
    def _save(self, scalars: dict[str, float]) -> None:
        body = {"heads": self.heads.state_dict(), "optimiser": self.learner.optimiser.state_dict(),
                "scorer": self.scorer.state(), "iteration": self.iteration,
                "log": [*self.log, {"iteration": self.iteration, "when": time.time(), **scalars}]}  # fmt: skip
        self.log = body["log"]
        if rank() > 0:
            return
        replaced(self.state / "checkpoint.pt", lambda part: torch.save(body, part))
        write_lines(self.state / "scalars.jsonl", self.log)
        self.board.add_lines(self.log[-1:])

    def _resume(self) -> None:
        self.log: list[dict] = []
        path = self.state / "checkpoint.pt"
        body = from_first(lambda: torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None)
        if body is not None:
            self.heads.load_state_dict(body["heads"])
            self.learner.optimiser.load_state_dict(body["optimiser"])
            self.scorer.load(body["scorer"])
            self.iteration, self.log = body["iteration"], body["log"]
        self.board = Board(self.state / "tensorboard")
        self.board.add_lines(self.log)
        if rank() == 0:
            write_lines(self.state / "scalars.jsonl", self.log)


def train_heads(
    graph: Graph, prompts: Sequence[str], args: Namespace, state: Path, path: Path, command: str
) -> tuple[PolicyFile, str]:
    """Train heads on all prompts but the last `args.held_out`, measure them on those, and write them."""
    split = len(prompts) - args.held_out
    trainer = Trainer(graph, prompts[:split], args, state)
    trainer.train()
    trainer.board.close()
    budgets = args.speedups if trainer.plus.budgets else [1.0]
    rows = [measured(trainer, prompts[split:], budget, split) for budget in budgets]
    said = metadata(trainer, rows, command)
    file = from_first(lambda: write(path, "heads", said, head_tensors(trainer.heads)))
    lines = [f"| {r['budget']:g} | {r['equivalent_steps']:.2f} | {r['psnr']:.2f} | {r['worst']:.2f} |" for r in rows]
    text = "\n".join(["| budget | equivalent steps | PSNR of the latent, dB | worst |", "|---|---|---|---|", *lines])
    about = "\n".join(f"- {name}: {value}" for name, value in sorted(file.metadata.items()))
    if rank() == 0:
        write_text(path.with_suffix(".md"), f"# {path.stem}\n\n{text}\n\n{about}\n")
    return file, text


def measured(trainer: Trainer, prompts: Sequence[str], budget: float, first: int) -> dict[str, float]:
    """The heads' most likely choices on prompts they have not seen."""
    found, numbered = [], share(list(enumerate(prompts)))
    for i, prompt in tqdm(numbered, desc=f"held out at {budget:g}x", unit="picture", disable=rank() > 0):
        wanted = reference(trainer.graph, prompt, trainer.args.seed + first + i, trainer.state / "references")
        latents, steps = trainer.draw(wanted, budget, 1, 0, None)
        found.append((latent_psnr(latents, wanted.latent), steps[0]))
    found = together(found)
    return {"budget": budget, "psnr": mean(p for p, _ in found), "worst": min(p for p, _ in found),
            "equivalent_steps": mean(k for _, k in found)}  # fmt: skip


def metadata(trainer: Trainer, rows: list[dict], command: str) -> dict[str, Any]:
    """What the file says of itself."""
    args, plus = trainer.args, trainer.plus
    reward = trainer.scorer.about
    return {
        "architecture": trainer.family, "base_model": trainer.graph.model_name, "method": args.kind,
        "budgets": args.speedups if plus.budgets else [1.0], "licence": args.licence, "training_command": command,
        "reward": reward if plus.budgets else f"{reward}, discounted by {args.discount:g} an equivalent step",
        "torch": torch.__version__, "measured": rows, "measured_prompts": args.held_out,
        **head_metadata(trainer.heads, plus.order, DENSITIES),
    }  # fmt: skip
