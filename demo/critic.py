"""What the training judge thinks of pictures of prompts: a reward for policies, never a score of a
benchmark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from demo.judge import NONE, Judge, Regions, reduced
from demo.pack.words import BACKGROUNDS, COLOURS, MAX_OBJECTS, PLACES, SHAPES, SIZES, TEXTURES
from demo.scenes import Scenes

WEIGHTS = Path(__file__).parent / "models" / "judge_training.safetensors"
_OF = {
    "ground": BACKGROUNDS,
    "ground_colour": COLOURS,
    "size": SIZES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "shape": SHAPES,
    "place": PLACES,
}


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(
        re.sub(
            r"\w+", lambda m: f"(?P<{m[0]}>{'|'.join(_OF[m[0]])})" if m[0] in _OF else m[0], text
        )
    )


GROUND, OBJECT = (
    _pattern("ground ground_colour background"),
    _pattern("size colour texture shape place"),
)


def read(prompts: Sequence[str]) -> Scenes:
    """The scenes that prompts describe, the other way round than `Scenes.prompts`. Raises
    ValueError."""
    fields = {
        name: torch.zeros(len(prompts), MAX_OBJECTS, dtype=torch.long)
        for name in ("colour", "shape", "texture", "size", "place")
    }
    fields |= {
        name: torch.zeros(len(prompts), dtype=torch.long)
        for name in ("count", "ground", "ground_colour")
    }
    for row, prompt in enumerate(prompts):
        first, *others = prompt.split(", ")
        ground = GROUND.fullmatch(first)
        objects = [match for match in map(OBJECT.fullmatch, others) if match]
        if ground is None or len(others) > MAX_OBJECTS or len(objects) < len(others):
            raise ValueError(
                f"{prompt!r} is not a prompt of the demo's scenes; these read 'flat red background, big "
                f"blue striped circle top left', with up to {MAX_OBJECTS} objects"
            )
        fields["count"][row] = len(objects)
        for name, word in ground.groupdict().items():
            fields[name][row] = _OF[name].index(word)
        for column, match in enumerate(objects):
            for name, word in match.groupdict().items():
                fields[name][row, column] = _OF[name].index(word)
    return Scenes(**fields)


@torch.no_grad()
def confidence(judge: Judge, pictures: Tensor, chosen: Scenes) -> Tensor:
    """Mean probability (B,) that the judge gives to the shape of each object in pictures (B, 3, H,
    W); without any object, to "none" in all nine places."""
    objects, index = Regions.of_objects(chosen)
    places = Regions.of_places(len(pictures))
    empty = chosen.count[places.row] == 0
    row, centre, half = (
        torch.cat((getattr(objects, name), getattr(places, name)[empty]))
        for name in ("row", "centre", "half")
    )
    label = torch.cat(
        (chosen.shape[index[:, 0], index[:, 1]], torch.full((int(empty.sum()),), NONE))
    )
    probability = (
        judge(Regions(row, centre, half).crops(reduced(pictures)))
        .softmax(1)
        .gather(1, label[:, None])[:, 0]
    )
    total = torch.zeros(len(pictures)).index_add(0, row, probability)
    return total / torch.zeros(len(pictures)).index_add(0, row, torch.ones_like(probability))
