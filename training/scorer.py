"""What rollouts are worth before cost enters: rewards, and the discriminator's opinion beside
them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from training.discriminator import Discriminator
from training.features import features_for
from training.job import Job
from training.pictures import Drawn, Pictures, save
from training.processes import all_gather, rank, shard
from training.references import Reference
from training.rewards import Mixture, parsed

WARM_UP_PROMPTS = 64  # at most; whose pictures the discriminator sees before the first update

Draw = Callable[[int], tuple[Tensor, Reference]]
"""Rollouts and reference of a prompt by its number."""


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
        self.rewards = rewards
        self.pictures = pictures
        self.discriminator = discriminator
        self.omega = omega
        self.warm_up_steps = warm_up_steps
        # Since the last update, by group: figures by reward, and features of the reference's
        # picture and of drawn ones.
        self.seen: list[tuple[dict[str, list[float]], tuple[Tensor, Tensor] | None]] = []

    @property
    def about(self) -> str:
        """What a policy's metadata say of it."""
        if self.discriminator is None:
            return self.rewards.about
        return (
            f"(q + {self.omega:g} d) / {1 + self.omega:g}; q: {self.rewards.about}; d: sigmoid of a "
            "discriminator between reference and drawn pictures on features of "
            f"{self.discriminator.features.name}, warmed up for {self.warm_up_steps} steps"
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
        sound, finite = _sound(latents, reference)
        drawn = Drawn(sound, reference, self.pictures)
        quality, columns = self.rewards(drawn)
        features = None
        if self.discriminator is not None:
            of_reference, of_drawn = self._features(drawn)
            likeness = drawn.by_image(self.discriminator.likeness(of_drawn))
            columns["discriminator"] = likeness
            quality = [
                (q + self.omega * d) / (1 + self.omega)
                for q, d in zip(quality, likeness, strict=True)
            ]
            features = of_reference, _of_images(of_drawn, finite)
        self.seen.append((columns, features))
        return [q if ok else 0.0 for q, ok in zip(quality, finite.tolist(), strict=True)]

    def _features(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Of the reference's picture and of drawn ones."""
        assert self.discriminator is not None
        reference = self.pictures.of_reference(drawn.reference)
        return self.discriminator.look(reference), self.discriminator.look(drawn.pictures)

    def learn(self, iteration: int) -> dict[str, float]:
        """After the policy's update: one step of the discriminator, and the iteration's scalars."""
        seen = all_gather(self.seen)
        self.seen = []
        names = seen[0][0] if seen else ()
        scalars = {
            f"reward/{name}": mean(v for columns, _ in seen for v in columns[name])
            for name in names
        }
        if self.discriminator is None:
            return scalars
        for _, features in seen:
            assert features is not None
            of_reference, of_drawn = features
            if len(of_drawn):
                self.discriminator.remember(of_reference, of_drawn)
        if self.discriminator.ready:
            scalars |= self.discriminator.step(str(iteration))
        return scalars

    def warm_up(self, draw: Draw, prompts: int, folder: Path) -> list[dict[str, float]]:
        """RAPID3's phase 3, before the first update: pictures of full runs against those of the
        initial policy, kept as features in `folder`. Returns scalars of its steps."""
        if self.discriminator is None or not self.warm_up_steps:
            return []
        own = []
        numbers = shard(range(min(prompts, WARM_UP_PROMPTS)))
        bar = tqdm(numbers, desc="discriminator: pictures", unit="prompt", disable=rank() > 0)
        for number in bar:
            path = folder / f"{number}.safetensors"
            if not path.is_file():
                latents, reference = draw(number)
                sound, finite = _sound(latents, reference)
                of_reference, of_drawn = self._features(Drawn(sound, reference, self.pictures))
                save({"full": of_reference, "drawn": _of_images(of_drawn, finite)}, path)
            own.append(load_file(path))
        for features in all_gather(own):
            self.discriminator.remember(features["full"], features["drawn"])
        if not self.discriminator.ready:
            return []
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


def _sound(latents: Tensor, reference: Reference) -> tuple[Tensor, Tensor]:
    """Latents (B, ...) with the reference's in place of those that overflowed, and which did not,
    (B,) on the CPU."""
    finite = torch.isfinite(latents.flatten(1)).all(1).cpu()
    mask = finite.to(latents.device).view(-1, *[1] * (latents.dim() - 1))
    return torch.where(mask, latents, reference.latent.to(latents)), finite


def _of_images(features: Tensor, chosen: Tensor) -> Tensor:
    """Features (n, width) of the pictures of some images. chosen (B,); of videos n is a multiple of
    B."""
    frames = len(features) // len(chosen)
    return features[chosen.repeat_interleave(frames).to(features.device)]


def scorer_for(job: Job) -> Scorer:
    """The scorer that the config asks for. Raises ValueError before anything is drawn: for
    packages, weights, prompts or a VAE Decode that are missing."""
    config = job.config
    rewards = Mixture(parsed(config.reward), job.prompts)
    pictures = Pictures(job.graph, job.state / "pictures")
    if config.omega or any(reward.looks for reward, _ in rewards.parts):
        assert job.graph.decoder  # raises where there is none
    if not config.omega:
        return Scorer(rewards, pictures)
    discriminator = Discriminator(features_for(config.features, job.prompts), config.seed)
    return Scorer(rewards, pictures, discriminator, config.omega, config.discriminator_warm_up)
