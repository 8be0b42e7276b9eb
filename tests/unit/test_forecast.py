"""Forecasts, their error estimate and the run state, on numbers one can work out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.engine.history import (
    History,
    Point,
    estimate_error,
    extrapolation_skill,
    forecast,
    relative_l1,
    weighted,
    weights,
)


def points(function, sigmas):
    return [Point(s, torch.tensor([function(s), 1.0])) for s in sigmas]


def test_order_zero_holds_the_last_value():
    assert forecast(points(lambda s: 3 * s, [1.0, 0.8]), 0.5, 0)[0] == pytest.approx(2.4)


def test_order_one_continues_a_line_and_order_two_a_parabola():
    assert forecast(points(lambda s: 3 * s + 1, [1.0, 0.8]), 0.5, 1)[0] == pytest.approx(2.5)
    assert forecast(points(lambda s: s * s, [1.0, 0.8, 0.7]), 0.3, 2)[0] == pytest.approx(
        0.09, abs=1e-6
    )


def test_half_precision_ends_at_its_largest_numbers():
    points = [
        Point(1.0, torch.tensor([20000.0, 1.0]).half()),
        Point(0.9, torch.tensor([60000.0, 2.0]).half()),
    ]
    assert forecast(points, 0.5, 1).tolist() == [65504.0, 6.0]
    assert weighted(points, [(0.9, -2.0)]).tolist() == [-65504.0, -4.0]


def test_too_few_points_lower_the_order():
    assert forecast(points(lambda s: s * s, [1.0, 0.5]), 0.0, 2)[0] == pytest.approx(-0.5)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True), st.integers(0, 100))
def test_weights_add_up_to_one(levels, at):
    assert sum(weights([v / 100 for v in levels], at / 100)) == pytest.approx(1.0, abs=1e-5)


def test_weights_of_a_tensor_sigma_equal_those_of_a_float():
    assert [float(w) for w in weights([1.0, 0.7], torch.tensor(0.4))] == pytest.approx(
        weights([1.0, 0.7], 0.4)
    )


def test_a_second_value_at_the_same_noise_level_replaces_the_first():
    track = History(3)
    track.add(0, 1.0, torch.tensor([1.0]))
    track.add(0, 1.0, torch.tensor([2.0]))
    assert [p.value.item() for p in track.points(0)] == [2.0]


@pytest.mark.parametrize("partly", [False, True])
def test_a_noise_level_that_comes_back_makes_room_for_itself(partly):
    """heunpp2 visits s0 s1 s2 | s1 s2 s3 | ...: no place may hold two points at one level."""
    track, half = History(3), torch.tensor([True, False])
    for step, sigma in enumerate([0.9, 0.8, 0.7, 0.8, 0.7, 0.6, 0.7, 0.6, 0.5]):
        where = half if partly and step in (2, 5) else None
        track.add(0, sigma, torch.full((2,), 2 * sigma + 1), where)
        levels = torch.stack([torch.as_tensor(p.sigma).expand(2) for p in track.points(0)])
        assert all(len(set(column)) == len(column) for column in levels.T.tolist())
        for order in (0, 1, 2):
            assert torch.isfinite(forecast(track.points(0), 0.45, order)).all()
    assert forecast(track.points(0), 0.3, 1).tolist() == pytest.approx([1.6, 1.6], abs=1e-3)


def test_a_place_that_was_left_out_still_grows_its_history():
    track = History(3)
    track.add(0, 1.0, torch.tensor([1.0, 1.0]))
    track.add(0, 0.8, torch.tensor([0.8, 9.0]), torch.tensor([True, False]))
    track.add(0, 0.6, torch.tensor([0.6, 0.6]))
    assert forecast(track.points(0), 0.4, 1).tolist() == pytest.approx([0.4, 0.4])
    track.forget(0)
    assert not track.points(0) and track.last_sigma(0) is None


def test_the_error_estimate_is_exact_when_one_more_order_is():
    track = points(lambda s: s * s, [1.0, 0.8, 0.7])
    truth = torch.tensor([0.25, 1.0])
    guess = forecast(track, 0.5, 1)
    wanted = (truth - guess).abs().mean() / guess.abs().mean()
    assert estimate_error(track, 0.5, 1).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_error_is_unknown_until_there_are_points_enough():
    assert estimate_error(points(math.sin, [1.0, 0.8]), 0.5, 1) is None


def test_relative_l1_of_a_value_to_itself_is_zero():
    assert relative_l1(torch.ones(3), torch.ones(3)).item() == 0.0


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.4, 1.0])
def test_a_turn_is_the_share_of_the_line_that_came_true(share):
    torch.manual_seed(0)
    before, latest = torch.randn(4, 8), torch.randn(4, 8)
    line, aside = (latest - before) * 2, torch.randn(4, 8)  # from 1.0 over .9 to .7
    aside -= line * (aside * line).sum() / line.square().sum()  # nothing of it along the line
    value = latest + share * line + 0.1 * aside
    moved, slope = extrapolation_skill([Point(1.0, before), Point(0.9, latest)], 0.7, value)
    assert slope.item() == pytest.approx(share, abs=1e-5)
    assert moved.item() == pytest.approx(relative_l1(latest, value).item())


def test_a_turn_is_not_known_of_one_point_or_of_places_with_levels_of_their_own():
    value, levels = torch.ones(4), torch.tensor([0.9, 0.9, 0.8, 0.8])
    for points in ([Point(0.9, value)], [Point(1.0, value), Point(levels, value)]):
        moved, slope = extrapolation_skill(points, 0.5, 2 * value)
        assert moved.item() == 0.5 and slope.isnan()


def test_each_place_forecasts_from_the_levels_at_which_it_was_computed():
    """Two places, one computed at 1.0 and 0.8, the other at 1.0, 0.8 and 0.6: both lie on their own
    line."""
    track, line = History(2), lambda s: torch.tensor([[3 * s, 5 - s]])
    track.add(0, 1.0, line(1.0))
    track.add(0, 0.8, line(0.8))
    track.add(0, 0.6, line(0.6) + torch.tensor([[9.0, 0.0]]), where=torch.tensor([[False, True]]))
    assert torch.allclose(track.forecast([0], 0.4, 1), line(0.4))


def test_a_second_look_at_some_places_replaces_their_latest_value():
    track = History(2)
    track.add(0, 1.0, torch.tensor([[1.0, 1.0]]))
    track.add(0, 0.5, torch.tensor([[2.0, 2.0]]))
    track.add(0, 0.5, torch.tensor([[3.0, 3.0]]), where=torch.tensor([[True, False]]))
    assert [p.value.tolist() for p in track.points(0)] == [[[1.0, 1.0]], [[3.0, 2.0]]]


def test_a_forecast_stops_at_its_reach():
    track = points(lambda s: 3 * s, [1.0, 0.9])
    assert forecast(track, 0.1, 1, reach=2.0)[0] == pytest.approx(3 * 0.7)
    assert forecast(track, 0.8, 1, reach=2.0)[0] == pytest.approx(3 * 0.8)


def test_a_turn_is_that_of_what_is_sampled():
    """Where the latent is given (inpainting) the derivative hardly changes."""
    known = [Point(1.0, torch.ones(4)), Point(0.8, torch.ones(4))]
    new, mask = torch.tensor([3.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert float(extrapolation_skill(known, 0.6, new)[0]) == pytest.approx(2 / 6)
    assert float(extrapolation_skill(known, 0.6, new, mask)[0]) == pytest.approx(2 / 3)
