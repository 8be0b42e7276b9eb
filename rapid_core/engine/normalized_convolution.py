"""Computed tokens tell their neighbours what they did: a correction that spreads from known places
to the unknown ones around them.

By hand and not by torchvision's `gaussian_blur`, which pads by reflection, so that what lies near
an edge would count twice; kornia is optional in ComfyUI. rapid_core imports torch only."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..transfer import to_device

REACH = 2.5  # standard deviations at which the Gaussian ends
FLOOR = 0.05  # of the weight of a fully known neighbourhood


def normalized_convolution(values: Tensor, mask: Tensor, patch: int, radius: float = 1.0) -> Tensor:
    """Normalised convolution (Knutsson & Westin 1993) of values (C, [T,] H, W), known where `mask`
    (1, [T,] H, W), over rows and columns; as `values`, computed in float32.

    patch: rows and columns of a token; radius: standard deviation of the Gaussian, in tokens. Far
    from anything known the result goes to zero, so that a prediction stays as it was there."""
    line, total = _gaussian(radius * patch, values.device)
    reach = len(line) // 2
    known = mask.float().expand(1, *values.shape[1:])
    both = torch.cat((values.float() * known, known))
    flat = both.reshape(-1, 1, *both.shape[-2:])
    flat = torch.nn.functional.conv2d(flat, line[None, None, :, None], padding=(reach, 0))
    flat = torch.nn.functional.conv2d(flat, line[None, None, None], padding=(0, reach))
    both = flat.view_as(both)
    return (both[:-1] / both[-1:].clamp_min(FLOOR * total**2)).to(values.dtype)


@functools.lru_cache(maxsize=8)
def _gaussian(deviation: float, device: torch.device) -> tuple[Tensor, float]:
    """A Gaussian (2 * reach + 1,) of this standard deviation, 1 in its middle, and its sum. Kept
    for the next evaluation."""
    reach = max(1, round(REACH * deviation))
    line = [math.exp(-0.5 * (i / deviation) ** 2) for i in range(-reach, reach + 1)]
    with torch.inference_mode(False):  # so that later callers may be in any mode
        return to_device(torch.tensor(line), device), sum(line)
