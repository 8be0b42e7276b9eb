"""Corrections that spread to neighbours."""

import torch

from rapid_core.engine.normalized_convolution import normalized_convolution


def test_a_correction_reaches_its_neighbours_and_fades_far_away():
    mask = torch.zeros(1, 16, 64, dtype=torch.bool)
    mask[..., :32] = True
    out = normalized_convolution(2.0 * mask.expand(3, -1, -1), mask, 2)
    assert torch.allclose(out[..., :33], torch.tensor(2.0)) and not out[..., -8:].any()
