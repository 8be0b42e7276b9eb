"""What could be gained by plans and budgets of each picture."""

import pytest

from benchmarks.headroom import figures, neighbours, of_budgets, of_plans
from evaluation.suites import Picture
from rapid_core.quadrature.spacing import evenly_spaced


def test_neighbours_are_as_many_other_plans_of_as_many_evaluations():
    plan = evenly_spaced(9, 28)
    plans = neighbours(plan, 8)
    assert plans[0] == plan and len(set(plans)) == 8
    assert plans == neighbours(plan, 8)
    for other in plans[1:]:
        assert sum(other) == 9 and other[0] and len(other) == 28
        assert 2 <= sum(a != b for a, b in zip(plan, other, strict=True)) <= 4


def test_where_there_are_not_so_many_neighbours_there_are_fewer():
    assert neighbours((True, True, False), 8) == [(True, True, False), (True, False, True)]


def test_the_best_for_each_is_the_mean_of_each_pictures_best():
    found = of_plans({"plan_0/9": [40.0, 50.0], "plan_1/9": [46.0, 48.0]})
    assert found["own"] == 45 and found["best_for_all"] == 47 and found["best"] == "plan_1/9"
    assert found["best_for_each"] == 48


def test_budgets_go_where_evaluations_gain_most():
    # The first picture gains 10 dB by a second step, the other one 2.
    rows = of_budgets({1: [30.0, 30.0], 2: [40.0, 32.0]})
    assert [row["evaluations"] for row in rows] == [1, 1.5, 2]
    assert rows[1] == {"evaluations": 1.5, "for_each": 35, "for_all": 33, "gain": 2}
    assert rows[0]["gain"] == rows[2]["gain"] == 0


def test_pictures_that_gain_the_same_leave_nothing_to_choose():
    rows = of_budgets({7: [40.0] * 3, 9: [44.0] * 3, 14: [50.0] * 3})
    assert all(row["gain"] == pytest.approx(0) for row in rows)


def picture(method, seed, decibels):
    """A picture of the log, as near to the full as to the converged one."""
    return Picture(method, seed, [], 0.0, decibels, decibels, 1.0, 1, 1, False)


def test_prompts_that_not_every_plan_has_drawn_yet_do_not_count():
    log = [picture(f"plan_{i}/7", seed, 40.0 + i) for i in range(2) for seed in range(3)]
    log += [picture("plan_0/9", seed, 50.0) for seed in range(2)] + [picture("full/1.0", 7, 99.0)]
    found = figures(log, [7, 9])
    assert found["prompts"] == 2
    assert found["full"]["plans"]["7"]["best_for_all"] == 41
    assert found["converged"]["plans"]["9"]["best_for_each"] == 50
