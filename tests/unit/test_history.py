"""Predictions from histories and their error estimate, on numbers one can work out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.engine.history import (
    History,
    Point,
    change_and_skill,
    error_estimate,
    predict,
    relative_l1,
    weighted_sum,
    worst_part,
)
from rapid_core.quadrature.lagrange import lagrange_weights


def points(function, sigmas):
    return [Point(s, torch.tensor([function(s), 1.0])) for s in sigmas]


def test_order_zero_keeps_the_last_value():
    assert predict(points(lambda s: 3 * s, [1.0, 0.8]), 0.5, 0)[0] == pytest.approx(2.4)


def test_order_one_continues_a_line_and_order_two_a_parabola():
    assert predict(points(lambda s: 3 * s + 1, [1.0, 0.8]), 0.5, 1)[0] == pytest.approx(2.5)
    assert predict(points(lambda s: s * s, [1.0, 0.8, 0.7]), 0.3, 2)[0] == pytest.approx(
        0.09, abs=1e-6
    )


def test_half_precision_ends_at_its_largest_numbers():
    points = [
        Point(1.0, torch.tensor([20000.0, 1.0]).half()),
        Point(0.9, torch.tensor([60000.0, 2.0]).half()),
    ]
    assert predict(points, 0.5, 1).tolist() == [65504.0, 6.0]
    assert weighted_sum(points, [(0.9, -2.0)]).tolist() == [-65504.0, -4.0]


def test_too_few_points_lower_the_order():
    assert predict(points(lambda s: s * s, [1.0, 0.5]), 0.0, 2)[0] == pytest.approx(-0.5)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True), st.integers(0, 100))
def test_weights_add_up_to_one(sigmas, at):
    assert sum(lagrange_weights([v / 100 for v in sigmas], at / 100)) == pytest.approx(
        1.0, abs=1e-5
    )


def test_weights_of_a_tensor_sigma_equal_those_of_a_float():
    assert [float(w) for w in lagrange_weights([1.0, 0.7], torch.tensor(0.4))] == pytest.approx(
        lagrange_weights([1.0, 0.7], 0.4)
    )


def test_a_second_value_at_the_same_sigma_replaces_the_first():
    history = History(3)
    history.add(1.0, torch.tensor([1.0]))
    history.add(1.0, torch.tensor([2.0]))
    assert [p.value.item() for p in history.points] == [2.0]


@pytest.mark.parametrize("partly", [False, True])
def test_a_sigma_that_comes_back_makes_room_for_itself(partly):
    """heunpp2 visits s0 s1 s2 | s1 s2 s3 | ...: no place may hold two points at one sigma."""
    history, half = History(3), torch.tensor([True, False])
    for step, sigma in enumerate([0.9, 0.8, 0.7, 0.8, 0.7, 0.6, 0.7, 0.6, 0.5]):
        where = half if partly and step in (2, 5) else None
        history.add(sigma, torch.full((2,), 2 * sigma + 1), where)
        sigmas = torch.stack([torch.as_tensor(p.sigma).expand(2) for p in history.points])
        assert all(len(set(column)) == len(column) for column in sigmas.T.tolist())
        for order in (0, 1, 2):
            assert torch.isfinite(predict(history.points, 0.45, order)).all()
    assert predict(history.points, 0.3, 1).tolist() == pytest.approx([1.6, 1.6], abs=1e-3)


def test_a_place_that_was_not_computed_still_grows_its_history():
    history = History(3)
    history.add(1.0, torch.tensor([1.0, 1.0]))
    history.add(0.8, torch.tensor([0.8, 9.0]), torch.tensor([True, False]))
    history.add(0.6, torch.tensor([0.6, 0.6]))
    assert predict(history.points, 0.4, 1).tolist() == pytest.approx([0.4, 0.4])
    history.clear()
    assert not history.points and history.last_sigma is None


def test_the_error_estimate_is_exact_when_one_more_order_is():
    history = points(lambda s: s * s, [1.0, 0.8, 0.7])
    truth = torch.tensor([0.25, 1.0])
    guess = predict(history, 0.5, 1)
    expected = (truth - guess).abs().mean() / guess.abs().mean()
    assert error_estimate(history, 0.5, 1).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_error_is_unknown_until_there_are_points_enough():
    assert error_estimate(points(math.sin, [1.0, 0.8]), 0.5, 1) is None


def test_relative_l1_of_a_value_to_itself_is_zero():
    assert relative_l1(torch.ones(3), torch.ones(3)).item() == 0.0


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.4, 1.0])
def test_the_skill_is_the_share_of_the_line_that_came_true(share):
    torch.manual_seed(0)
    before, latest = torch.randn(4, 8), torch.randn(4, 8)
    line, aside = (latest - before) * 2, torch.randn(4, 8)  # from 1.0 over .9 to .7
    aside -= line * (aside * line).sum() / line.square().sum()  # nothing of it along the line
    value = latest + share * line + 0.1 * aside
    change, skill = change_and_skill([Point(1.0, before), Point(0.9, latest)], 0.7, value)
    assert skill.item() == pytest.approx(share, abs=1e-5)
    assert change.item() == pytest.approx(relative_l1(latest, value).item())


def test_the_skill_is_not_known_of_one_point_or_of_places_with_sigmas_of_their_own():
    value, sigmas = torch.ones(4), torch.tensor([0.9, 0.9, 0.8, 0.8])
    for points in ([Point(0.9, value)], [Point(1.0, value), Point(sigmas, value)]):
        change, skill = change_and_skill(points, 0.5, 2 * value)
        assert change.item() == 0.5 and skill.isnan()


def test_each_place_predicts_from_the_sigmas_at_which_it_was_computed():
    """Two places, one computed at 1.0 and 0.8, the other at 1.0, 0.8 and 0.6: both lie on their own
    line."""
    history, line = History(2), lambda s: torch.tensor([[3 * s, 5 - s]])
    history.add(1.0, line(1.0))
    history.add(0.8, line(0.8))
    history.add(0.6, line(0.6) + torch.tensor([[9.0, 0.0]]), where=torch.tensor([[False, True]]))
    assert torch.allclose(history.predict(0.4, 1), line(0.4))


def test_a_second_look_at_some_places_replaces_their_latest_value():
    history = History(2)
    history.add(1.0, torch.tensor([[1.0, 1.0]]))
    history.add(0.5, torch.tensor([[2.0, 2.0]]))
    history.add(0.5, torch.tensor([[3.0, 3.0]]), where=torch.tensor([[True, False]]))
    assert [p.value.tolist() for p in history.points] == [[[1.0, 1.0]], [[3.0, 2.0]]]


def test_a_prediction_stops_at_its_reach():
    history = points(lambda s: 3 * s, [1.0, 0.9])
    assert predict(history, 0.1, 1, reach=2.0)[0] == pytest.approx(3 * 0.7)
    assert predict(history, 0.8, 1, reach=2.0)[0] == pytest.approx(3 * 0.8)


def test_the_change_is_that_of_what_is_sampled():
    """Where the latent is given (inpainting) the derivative hardly changes."""
    known = [Point(1.0, torch.ones(4)), Point(0.8, torch.ones(4))]
    new, mask = torch.tensor([3.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert float(change_and_skill(known, 0.6, new)[0]) == pytest.approx(2 / 6)
    assert float(change_and_skill(known, 0.6, new, mask)[0]) == pytest.approx(2 / 3)


def test_the_worst_part_of_a_packed_latent_decides():
    """Video and audio are packed into one latent; the mean over both hides the smaller one."""
    reference, parts = torch.ones(1, 10), (slice(0, 9), slice(9, 10))
    value = reference.clone()
    value[:, 9] = 3.0
    assert worst_part(value, reference, ()).item() == pytest.approx(0.2)
    assert worst_part(value, reference, parts).item() == pytest.approx(2.0)
    points = [
        Point(s, torch.cat((torch.ones(9), torch.tensor([v]))))
        for s, v in ((1.0, 1.0), (0.9, -1.0))
    ]
    assert error_estimate(points, 0.8, 0, parts).item() == pytest.approx(2.0)
