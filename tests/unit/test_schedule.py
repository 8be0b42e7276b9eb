"""Schedules decided before the run: spacing, budget, and quadrature weights."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.quadrature.gram import adams_bashforth
from rapid_core.techniques.step_skip.schedule import (
    FOLLOWED,
    KEPT,
    USUAL,
    SchedulePolicy,
    evenly_spaced,
    max_evaluations,
)
from rapid_core.types import Mode
from rapid_testing.actors import marks_of, text

LEVELS = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3, unique=True).filter(
    lambda s: min(abs(a - b) for a in s for b in s if a != b) > 0.02
)


@given(st.integers(1, 60), st.floats(1.0, 6.0))
def test_the_plan_never_costs_more_than_the_budget_allows(steps, speedup):
    plan = evenly_spaced(max_evaluations(speedup, steps), steps)
    assert len(plan) == steps and plan[0]
    assert sum(plan) <= max(1, steps / speedup + 1e-6)
    assert sum(plan) > steps / speedup - 1 or sum(plan) == 1
    assert sum(plan) < 2 or plan[-1]


def test_evaluations_are_spread_evenly():
    marks = "".join("#" if on else "." for on in evenly_spaced(14, 28))
    assert marks.count("#") == 14
    gaps = [len(gap) for gap in marks.split("#")]
    assert max(gaps[1:-1]) - min(gaps[1:-1]) <= 1


@given(
    LEVELS,
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_weights_give_the_mean_of_every_polynomial_of_their_order(levels, start, stop, order, a, b):
    """Adams-Bashforth: exact by algebra; and with no end of the step the value at its start."""
    if abs(start - stop) < 1e-3:
        stop = start + 0.1
    used = levels[: order + 1]
    value = [lambda s: 1.0, lambda s: a + b * s, lambda s: a + b * s + s * s][order]
    whole = [
        lambda s: s,
        lambda s: a * s + b * s * s / 2,
        lambda s: a * s + b * s * s / 2 + s**3 / 3,
    ][order]
    scale = 1e-6 * (1 + sum(abs(w) for w in adams_bashforth(used, start, stop)))
    mean = sum(w * value(s) for w, s in zip(adams_bashforth(used, start, stop), used, strict=True))
    assert math.isclose(mean, (whole(stop) - whole(start)) / (stop - start), abs_tol=10 * scale)
    point = sum(w * value(s) for w, s in zip(adams_bashforth(used, start, None), used, strict=True))
    assert math.isclose(point, value(start), abs_tol=10 * scale)


def test_what_is_left_out_is_forecast_from_the_latest_computed_ones():
    actions, _ = marks_of(SchedulePolicy(2.0), 10)
    assert text(actions) == "".join("#" if on else "." for on in evenly_spaced(5, 10))
    held = next(a for i, a in enumerate(actions) if i > 3 and a.level is Mode.SKIP)
    assert len(held.weights) == 2 and sum(w for _, w in held.weights) == pytest.approx(1.0)
    assert actions[1].weights == ((1.0, 1.0),)


def test_a_budget_below_two_evaluations_says_so():
    actions, actor = marks_of(SchedulePolicy(6.0), 4)
    assert text(actions) == "#..." and "one evaluation is computed" in actor.notes[0]


def test_what_had_to_be_computed_although_it_was_to_be_held_is_paid_for():
    plain, _ = marks_of(SchedulePolicy(3.0), 24)
    found, _ = marks_of(SchedulePolicy(3.0), 24, forced=(4, 11))
    wanted = [i for i, a in enumerate(found) if a.level is Mode.RUN]
    assert text(plain)[4] == text(plain)[11] == "."
    assert len(set(wanted) | {4, 11}) <= max_evaluations(3.0, 24) == text(plain).count("#")


def test_without_known_levels_what_is_held_is_held_by_the_polynomial():
    """As after token subsets, whose parts have levels of their own."""
    seen, _ = marks_of(SchedulePolicy(2.0), 12)
    blind, _ = marks_of(SchedulePolicy(2.0), 12, blind=True)
    assert text(blind) == text(seen) and all(a.weights is None for a in blind)


@pytest.mark.parametrize(
    "known, share",
    [
        ({}, USUAL),
        ({"moved": 0.1}, USUAL),
        ({"moved": 0.7}, 0.0),
        ({"moved": 0.7, "slope": 1.0}, KEPT + FOLLOWED),
        ({"slope": 0.0}, KEPT),
        ({"slope": -5.0}, 0.0),
        ({"slope": 5.0}, 1.0),
    ],
)
@pytest.mark.parametrize("euler", [True, False])
def test_forecasts_move_on_by_as_much_of_the_slope_as_was_measured(known, share, euler):
    """Under Euler to the mean over the step, else to the value at its beginning."""
    actions = marks_of(SchedulePolicy(3.0), 24, euler=euler, **known)[0]
    i = max(i for i, a in enumerate(actions) if a.level is Mode.SKIP)
    used, weights = zip(*actions[i].weights, strict=True)
    full = adams_bashforth(used, 1 - i / 24, 1 - (i + 1) / 24 if euler else None)
    assert weights[0] == pytest.approx(share * full[0]) and sum(weights) == pytest.approx(1.0)


def test_of_few_evaluations_the_last_comes_earlier():
    found = {speedup: text(marks_of(SchedulePolicy(speedup), 8)[0]) for speedup in (2.0, 2.5, 4.0)}
    assert found == {2.0: "#.#..#.#", 2.5: "#..#..#.", 4.0: "#....#.."}
