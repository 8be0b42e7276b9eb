"""Plans: weights fitted on whole runs, and the search around them."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.quadrature.gram import Gram
from rapid_core.techniques.step_skip.schedule import Plan, evenly_spaced
from rapid_testing.runs import bending, products_of, weights_by_hand
from training.plan_search import default_plan, filled_up, key_of, latent_psnr, neighbours, search
from training.references import refined

STEPS = 12
SCHEDULE = tuple(1 - i / STEPS for i in range(STEPS)) + (0.0,)


def final_error(plan, derivatives, parts=1):
    """Error of the last latent where every derivative is the true run's, relative to how far the
    run goes."""
    error, way = torch.zeros(64), torch.zeros(64)
    by_hand = weights_by_hand(plan) if plan.gram is not None else [None] * STEPS
    for i in range(STEPS):
        length = SCHEDULE[i + 1] - SCHEDULE[i]
        true = derivatives[i * parts : (i + 1) * parts].mean(0)
        found = derivatives[i * parts]
        if not plan.computed[i]:
            found = sum(w * derivatives[SCHEDULE.index(level) * parts] for level, w in by_hand[i])
        error, way = error + length * (found - true), way + length * true
    return float(error.norm() / way.norm())


def test_what_two_derivatives_span_is_forecast_exactly():
    derivatives = bending(SCHEDULE, bend=0)
    plan = Plan(evenly_spaced(5, STEPS), SCHEDULE, Gram.of(products_of(derivatives), STEPS))
    assert not plan.gram.within and final_error(plan, derivatives) < 1e-3


def test_with_refined_steps_the_errors_of_computed_steps_are_made_good_too():
    """Euler's own error is in the computed steps; the weights of the others pay it back."""
    derivatives = bending(SCHEDULE, parts=8, bend=0)
    gram = Gram.of(products_of(derivatives), STEPS)
    plan = Plan(evenly_spaced(5, STEPS)[:-1] + (False,), SCHEDULE, gram)
    dense = Plan((True,) * STEPS, SCHEDULE)
    assert gram.within and final_error(plan, derivatives, 8) < 1e-3 < 0.01 < final_error(
        dense, derivatives, 8
    )


def test_refined_levels_keep_the_schedule():
    levels = refined(torch.tensor(SCHEDULE), 4)
    assert len(levels) == 4 * STEPS + 1 and torch.allclose(levels[::4], torch.tensor(SCHEDULE))
    assert torch.allclose(levels.diff(), torch.full((4 * STEPS,), -1 / STEPS / 4), atol=1e-6)


@given(st.integers(1, STEPS), st.integers(1, STEPS))
def test_a_plan_is_filled_up_in_its_longest_gaps(has, count):
    marks = evenly_spaced(has, STEPS)
    found = filled_up(marks, count)
    assert sum(found) == max(has, count) and all(
        new for new, old in zip(found, marks, strict=True) if old
    )
    assert filled_up((True, False, False, False, True, False), 3) == (
        True,
        False,
        True,
        False,
        True,
        False,
    )


@given(st.integers(0, 10**6), st.integers(2, STEPS))
def test_neighbours_move_one_evaluation_and_never_the_first(seed, count):
    marks = evenly_spaced(count, STEPS)
    for other in neighbours(marks, random.Random(seed)):
        assert other[0] and sum(other) == count
        assert sum(a != b for a, b in zip(marks, other, strict=True)) == 2


def test_the_search_climbs_to_the_plan_that_scores_best():
    gram = Gram.of(products_of(bending(SCHEDULE, bend=0, noise=0.1)), STEPS)
    wanted = {0, 1, 5, 9}

    def score(plan):
        return [
            -sum(
                abs(a - b)
                for a, b in zip(
                    sorted(i for i, on in enumerate(plan.computed) if on),
                    sorted(wanted),
                    strict=True,
                )
            )
        ]

    found, scores = search(score, SCHEDULE, gram, 3.0, most=200)
    assert {i for i, on in enumerate(found.computed) if on} == wanted and scores == [0]
    few, _ = search(score, SCHEDULE, gram, 3.0, most=1)
    assert few.computed == evenly_spaced(4, STEPS)


def test_figures_and_names_of_plans():
    wanted = torch.tensor([0.0, 1.0])
    assert latent_psnr(wanted + 0.1, wanted) == pytest.approx(20.0, abs=1e-3)
    assert latent_psnr(wanted, wanted) == 100.0
    for bad in (float("nan"), float("inf")):
        assert latent_psnr(torch.full_like(wanted, bad), wanted) == -100.0
    marks, kind = key_of(default_plan(SCHEDULE, 2.0)).split()
    assert marks.count("#") == 6 and len(marks) == STEPS and kind == "adams-bashforth"
