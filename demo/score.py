"""What pictures show of the scenes that they were asked for: colours by rule (`rules`), shapes by the
judge (`judge`)."""

from __future__ import annotations

import torch
from torch import Tensor

from demo import judge, rules
from demo.scenes import Scenes


def share(right: Tensor) -> float | None:
    """Mean of a mask, None where there is nothing to count."""
    return round(float(right.float().mean()), 4) if len(right) else None


def right(network: judge.Judge, pictures: Tensor, chosen: Scenes) -> tuple[Tensor, ...]:
    """Masks of the objects' colours, the backgrounds' and the objects' shapes that are as they should
    be."""
    colours, grounds = rules.colours_right(pictures, chosen)
    named, index = judge.shapes(network, pictures, chosen)
    return colours, grounds, named == chosen.shape[index[:, 0], index[:, 1]]


def score(pictures: Tensor, chosen: Scenes, critic: judge.Judge) -> dict:
    """Shares of objects and backgrounds that are as the prompt says; `picture`: all of a picture is
    right."""
    colour, ground, shape = right(critic, pictures, chosen)
    row = judge.Regions.of_objects(chosen)[1][:, 0]
    both = colour & shape
    wrong = torch.zeros(len(chosen)).index_add(0, row, (~both).float())
    picture = (wrong == 0) & ground
    by_count = {}
    for count in chosen.count.unique().tolist():
        of = chosen.count == count
        objects = chosen.count[row] == count
        by_count[count] = {
            "pictures": int(of.sum()),
            "object_colour": share(colour[objects]),
            "shape": share(shape[objects]),
            "background": share(ground[of]),
            "picture": share(picture[of]),
        }
    return {
        "pictures": len(chosen),
        "objects": len(row),
        "object_colour": share(colour),
        "background": share(ground),
        "shape": share(shape),
        "object": share(both),
        "picture": share(picture),
        "by_count": by_count,
    }
