"""Phase 4: heads learn by GRPO on rollouts of the workflow."""

from __future__ import annotations

import copy
import random
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from rapid_core.techniques.heads.rapid3 import INPUTS, Heads
from training.files import replaced
from training.graph import Graph
from training.grpo import Learner, Settings, Trajectory, trajectory_log_p
from training.host import attach, family_of, last_record
from training.likelihood import TrajectoryTape, left_plan
from training.methods import Method, searches
from training.plan_search import latent_psnr
from training.plans import REFINE
from training.processes import from_first, rank, share, together
from training.references import Reference, reference
from training.scalars import Board, write_lines
from training.scorer import Scorer
from training.state import claim


class Trainer:
    """Rollouts, updates and checkpoints. Every random choice follows from seed and iteration, so
    that training that was killed goes on as if it had not been."""

    def __init__(
        self,
        graph: Graph,
        prompts: Sequence[str],
        args: Namespace,
        state: Path,
        method: Method,
        scorer: Scorer,
        held_out: Sequence[str] = (),
    ):
        self.graph, self.prompts, self.args, self.state = graph, list(prompts), args, state
        self.method, self.scorer, self.held_out = method, scorer, list(held_out)
        self.refine = REFINE if args.target == "solution" else 1
        # A search has a folder of its own, which is sure of its settings.
        self.references = state / "plan" / "references" if searches(args) else state / "references"
        names = (
            "kind",
            "heads",
            "speedups",
            "prompts_per_update",
            "group",
            "lr",
            "discount",
            "width",
            "seed",
            "target",
            "mode",
            "advantages",
            "sparse_backend",
        )
        settings = {name: getattr(args, name) for name in names}
        known = {"reward": scorer.about, "plan": method.digest, "held out": self.held_out}
        claim(state, graph.own_nodes(scorer.decodes), prompts, {**settings, **known})
        architecture = family_of(graph.model)
        first = self.reference(0)
        if not method.fits(first.schedule):
            raise ValueError(
                "the schedule that heads begin with (--start) was searched on other noise levels than "
                "this workflow's"
            )
        hidden = architecture.width(graph.model.model.diffusion_model)
        torch.manual_seed(args.seed)  # here: drawing pictures sets it, too
        self.heads = Heads(first.latent.shape[1], hidden, args.heads, method.numbers, args.width)
        method.begin(self.heads)
        self.learner = Learner(self.heads, Settings(lr=args.lr, ranks=args.advantages == "ranks"))
        self.iteration, self.fresh = 0, copy.deepcopy(self.heads)
        self._resume()
        self.fresh.scales = self.heads.scales

    def reference(self, number: int) -> Reference:
        """What the picture of a prompt of the list is to be near."""
        number %= len(self.prompts)
        return self.wanted(self.prompts[number], number)

    def wanted(self, prompt: str, number: int) -> Reference:
        """The reference of a prompt, whose seed follows from its number."""
        return reference(self.graph, prompt, self.args.seed + number, self.references, self.refine)

    def _scales(self) -> dict[str, float]:
        """Root mean square of each head's input in a first rollout."""
        rollout = TrajectoryTape()
        self.draw(self.reference(0), self.method.speedups[0], 1, 0, rollout)
        rows = [row for some in rollout.rows.values() for row in some]
        return {
            name: max(
                1e-3, mean(float(row.inputs[name].float().square().mean().sqrt()) for row in rows)
            )
            for name in INPUTS
            if name in self.heads.heads
        }

    def draw(
        self,
        wanted: Reference,
        speedup: float,
        images: int,
        seed: int,
        rollout: TrajectoryTape | None,
        heads: Heads | None = None,
    ) -> tuple[torch.Tensor, list[float]]:
        """Latents (images, ...) of a prompt from one initial noise, and the equivalent steps of
        each. heads: other than those that learn."""
        model = attach(
            self.graph.model, self.method.policy(heads or self.heads, speedup, rollout, seed)
        )
        latents = self.graph.sample(wanted.prompt, wanted.seed, model, images)
        evaluations = last_record(model).evaluations
        steps = [
            sum(e.cost[i] / max(e.dense_cost[i], 1.0) for e in evaluations) for i in range(images)
        ]
        return latents.cpu(), steps

    def group(self, number: int) -> list[Trajectory]:
        """Rollouts of one prompt of this iteration."""
        args = self.args
        generator = random.Random(f"{args.seed}/{self.iteration}/{number}")
        wanted = self.reference(generator.randrange(len(self.prompts)))
        speedup = generator.choice(self.method.speedups)
        rollout = TrajectoryTape()
        latents, steps = self.draw(wanted, speedup, args.group, generator.randrange(2**31), rollout)
        quality = self.scorer.scores(latents, wanted)
        rewards = self.method.rewards(quality, steps, speedup)
        rows = [rollout.rows.get(i, []) for i in range(args.group)]
        with torch.no_grad():
            old = trajectory_log_p(self.heads, rows)[0] if any(rows) else torch.zeros(args.group)
        near = [latent_psnr(x[None], wanted.latent) for x in latents]
        self.seen += [(p, k, speedup) for p, k in zip(near, steps, strict=True)]
        return [Trajectory(r, reward, p) for r, reward, p in zip(rows, rewards, old, strict=True)]

    def beginning(self, number: int) -> tuple[torch.Tensor, Reference]:
        """Rollouts of a prompt as they are before the first update, and its reference."""
        generator = random.Random(f"{self.args.seed}/beginning/{number}")
        speedup = generator.choice(self.method.speedups)
        wanted, seed = self.reference(number), generator.randrange(2**31)
        return self.draw(wanted, speedup, self.args.group, seed, TrajectoryTape())[0], wanted

    def train(self) -> None:
        """All iterations that are left."""
        if self.iteration == 0:
            board = Board(
                self.state / "tensorboard" / "warm_up"
            )  # a run of its own, which a later start leaves alone
            steps = self.scorer.warm_up(self.beginning, len(self.prompts), self.state / "warm_up")
            for step, scalars in enumerate(steps):
                board.add(step, scalars)
            board.close()
        with tqdm(
            total=self.args.iterations,
            initial=self.iteration,
            desc="policy",
            unit="update",
            disable=rank() > 0,
        ) as bar:
            while self.iteration < self.args.iterations:
                self.seen: list[tuple[float, float, float]] = []
                began = time.monotonic()
                groups = [self.group(n) for n in share(range(self.args.prompts_per_update))]
                left = together(
                    [left_plan(self.heads, t.rows) for group in groups for t in group if t.rows]
                )
                scalars = self.learner.update(groups) | self.scorer.learn(self.iteration)
                rewards, seen = (
                    together([t.reward for group in groups for t in group]),
                    together(self.seen),
                )
                scalars["reward"] = mean(rewards)
                if any(n for _, n in left):
                    scalars["left_plan"] = sum(n for n, _ in left) / sum(n for _, n in left)
                scalars |= self.method.learn([(speedup, k) for _, k, speedup in seen])
                scalars["psnr"], scalars["equivalent_steps"] = (
                    mean(p for p, _, _ in seen),
                    mean(k for _, k, _ in seen),
                )
                scalars["rollouts_per_second"] = len(seen) / (time.monotonic() - began)
                self.iteration += 1
                self._save(scalars)
                bar.set_postfix(
                    {k: f"{scalars[k]:.3g}" for k in ("reward", "psnr", "equivalent_steps")}
                )
                bar.update()

    # Checkpoints.
    def _save(self, scalars: dict[str, float]) -> None:
        optimiser = self.learner.optimiser.state_dict()
        body = {
            "heads": self.heads.state_dict(),
            "scales": self.heads.scales,
            "optimiser": optimiser,
            "scorer": self.scorer.state(),
            "course": self.method.course,
            "iteration": self.iteration,
            "log": [*self.log, {"iteration": self.iteration, "when": time.time(), **scalars}],
        }
        self.log = body["log"]
        if rank() > 0:
            return
        replaced(self.state / "checkpoint.pt", lambda part: torch.save(body, part))
        write_lines(self.state / "scalars.jsonl", self.log)
        self.board.add_lines(self.log[-1:])

    def _resume(self) -> None:
        self.log: list[dict] = []
        path = self.state / "checkpoint.pt"
        body = from_first(
            lambda: (
                torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None
            )
        )
        if body is None:
            self.heads.scales = from_first(self._scales)
        else:
            self.heads.load_state_dict(body["heads"])
            self.heads.scales, self.method.course = (
                body["scales"],
                body.get("course", self.method.course),
            )
            self.learner.optimiser.load_state_dict(body["optimiser"])
            self.scorer.load(body["scorer"])
            self.iteration, self.log = body["iteration"], body["log"]
        if self.iteration > self.args.iterations:
            raise ValueError(
                f"{self.state} holds heads after {self.iteration} updates, more than --iterations "
                f"{self.args.iterations}; give another --state or --out, or delete it"
            )
        self.board = Board(self.state / "tensorboard")
        self.board.add_lines(self.log)
        if rank() == 0:
            write_lines(self.state / "scalars.jsonl", self.log)
