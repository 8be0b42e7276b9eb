"""What was computed tells its neighbours: a correction spread from active tokens to the inactive
ones around them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalized_convolution(values: Tensor, mask: Tensor, patch: int, radius: float = 1.0) -> Tensor:
    """Normalised convolution (Knutsson & Westin 1993) of values (C, [T,] H, W), known where `mask`
    (1, [T,] H, W).

    radius: standard deviation of the Gaussian, in tokens. Far from anything known the result goes
    to zero, so that a forecast stays as it was there."""
    sigma = radius * patch
    reach = max(1, round(2.5 * sigma))
    line = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    kernel = torch.tensor(line, device=values.device)
    known = mask.float().expand(1, *values.shape[1:])
    both = torch.cat((values.float() * known, known))
    flat = both.reshape(-1, 1, *both.shape[-2:])
    flat = torch.nn.functional.conv2d(flat, kernel[None, None, :, None], padding=(reach, 0))
    flat = torch.nn.functional.conv2d(flat, kernel[None, None, None], padding=(0, reach))
    both = flat.view_as(both)
    floor = 0.05 * sum(line) ** 2  # of the weight of a fully known neighbourhood
    return (both[:-1] / both[-1:].clamp_min(floor)).to(values.dtype)
