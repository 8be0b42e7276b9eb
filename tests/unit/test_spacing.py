"""Which steps of a run are computed: the best path through the costs of gaps."""

import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.quadrature.spacing import (
    BEGINS_AT_TURN,
    ENDS_AT_TURN,
    Spacing,
    best_spaced,
    evenly_spaced,
    gap_cost,
    spacing_of,
    steps_of_whole,
)

SHIFTED = tuple(3 * t / (1 + 2 * t) for t in (1 - i / 12 for i in range(13)))


def cost_of(computed, sigmas):
    """Sum over the gaps of a run."""
    steps = [i for i, on in enumerate(computed) if on]
    gaps = [(a, b) for a, b in itertools.pairwise(steps) if b > a + 1]
    return sum(gap_cost(sigmas[a], sigmas[b]) for a, b in gaps)


@pytest.mark.parametrize("count", range(4, 12))
def test_no_other_choice_of_as_many_steps_costs_less(count):
    best = best_spaced(count, SHIFTED)
    assert sum(best) == count and best[0] and best[-1]
    between = range(1, 11)
    others = (
        tuple(i in (0, *some, 11) for i in range(12))
        for some in itertools.combinations(between, count - 2)
    )
    least = min(cost_of(other, SHIFTED) for other in others)
    assert cost_of(best, SHIFTED) == pytest.approx(least)
    assert spacing_of(SHIFTED).rest(0, count - 1) == pytest.approx(least)


@given(st.sets(st.integers(1, 11), min_size=1, max_size=4), st.integers(1, 12))
def test_no_gap_leads_over_a_turn(turns, count):
    """Turns are computed, and the others where they cost least; more than asked for where there are as many
    turns, which are computed anyway."""
    spacing = Spacing(SHIFTED, turns=tuple(turns))
    best = best_spaced(count, SHIFTED, tuple(turns))
    fewest = len({0, 11, *turns})
    assert best[0] and best[11] and all(best[turn] for turn in turns)
    assert sum(best) == max(count, fewest)
    others = (
        tuple(i in (0, *some, 11) for i in range(12))
        for some in itertools.combinations(range(1, 11), sum(best) - 2)
    )
    assert spacing.total(best) == pytest.approx(min(spacing.total(other) for other in others))


@pytest.mark.parametrize(
    "steps, turns, count",
    [
        (20, (16, 17), 4),
        (28, (20, 21, 22), 5),
        (40, (30, 31, 32, 33), 7),
        (28, (6, 26), 4),
        (28, (27,), 2),
    ],
)
def test_where_turns_lie_together_the_gap_before_them_is_as_long_as_it_has_to_be(
    steps, turns, count
):
    sigmas = [3 * t / (1 + 2 * t) for t in (1 - i / steps for i in range(steps + 1))]
    best = best_spaced(count, sigmas, turns)
    assert sum(best) == count and all(best[turn] for turn in turns)


def test_a_gap_costs_more_where_it_ends_at_a_turn_and_most_where_it_begins_at_one():
    usual, turned = Spacing(SHIFTED), Spacing(SHIFTED, turns=(5,))
    assert turned.cost(1, 4) == usual.cost(1, 4)
    assert turned.cost(3, 5) == ENDS_AT_TURN * usual.cost(3, 5) > usual.cost(3, 5)
    assert turned.cost(5, 7) == BEGINS_AT_TURN * usual.cost(5, 7) > 2 * usual.cost(5, 7)
    assert turned.cost(4, 6) == math.inf and turned.cost(4, 5) == turned.cost(5, 6) == 0


@given(st.integers(2, 60), st.floats(0.5, 12.0))
def test_one_evaluation_more_never_costs_more(steps, shift):
    sigmas = [shift * t / (1 + (shift - 1) * t) for t in (1 - i / steps for i in range(steps + 1))]
    spacing = Spacing(sigmas)
    rests = [spacing.rest(0, left) for left in range(1, steps)]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(rests))
    assert not rests or rests[-1] == 0.0


def test_well_below_twice_the_speed_no_two_steps_in_a_row_are_skipped():
    for count in range(17, 28):
        sigmas = [3 * t / (1 + 2 * t) for t in (1 - i / 28 for i in range(29))]
        marks = "".join("#" if on else "." for on in best_spaced(count, sigmas))
        assert ".." not in marks


def test_gaps_are_shorter_where_sigma_falls_fast():
    """The last steps of a shifted schedule are ten times as long as its first."""
    sigmas = [3 * t / (1 + 2 * t) for t in (1 - i / 28 for i in range(29))]
    chosen = [i for i, on in enumerate(best_spaced(9, sigmas)) if on]
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert max(gaps) > gaps[-1] == 2


def test_sigmas_above_one_are_understood_by_their_share_of_noise():
    """As of models that are no flows: 14.6 to 0.03."""
    karras = [(14.6 ** (1 / 7) * (1 - i / 20) + 0.03 ** (1 / 7) * i / 20) ** 7 for i in range(20)]
    marks = best_spaced(10, [*karras, 0.0])
    assert sum(marks) == 10 and marks[0] and marks[-1]


def test_sigmas_that_rise_or_stand_still_are_spaced_evenly():
    assert best_spaced(4, [1.0, 0.5, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0]) == evenly_spaced(4, 8)
    assert sum(best_spaced(4, [1.0, 0.9, 0.9, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0])) == 4


def test_long_runs_are_settled_quickly():
    steps = 400
    computed = best_spaced(100, [1 - i / steps for i in range(steps + 1)])
    assert sum(computed) == 100


def test_a_part_of_a_run_counts_as_many_steps_as_the_whole_would_have():
    whole = [3 * t / (1 + 2 * t) for t in (1 - i / 20 for i in range(21))]
    assert steps_of_whole(whole) == pytest.approx(20)
    noisy, clean = steps_of_whole(whole[:11]), steps_of_whole(whole[10:])
    assert noisy > 10 and clean > 10 and 1 / (10 / noisy + 10 / clean) == pytest.approx(1)
    assert steps_of_whole([14.6 * (1 - i / 8) for i in range(9)]) == pytest.approx(8, abs=0.5)
    assert steps_of_whole([0.5, 0.5]) == math.inf


TINY_LAST = (*SHIFTED[:9], 0.02, 0.005, 0.001, 0.0)  # as beta and karras end


def test_last_steps_that_are_next_to_nothing_are_left_to_a_prediction():
    spacing = spacing_of(TINY_LAST)
    best = spacing.best(5)
    ends_computed = (True, *spacing.after(0, 4))
    assert best[0] and not best[-1] and sum(best) == 5 and ends_computed[-1]
    assert spacing.total(best) < spacing.total(ends_computed)
    assert best_spaced(5, TINY_LAST[:-1])[-1]  # a part of a run, from which another sampler goes on
    assert best_spaced(5, TINY_LAST, turns=(3,))[-1]


def test_what_follows_the_last_step_costs_as_its_measured_neighbours_do():
    """Nothing was measured of it: nothing corrects a gap there."""
    formula = spacing_of(SHIFTED)
    gaps = [(a, b) for a in range(10) for b in range(a + 2, min(a + 4, 12))]
    measured = Spacing(SHIFTED, {gap: 7 * formula.cost(*gap) for gap in gaps})
    for step in (8, 10):
        assert measured.tail(step) == pytest.approx(7 * formula.tail(step))
    assert measured.tail(11) == formula.tail(11) == 0.0


def test_threads_that_plan_on_the_same_sigmas_do_not_break_each_others_plan():
    sigmas = tuple(1 - i / 100 for i in range(101))
    counts = [50, 49, 50, 48]
    wanted = [Spacing(sigmas).best(count) for count in counts]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            shared = Spacing(sigmas)
            with ThreadPoolExecutor(len(counts)) as pool:
                assert list(pool.map(shared.best, counts)) == wanted
    finally:
        sys.setswitchinterval(usual)
