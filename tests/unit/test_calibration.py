"""What gaps cost, the path through their table, and the search that may follow."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.calibration.gaps import costs_of, latent_error, with_gap
from rapid_core.calibration.search import default_schedule, key_of, latent_psnr, neighbours, search
from rapid_core.quadrature.gap_costs import gaps_of
from rapid_core.quadrature.sigmas import refine
from rapid_core.quadrature.spacing import POWER, Spacing, best_spaced, difficulty, evenly_spaced
from rapid_core.techniques.step_skip.schedule import Schedule

STEPS = 12
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS)) + (0.0,)
EVEN = Schedule(evenly_spaced(4, STEPS), SIGMAS)


def costs(seed, longest):
    """A table of positive costs without any order."""
    chance = random.Random(seed)
    return {gap: chance.uniform(0.1, 10.0) for gap in gaps_of(STEPS, longest)}


def total(computed, table):
    """What the gaps of a run cost together; inf with one that is not in the table."""
    steps = [i for i, on in enumerate(computed) if on]
    gaps = [(a, b) for a, b in itertools.pairwise(steps) if b > a + 1]
    return sum(table.get(gap, math.inf) for gap in gaps)


@pytest.mark.parametrize("count", range(5, STEPS + 1))
@pytest.mark.parametrize("seed", range(3))
def test_no_other_choice_of_as_many_steps_costs_less_by_the_table(count, seed):
    table = costs(seed, STEPS)
    best = Spacing(SIGMAS, table).best(count)
    assert sum(best) == count and best[0] and best[-1]
    others = (
        tuple(i in (0, *some, STEPS - 1) for i in range(STEPS))
        for some in itertools.combinations(range(1, STEPS - 1), count - 2)
    )
    assert total(best, table) == pytest.approx(min(total(other, table) for other in others))


def test_gaps_are_all_those_whose_far_end_is_computed():
    gaps = gaps_of(6, 3)
    assert len(gaps) == len(set(gaps)) == 4 + 3 + 2
    for gap in gaps:
        computed = with_gap(gap, 6)
        assert computed[0] and computed[-1] and 1 <= computed.count(False) <= 3
        assert computed[gap[0]] and computed[gap[1]]
    assert gaps_of(2) == [] and gaps_of(3) == [(0, 2)]


def test_gaps_longer_than_the_table_go_on_with_the_formulas_power():
    spacing = Spacing(SIGMAS, costs(0, 2))
    measured = costs(0, 2)[3, 6]
    assert spacing.cost(3, 6) == measured and spacing.cost(3, 4) == 0.0
    at = [difficulty(sigma) for sigma in SIGMAS]
    ratio = (at[9] - at[3]) / (at[6] - at[3])
    assert spacing.cost(3, 9) == pytest.approx(measured * ratio**POWER)
    # And with the whole formula as a table nothing changes.
    plain = Spacing(SIGMAS)
    table = {gap: 7.0 * plain.cost(*gap) for gap in gaps_of(STEPS, 2)}
    for count in range(2, STEPS + 1):
        assert Spacing(SIGMAS, table).best(count) == plain.best(count)


def test_a_gap_within_another_costs_less_whatever_a_picture_is_worth():
    """Costs that grow with a gap's length still do when pictures are taken together."""
    plain = Spacing(SIGMAS)
    tables = [
        {gap: scale * plain.cost(*gap) for gap in gaps_of(STEPS)} for scale in (1e-3, 1.0, 50.0)
    ]
    costs = costs_of(tables, SIGMAS)
    assert costs.keys() == tables[0].keys()
    for (a, b), (c, d) in itertools.product(costs, costs):
        if a <= c and d <= b and (a, b) != (c, d):
            assert costs[c, d] < costs[a, b]
    for count in range(2, STEPS + 1):
        assert Spacing(SIGMAS, costs).best(count) == plain.best(count)


def test_half_of_what_is_measured_beside_the_formula_counts_and_places_lend_to_each_other():
    plain = Spacing(SIGMAS)
    tables = [{gap: scale * plain.cost(*gap) for gap in gaps_of(STEPS)} for scale in (1e2, 1e4)]
    whole = costs_of(tables, SIGMAS)
    assert all(cost == pytest.approx(1e3**0.5 * plain.cost(*gap)) for gap, cost in whole.items())
    for table in tables:
        table[4, 6] *= 1e4
    beside = {gap: cost / whole[gap] for gap, cost in costs_of(tables, SIGMAS).items()}
    assert 1 < beside[2, 4] < beside[3, 5] < beside[4, 6] < 1e2 and beside[5, 7] > beside[6, 8]
    assert beside[1, 3] == beside[7, 9] == beside[4, 7] == 1.0
    with pytest.raises(ValueError, match="not finite"):
        costs_of([{**tables[0], (4, 6): math.nan}], SIGMAS)
    with pytest.raises(ValueError, match="different gaps"):
        costs_of([tables[0], {(4, 6): 1.0}], SIGMAS)


def test_errors_of_latents_are_shares_of_their_mean_square():
    latent = torch.full((1, 4, 2, 2), 3.0)
    assert latent_error(latent, latent) == 0.0
    assert latent_error(latent.half() * 1.5, latent) == pytest.approx(0.25)


def test_refined_sigmas_keep_the_schedule():
    sigmas = refine(torch.tensor(SIGMAS), 4)
    assert len(sigmas) == 4 * STEPS + 1 and torch.allclose(sigmas[::4], torch.tensor(SIGMAS))
    assert torch.allclose(sigmas.diff(), torch.full((4 * STEPS,), -1 / STEPS / 4), atol=1e-6)
    assert torch.equal(refine(torch.tensor(SIGMAS), 1), torch.tensor(SIGMAS))


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
    schedule, scores = search(distance_to(best), EVEN, max_tried=200)
    assert tuple(i for i, on in enumerate(schedule.computed) if on) == best and scores == [0]
    few, _ = search(distance_to(best), EVEN, max_tried=1)
    assert few == EVEN


def test_the_search_says_how_far_it_is_and_tries_no_more_than_it_may():
    said = []
    search(
        distance_to((0, 1, 5, 9)),
        EVEN,
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
    default = default_schedule(SIGMAS, 2.0)
    assert default.computed == best_spaced(6, SIGMAS) and default.gram is None
    assert key_of((True, False, True)) == "#.#"
