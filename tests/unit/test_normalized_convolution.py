"""Corrections that spread to neighbours."""

import math

import pytest
import torch

from rapid_core.engine import normalized_convolution as module
from rapid_core.engine.normalized_convolution import normalized_convolution


def test_a_correction_reaches_its_neighbours_and_fades_far_away():
    mask = torch.zeros(1, 16, 64, dtype=torch.bool)
    mask[..., :32] = True
    out = normalized_convolution(2.0 * mask.expand(3, -1, -1), mask, 2)
    assert torch.allclose(out[..., :33], torch.tensor(2.0)) and not out[..., -8:].any()


@pytest.mark.parametrize("frames", [(), (3,)])
def test_it_is_the_weighted_mean_of_what_is_known_nearby(frames):
    """Place by place; what lies beyond an edge is not known."""
    make = torch.Generator().manual_seed(0)
    values = torch.randn(2, *frames, 7, 9, generator=make)
    mask = torch.rand(1, *frames, 7, 9, generator=make) < 0.3
    out = normalized_convolution(values, mask, 1)
    line = [math.exp(-0.5 * i * i) for i in range(-2, 3)]
    assert out.shape == values.shape
    frame = (1,) * len(frames)
    for row, column in ((0, 0), (3, 4), (6, 8), (0, 5)):
        total, weight = torch.zeros(2), 0.0
        for i in range(-2, 3):
            for j in range(-2, 3):
                y, x = row + i, column + j
                if 0 <= y < 7 and 0 <= x < 9 and mask[(0, *frame, y, x)]:
                    total += line[i + 2] * line[j + 2] * values[(slice(None), *frame, y, x)]
                    weight += line[i + 2] * line[j + 2]
        wanted = total / max(weight, 0.05 * sum(line) ** 2)
        assert torch.allclose(out[(slice(None), *frame, row, column)], wanted, atol=1e-5)


def test_the_gaussian_is_made_once_and_serves_any_mode():
    module._gaussian.cache_clear()
    values = torch.randn(2, 8, 8)
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    with torch.inference_mode():
        normalized_convolution(values, mask, 2)
    values.requires_grad_()
    normalized_convolution(values, mask, 2).sum().backward()
    assert module._gaussian.cache_info().misses == 1 and values.grad is not None
