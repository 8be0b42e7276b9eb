"""What pictures show of the scenes that they were asked for: objects in their places by the judge (`judge`),
backgrounds by rule (`rules`)."""

from __future__ import annotations

import torch
from torch import Tensor

from demo.emoji import judge, rules
from demo.emoji.scenes import Scenes
from demo.pack.emoji_words import OBJECTS, SIZES
from demo.score import share


def _grounds(pictures: Tensor, chosen: Scenes) -> Tensor:
    """Whether each background has its colour (B,)."""
    return rules.backgrounds(pictures, chosen) == chosen.ground_colour


def right(network: judge.Judge, pictures: Tensor, chosen: Scenes) -> tuple[Tensor, ...]:
    """Masks of the objects and of the backgrounds that are as they should be."""
    named, index = judge.objects(network, pictures, chosen)
    return named == chosen.object[index[:, 0], index[:, 1]], _grounds(pictures, chosen)


def score(pictures: Tensor, chosen: Scenes, critic: judge.Judge) -> dict:
    """Shares of objects and backgrounds that are as the prompt says; `picture`: all of a picture is right."""
    named, index = judge.objects(critic, pictures, chosen)
    row, k = index.unbind(1)
    there = named == chosen.object[row, k]
    ground = _grounds(pictures, chosen)
    wrong = torch.zeros(len(chosen)).index_add(0, row, (~there).float())
    picture = (wrong == 0) & ground
    size = chosen.size[row, k]
    missed = sorted({OBJECTS[i] for i in chosen.object[row, k][~there].tolist()})
    return {
        "pictures": len(chosen),
        "objects": len(row),
        "object": share(there),
        "object_by_size": {name: share(there[size == i]) for i, name in enumerate(SIZES)},
        "none_seen": share(named == judge.NONE),
        "background": share(ground),
        "picture": share(picture),
        "more_than_one_wrong": share(wrong > 1),
        "by_count": {int(n): share(picture[chosen.count == n]) for n in chosen.count.unique()},
        "missed": missed,
    }
