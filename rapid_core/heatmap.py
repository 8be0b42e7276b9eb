"""Pictures of a record: how often each image token was computed, and a strip with one cell an
evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .record import RunRecord, unpack
from .types import Mode

STRIP = 24  # height of the strip in pixels
# Colours from never to always.
SCALE = torch.tensor(
    [[0.10, 0.10, 0.35], [0.15, 0.45, 0.65], [0.35, 0.75, 0.45], [0.98, 0.90, 0.25]]
)
SMALLEST = 256  # pixels of the shorter side, where there is no picture to lie over
NARROW = 4  # pixels of a cell of the strip that has a line beside it


def computed_share(record: RunRecord, image: int) -> Tensor:
    """Share of evaluations in which each token was computed, (rows, columns), mean over frames;
    float32."""
    frames, rows, columns = record.grid or (1, 1, 1)
    total = torch.zeros(frames * rows * columns)
    for evaluation in record.evaluations:
        tokens = evaluation.tokens[image] if evaluation.tokens else None
        if tokens is not None:
            total[unpack(tokens)] += 1
        else:
            total += evaluation.token_share[image]
    return (total / max(1, len(record.evaluations))).view(frames, rows, columns).mean(0)


def coloured(values: Tensor) -> Tensor:
    """Values 0 .. 1 of any shape -> colours (..., 3)."""
    place = values.clamp(0, 1) * (len(SCALE) - 1)
    low = place.floor().long().clamp_max(len(SCALE) - 2)
    return torch.lerp(SCALE[low], SCALE[low + 1], (place - low)[..., None])


def strip(record: RunRecord, image: int, width: int) -> Tensor:
    """One cell an evaluation, coloured by the share of tokens that ran, (STRIP, width, 3); held
    ones are black."""
    shares = torch.tensor([e.token_share[image] for e in record.evaluations] or [0.0])
    reused = torch.tensor(
        [e.modes[image] == Mode.REUSE.value for e in record.evaluations] or [False]
    )
    colours = coloured(shares)
    colours[(shares == 0) & ~reused] = 0.0
    cells = torch.arange(width) * len(shares) // width
    out = colours[cells].expand(STRIP, -1, -1).clone()
    edges = torch.cat((torch.tensor([False]), cells[1:] != cells[:-1]))
    if len(shares) * NARROW <= width:  # else the lines would hide the cells
        out[:, edges] = 1.0
    return out


def draw(record: RunRecord, picture: Tensor | None = None) -> Tensor:
    """IMAGE (B, H, W, 3), float32 in 0 .. 1: the map of every image of the batch, over `picture` (B
    or 1, H, W, 3) if given, with the strip below; the strip alone where nobody chose tokens."""
    if record.grid is None:
        return torch.stack([strip(record, image, SMALLEST) for image in range(record.shape[0])])
    out = []
    for image in range(record.shape[0]):
        shares = computed_share(record, image)
        if picture is None:
            factor = max(1, SMALLEST // min(shares.shape))
            size = (shares.shape[0] * factor, shares.shape[1] * factor)
        else:
            size = tuple(picture.shape[1:3])
        heat = coloured(F.interpolate(shares[None, None], size, mode="nearest")[0, 0])
        if picture is not None:
            grey = picture[image % len(picture)].float().cpu().mean(-1, keepdim=True)
            heat = 0.6 * heat + 0.4 * grey
        out.append(torch.cat((heat, strip(record, image, size[1]))))
    return torch.stack(out)
