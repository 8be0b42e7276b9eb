"""What rollouts are worth before cost enters: rewards, and the discriminator's opinion beside
them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from training.discriminator import Discriminator
from training.features import features_for
from training.graph import Graph
from training.pictures import Drawn, Pictures, save
from training.processes import rank, share, together
from training.references import Reference
from training.rewards import Mixture, parsed

WARM_UP_PROMPTS = 64  # at most; whose pictures the discriminator sees before the first update
Draw = Callable[[int], tuple[Tensor, Reference]]


class Scorer:
    """(q + omega d) / (1 + omega) of each image, q the mixture of rewards and d the
    discriminator's: 0 .. 1.

    discriminator: None with omega 0; warm_up_steps: of it before the first update."""

    def __init__(
        self,
        rewards: Mixture,
        pictures: Pictures,
        discriminator: Discriminator | None = None,
        omega: float = 0.0,
        warm_up_steps: int = 0,
    ):
        self.rewards, self.pictures, self.discriminator = rewards, pictures, discriminator
        self.omega, self.warm_up_steps = omega, warm_up_steps
        self.seen: list[
            tuple[dict[str, list[float]], tuple[Tensor, Tensor] | None]
        ] = []  # since the last update

    @property
    def about(self) -> str:
        """What a policy's metadata say of it."""
        if self.discriminator is None:
            return self.rewards.about
        return (
            f"(q + {self.omega:g} d) / {1 + self.omega:g}; q: {self.rewards.about}; d: sigmoid of a discriminator "
            f"between reference and drawn pictures on features of {self.discriminator.features.name}, warmed up "
            f"for {self.warm_up_steps} steps"
        )

    @property
    def decodes(self) -> bool:
        """Whether pictures are looked at."""
        return self.discriminator is not None or any(
            reward.looks for reward, _ in self.rewards.parts
        )

    def scores(self, latents: Tensor, reference: Reference) -> list[float]:
        """One figure an image of latents (B, ...), 0 for one that overflowed. What was seen is
        remembered until `learn`."""
        fine = torch.isfinite(latents.flatten(1)).all(1).cpu()
        sound = fine.to(latents.device).view(-1, *[1] * (latents.dim() - 1))
        drawn = Drawn(
            torch.where(sound, latents, reference.latent.to(latents)), reference, self.pictures
        )
        (quality, columns), looked = self.rewards(drawn), None
        if self.discriminator is not None:
            looked = self._look(drawn)
            opinion = columns["discriminator"] = drawn.by_image(
                self.discriminator.likeness(looked[1])
            )
            quality = [
                (q + self.omega * d) / (1 + self.omega)
                for q, d in zip(quality, opinion, strict=True)
            ]
            learned = fine.repeat_interleave(len(looked[1]) // len(fine)).to(
                looked[1].device
            )  # videos: frame by frame
            looked = (looked[0], looked[1][learned])
        self.seen.append((columns, looked))
        return [q if ok else 0.0 for q, ok in zip(quality, fine.tolist(), strict=True)]

    def _look(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Features of the dense picture and of drawn ones."""
        assert self.discriminator is not None
        dense = self.pictures.of_reference(drawn.reference)
        return self.discriminator.look(dense), self.discriminator.look(drawn.pictures)

    def learn(self, iteration: int) -> dict[str, float]:
        """After the policy's update: one step of the discriminator, and the iteration's scalars."""
        seen, self.seen = together(self.seen), []
        names = seen[0][0] if seen else ()
        scalars = {
            f"reward/{name}": mean(v for columns, _ in seen for v in columns[name])
            for name in names
        }
        if self.discriminator is None:
            return scalars
        for _, (dense, ours) in seen:
            if len(ours):
                self.discriminator.remember(dense, ours)
        return scalars | (
            self.discriminator.step(str(iteration)) if self.discriminator.ready else {}
        )

    def warm_up(self, draw: Draw, prompts: int, folder: Path) -> list[dict[str, float]]:
        """RAPID3's phase 3, before the first update: dense pictures against those of the initial
        policy. draw: rollouts and reference of a prompt by its number, kept as features in
        `folder`. Returns scalars of its steps."""
        if self.discriminator is None or not self.warm_up_steps:
            return []
        own, work = [], share(range(min(prompts, WARM_UP_PROMPTS)))
        for number in tqdm(work, desc="discriminator: pictures", unit="prompt", disable=rank() > 0):
            path = folder / f"{number}.safetensors"
            if not path.is_file():
                dense, ours = self._look(Drawn(*draw(number), self.pictures))
                save({"dense": dense, "drawn": ours}, path)
            own.append(load_file(path))
        for found in together(own):
            self.discriminator.remember(found["dense"], found["drawn"])
        bar = tqdm(
            range(self.warm_up_steps),
            desc="discriminator: warm-up",
            unit="step",
            disable=rank() > 0,
        )
        steps = [self.discriminator.step(f"warm-up/{step}") for step in bar]
        last = mean(step["discriminator/accuracy"] for step in steps[-10:])
        if rank() == 0:
            print(f"discriminator after {len(steps)} steps of warm-up: accuracy {last:.2f}")
        return steps

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on after an iteration."""
        return self.discriminator.state() if self.discriminator else {}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        if self.discriminator:
            self.discriminator.load(state)


def scorer_for(graph: Graph, prompts: Sequence[str], args: Namespace, state: Path) -> Scorer:
    """The scorer that flags ask for. Raises ValueError before anything is drawn: for packages,
    weights, prompts or a VAE Decode that are missing."""
    rewards = Mixture(parsed(args.reward), prompts)
    pictures = Pictures(graph, state / "pictures")
    if args.omega or any(reward.looks for reward, _ in rewards.parts):
        assert graph.decoder
    if not args.omega:
        return Scorer(rewards, pictures)
    discriminator = Discriminator(features_for(args.features), args.seed)
    return Scorer(rewards, pictures, discriminator, args.omega, args.discriminator_warm_up)
