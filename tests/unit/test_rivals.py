"""Rivals predict as their papers have it, on values worked out by hand."""

import math

import numpy as np
import pytest
from numpy.polynomial import Chebyshev

from benchmarks.rivals.mask import StaticPolicy, growing, searched
from benchmarks.rivals.spectrum import SpectrumPolicy
from benchmarks.rivals.taylor import HiCachePolicy, TaylorPolicy, hermite
from benchmarks.rivals.teacache import Changes, accumulated, within
from rapid_core.types import Mode, Observation, Window
from rapid_testing.actors import marks_of, text

ALL = (True,) * 21  # where only the weights are asked for


def marks(mask):
    return "".join("#" if computed else "." for computed in mask)


def value(policy, function, nodes, step):
    """The prediction at a step, from a function's values at the nodes."""
    return float(np.dot(policy.weights(nodes, step), [function(n) for n in nodes]))


def test_windows_grow_as_published():
    # 2, 2.75, 3.5, 4.25 rounded down: 2, 2, 3, 4
    assert marks(growing(9, 16, warm_up=5, growth=0.75)) == "#####.#.#..#...#"
    assert marks(growing(5, 9)) == "#.#.#.#.#"


@pytest.mark.parametrize("steps", [4, 28, 50])
@pytest.mark.parametrize("warm_up", [1, 3, 5])
@pytest.mark.parametrize("growth", [0.0, 0.25, 0.75])
def test_exactly_as_many_are_computed_as_were_asked_for(steps, warm_up, growth):
    for count in range(1, steps + 1):
        mask = growing(count, steps, warm_up, growth)
        assert sum(mask) == count and mask[0] and all(mask[: min(warm_up, count)])


def test_taylorseer_of_order_1_goes_on_along_a_line_whatever_the_distances():
    policy = TaylorPolicy(computed=ALL, order=1)
    assert value(policy, lambda t: 3 - 2 * t, [0, 1, 5], 9) == pytest.approx(3 - 18)
    assert policy.weights([4], 6) == pytest.approx([1])  # one value alone is kept


def test_taylorseer_of_order_2_takes_differences_that_lie_behind_for_derivatives():
    # t^2 at 0, 1, 2: differences 3 and 2, so 4 + 3 k + k^2 in place of 4 + 4 k + k^2
    policy = TaylorPolicy(computed=ALL, order=2)
    assert [value(policy, lambda t: t * t, [0, 1, 2], 2 + k) for k in (1, 2, 3)] == pytest.approx(
        [8, 14, 22]
    )


def test_taylorseers_differences_are_over_the_distances_of_the_latest_nodes():
    # t^2 at 0, 1, 3, 5: first differences 4 and 8 over 2, the second (8 - 4) / 2
    policy = TaylorPolicy(computed=ALL, order=2)
    assert value(policy, lambda t: t * t, [0, 1, 3, 5], 6) == pytest.approx(25 + 8 + 1)


def test_hermite_polynomials_are_the_physicists():
    assert [hermite(i, 0.5) for i in range(4)] == [1, 1, -1, -5]  # 8/8 - 12/2


def test_hicache_is_taylorseer_with_other_terms():
    plain = TaylorPolicy(computed=ALL, order=1)
    same = HiCachePolicy(computed=ALL, order=1, scale=math.sqrt(0.5))
    assert same.weights([0, 3], 5) == pytest.approx(plain.weights([0, 3], 5))
    # t^2 at 0, 1, 2, k = 2, scale 1/2: 4 + 3 (1/2) 2 + 2/2 (1/4) (4 - 2)
    policy = HiCachePolicy(computed=ALL, order=2, scale=0.5)
    assert value(policy, lambda t: t * t, [0, 1, 2], 4) == pytest.approx(4 + 3 + 0.5)


def test_spectrum_without_a_ridge_is_exact_on_a_chebyshev_polynomial():
    policy = SpectrumPolicy(computed=ALL, degree=3, ridge=0.0, share=1.0)
    polynomial = Chebyshev([1, -2, 0.5, 3], domain=[0, 20])
    assert value(policy, polynomial, [0, 1, 2, 5, 9], 14) == pytest.approx(polynomial(14))


def test_spectrums_ridge_holds_coefficients_back():
    # One node in the middle, T_0 = 1, T_1 = 0: the coefficient of T_0 is v / (1 + ridge).
    policy = SpectrumPolicy(computed=ALL, degree=1, ridge=0.25, share=1.0)
    assert policy.weights([10], 15) == pytest.approx([0.8])


def test_spectrum_is_mixed_with_the_line_of_the_latest_two():
    policy = SpectrumPolicy(computed=ALL, degree=4, ridge=0.1, share=0.0)
    assert policy.weights([0, 2, 4], 7) == pytest.approx([0, -1.5, 2.5])
    half = SpectrumPolicy(computed=ALL, degree=4, ridge=0.1, share=0.5)
    fit = SpectrumPolicy(computed=ALL, degree=4, ridge=0.1, share=1.0)
    mixed = (np.array(policy.weights([0, 2, 4], 7)) + np.array(fit.weights([0, 2, 4], 7))) / 2
    assert half.weights([0, 2, 4], 7) == pytest.approx(mixed)


def test_a_rival_computes_its_mask_and_weighs_what_it_computed():
    policy = TaylorPolicy(computed=growing(3, 5), order=1)
    actions, _ = marks_of(policy, 5)
    assert text(actions) == "#.#.#"
    (last,) = actions[1].prediction_weights
    assert last == (1.0, 1.0)
    (older, _), (newer, weight) = actions[3].prediction_weights
    assert (older, newer) == (1.0, 0.6) and weight == pytest.approx(1.5)


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="5 steps was given a run of 6"):
        marks_of(TaylorPolicy(computed=growing(3, 5)), 6)


def test_teacache_computes_where_the_changes_reach_the_threshold():
    assert marks(accumulated([0, 1, 2, 1, 1, 5, 1], 3)) == "#.#..##"
    assert marks(accumulated([0, 1, 1, 1, 1, 1], 2)) == "#.#.##"
    assert sum(within([0, 1, 1, 1, 1, 1, 1, 1], 5)) == 5
    assert marks(within([0, 1, 1, 1, 1, 1, 1, 1], 1)) == "#......#"  # the last is always computed


def test_changes_are_noted_by_the_step_that_they_are_of():
    policy = Changes()
    for image, scale in enumerate((1.0, 3.0)):
        actor = policy.start(Window(1, 0), image)
        for step, change in enumerate((None, None, 0.1, 0.2)):
            known = None if change is None else change * scale
            actor.act(Observation(index=step, sigma=1 - step / 4, step=step, change=known))
    assert policy.means(4) == pytest.approx([0, 0.2, 0.4, 0.4])


def test_the_search_of_masks_finds_what_is_scored_best():
    def score(policy):
        return sum(i for i, computed in enumerate(policy.computed) if computed) + policy.order

    found = searched(4, 12, score, 200, "seed")
    assert found == StaticPolicy(computed=(True, *(False,) * 8, True, True, True), order=1)
    assert text(marks_of(found, 12)[0]) == "#........###"
    assert all(a.prediction_weights is None for a in marks_of(found, 12)[0] if a.mode is Mode.SKIP)
