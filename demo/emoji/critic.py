"""What a judge thinks of pictures of prompts: a reward for policies, never a score of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from demo.emoji.judge import NONE, Judge, Regions, reduced
from demo.emoji.scenes import Scenes
from demo.pack.emoji_words import GRAMMAR, parse


def read(prompts: Sequence[str]) -> Scenes:
    """The scenes that prompts describe, the other way round than `Scenes.prompts`. Raises ValueError."""
    parsed = [parse(prompt) for prompt in prompts]
    found = [prompt for prompt in parsed if prompt is not None]
    if len(found) < len(parsed):
        raise ValueError(f"an empty prompt describes no scene. {GRAMMAR}.")
    return Scenes.of_prompts(found)


@torch.no_grad()
def confidence(judge: Judge, pictures: Tensor, chosen: Scenes) -> Tensor:
    """Mean probability (B,) that the judge gives to each object in its place in pictures (B, 3, H, W);
    without any object, to "none" in all nine places."""
    objects, index = Regions.of_objects(chosen)
    places = Regions.of_places(len(pictures))
    empty = chosen.count[places.row] == 0
    gaps = Regions(places.row[empty], places.centre[empty], places.half[empty])
    both = Regions.joined(objects, gaps)
    label = torch.cat((chosen.object[index[:, 0], index[:, 1]], torch.full((len(gaps.row),), NONE)))
    sure = judge(both.crops(reduced(pictures))).softmax(1).gather(1, label[:, None])[:, 0]
    total = torch.zeros(len(pictures)).index_add(0, both.row, sure)
    return total / torch.zeros(len(pictures)).index_add(0, both.row, torch.ones_like(sure))
