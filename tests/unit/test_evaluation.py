"""Figures of pictures: what rows say about them."""

import math
import random
from statistics import mean

import pytest
import torch

from evaluation import rows


def test_psnr_is_that_of_the_mean_squared_error():
    reference = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    picture = (reference + 0.1).clamp(0, 1)
    error = (picture - reference).square().mean().item()
    assert rows.psnr(picture, reference) == pytest.approx(-10 * math.log10(error), abs=1e-4)


def test_psnr_of_identical_and_nearly_identical_pictures_is_100():
    picture = torch.rand(3, 64, 64)
    assert rows.psnr(picture, picture) == rows.psnr(picture + 1e-7, picture) == 100.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_picture_that_is_not_finite_has_no_psnr(value):
    picture = torch.rand(3, 64, 64)
    with pytest.raises(ValueError, match="not finite"):
        rows.psnr(picture * value, picture)


def test_the_interval_is_the_bootstraps_within_the_digits_that_are_printed():
    generator = random.Random(0)
    values = [30 + generator.gauss(0, 4) for _ in range(200)]
    means = sorted(mean(generator.choices(values, k=len(values))) for _ in range(4000))
    low, high = rows.interval(values)
    assert low == pytest.approx(means[100], abs=0.05)
    assert high == pytest.approx(means[3900], abs=0.05)
    assert rows.interval(values) == (low, high)


def test_one_value_has_no_interval_and_equal_values_a_narrow_one():
    assert rows.interval([3.0]) is None
    assert rows.interval([3.0, 3.0]) == (3.0, 3.0)


def test_a_spread_of_nothing_says_nothing():
    assert rows.Spread.of([]) == rows.Spread(None, None, None, None)
    spread = rows.Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.p5, spread.worst) == (2.0, 1.0, 1.0)
