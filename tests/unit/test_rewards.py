"""Rewards: the paper's discount, and its trap."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.references import Reference
from training.rewards import Fidelity, discount, discounted


@given(st.integers(1, 40), st.floats(0.5, 0.99))
def test_the_discount_is_the_mean_of_its_powers(steps, rate):
    assert discount(steps, rate) == pytest.approx(sum(rate ** (steps - k) for k in range(1, steps + 1)) / steps)


@given(st.floats(0.01, 1.0), st.floats(1.0, 28.0), st.floats(1.0, 28.0))
def test_of_equal_pictures_the_cheaper_one_is_worth_more(quality, one, other):
    a, b = discounted([quality, quality], [one, other], 0.97)
    assert a == pytest.approx(b) if one == pytest.approx(other) else (a > b) == (one < other)


def test_quality_below_nothing_is_refused():
    """Discounting would make it better the more a bad picture costs."""
    with pytest.raises(ValueError, match="quality -0.3 is below 0"):
        discounted([0.5, -0.3], [10.0, 10.0], 0.97)


def test_fidelity_lies_between_nothing_and_one_and_rises_with_psnr():
    wanted = Reference("p", 0, torch.linspace(0, 1, 16).view(1, 1, 4, 4), (1.0, 0.0), "euler", 1, torch.zeros(1, 1))
    noise = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([0.0, 1e-3, 1e-1, 10.0]).view(4, 1, 1, 1)
    found = Fidelity()(wanted.latent + scales * noise, wanted)
    assert found == sorted(found, reverse=True) and 0 <= found[-1] < 0.01 and found[0] > 0.99
