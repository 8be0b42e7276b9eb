"""Rewards of what a picture shows, beside its prompt, by networks that were trained to say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from training.clip import Clip
from training.optional import device, needed
from training.pictures import Drawn
from training.rewards.reward import Reward


class Preference(Reward):
    """ImageReward (Xu et al. 2023), RAPID3's own; often negative, hence the sigmoid."""

    name = "imagereward"
    about = "sigmoid(ImageReward-v1.0)"

    def __init__(self) -> None:
        package = needed("ImageReward", "image-reward", "reward imagereward")
        # Weights are fetched by the package itself.
        self.network = package.load("ImageReward-v1.0", device=str(device()))

    @torch.no_grad()
    def __call__(self, drawn: Drawn) -> list[float]:
        from PIL import Image

        rewards = []
        for picture in drawn.pictures:
            pixels = (picture * 255).round().byte().movedim(0, -1).contiguous().numpy()
            score = self.network.score(drawn.reference.prompt, Image.fromarray(pixels))
            rewards.append(1 / (1 + math.exp(-float(score))))
        return drawn.by_image(rewards)


class Agreement(Reward):
    """CLIPScore (Hessel et al. 2021) of picture and prompt."""

    name = "clip"

    def __init__(self, clip: Clip | None = None) -> None:
        self.clip = clip or Clip("reward clip")
        self.about = (
            f"CLIPScore: min(1, 2.5 max(0, cosine of picture and prompt)), {self.clip.name}"
        )

    def __call__(self, drawn: Drawn) -> list[float]:
        of_prompt = self.clip.text(drawn.reference.prompt)
        cosine = (self.clip.pictures(drawn.pictures) @ of_prompt.T)[:, 0]
        return drawn.by_image((2.5 * cosine).clamp(0, 1))


class Judged(Reward):
    """What the demo's scenes show, by the judge of their world that trains and scores no benchmark."""

    name = "judge"
    about = "mean probability of what the prompt names, by the demo's training judge"

    def __init__(self, prompts: Sequence[str] = ()) -> None:
        """prompts: by which the world is known; of none that of the first ones asked about."""
        try:
            from demo import world
        except ImportError:
            raise ValueError(
                "reward judge needs the folder demo/ of RAPID's repository, for its demo models "
                "only"
            ) from None
        self.world_of_prompts = world.world_of_prompts
        self.world: Any = None
        self.network: Any = None
        if prompts:
            self.check(prompts)

    def check(self, prompts: Sequence[str]) -> None:
        try:
            self.world = self.world_of_prompts(prompts)
            self.network = self.world.load_judge(self.world.judge_training)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"reward judge: {error}") from None

    def __call__(self, drawn: Drawn) -> list[float]:
        prompt = drawn.reference.prompt
        if self.network is None:
            self.check([prompt])
        chosen = self.world.read([prompt] * len(drawn.pictures))
        return drawn.by_image(self.world.confidence(self.network, drawn.pictures, chosen))
