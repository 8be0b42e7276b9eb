"""The search of schedules, and Gram matrices of runs."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.calibration.gram import inner_products, mean_gram, refine
from rapid_core.calibration.search import (
    best_marks,
    default_schedule,
    fill_up,
    key_of,
    latent_psnr,
    neighbours,
    search,
)
from rapid_core.quadrature.gram import Gram
from rapid_core.quadrature.spacing import evenly_spaced
from rapid_core.techniques.step_skip.schedule import Schedule

STEPS = 12
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS)) + (0.0,)
GRAM = Gram.of(torch.eye(STEPS, dtype=torch.float64), STEPS)


def test_refined_sigmas_keep_the_schedule():
    sigmas = refine(torch.tensor(SIGMAS), 4)
    assert len(sigmas) == 4 * STEPS + 1 and torch.allclose(sigmas[::4], torch.tensor(SIGMAS))
    assert torch.allclose(sigmas.diff(), torch.full((4 * STEPS,), -1 / STEPS / 4), atol=1e-6)
    assert torch.equal(refine(torch.tensor(SIGMAS), 1), torch.tensor(SIGMAS))


def test_runs_count_alike_whatever_their_size():
    derivatives = [torch.randn(3, 4, 4) for _ in range(2 * STEPS)]
    products = inner_products(derivatives)
    assert products.dtype == torch.float64 and float(products.trace()) == pytest.approx(1.0)
    large = inner_products([100 * derivative for derivative in derivatives])
    assert torch.allclose(products, large, atol=1e-6)
    other = inner_products([torch.randn(3, 4, 4) for _ in range(2 * STEPS)])
    gram = mean_gram([products, other], STEPS)
    assert torch.allclose(gram.products, ((products + other) / 2)[::2, ::2]) and gram.within


@given(st.integers(1, STEPS), st.integers(1, STEPS))
def test_a_schedule_is_filled_up_in_its_longest_gaps(has, count):
    marks = evenly_spaced(has, STEPS)
    filled = fill_up(marks, count)
    assert sum(filled) == max(has, count)
    assert all(new for new, old in zip(filled, marks, strict=True) if old)
    assert fill_up((True, False, False, False, True, False), 3) == (
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


def distance_to(best):
    """A score that falls with every step that a computed evaluation is away from its place."""

    def score(schedule):
        computed = [i for i, on in enumerate(schedule.computed) if on]
        return [-sum(abs(a - b) for a, b in zip(computed, best, strict=True))]

    return score


def test_the_search_climbs_to_the_schedule_that_scores_best():
    best = (0, 1, 5, 9)
    schedule, scores = search(distance_to(best), SIGMAS, GRAM, 3.0, max_tried=200)
    assert tuple(i for i, on in enumerate(schedule.computed) if on) == best and scores == [0]
    few, _ = search(distance_to(best), SIGMAS, GRAM, 3.0, max_tried=1)
    assert few.computed == evenly_spaced(4, STEPS)


def test_the_search_says_how_far_it_is_and_tries_no_more_than_it_may():
    said = []
    search(
        distance_to((0, 1, 5, 9)),
        SIGMAS,
        GRAM,
        3.0,
        max_tried=7,
        report=lambda tried, best: said.append((tried, best)),
    )
    assert [tried for tried, _ in said] == [1, 2, 3, 4, 5, 6, 7]
    assert [best for _, best in said] == sorted(best for _, best in said)


def test_figures_and_names_of_schedules():
    reference = torch.tensor([0.0, 1.0])
    assert latent_psnr(reference + 0.1, reference) == pytest.approx(20.0, abs=1e-3)
    assert latent_psnr(reference, reference) == 100.0
    for bad in (float("nan"), float("inf")):
        assert latent_psnr(torch.full_like(reference, bad), reference) == -100.0
    marks, kind = key_of(default_schedule(SIGMAS, 2.0)).split()
    assert marks.count("#") == 6 and len(marks) == STEPS and kind == "adams-bashforth"
    fitted = Schedule(evenly_spaced(3, STEPS), SIGMAS, GRAM)
    scores = {key_of(fitted): [1.0, 2.0], "#" * STEPS: [0.0], f"{marks} {kind}": [9.0]}
    assert best_marks(scores) == fitted.computed
