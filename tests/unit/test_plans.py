"""Which pictures a calibration draws, and which plans it takes; on toy models."""

import json
import math
import random
from statistics import mean

import pytest

from rapid_core.calibration.plans import (
    EFFORTS,
    FAR,
    SEVERAL,
    SPEEDUPS,
    Calibration,
    Effort,
    Figures,
)
from rapid_core.calibration.search import key_of
from rapid_core.quadrature.gap_costs import GapCosts, gaps_of
from rapid_core.quadrature.spacing import Spacing, best_spaced, max_evaluations

STEPS = 20
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS + 1))


class Interrupted(Exception):
    pass


class Toy:
    """A model whose gaps cost `weight(gap)` times what the formula says, and a picture's PSNR follows
    from their sum, but for noise (dB). It notes what is drawn; stop: before so many pictures."""

    def __init__(self, weight=lambda gap: 1.0, noise=0.3, hides=False, steps=STEPS, stop=None):
        self.sigmas = tuple(1 - i / steps for i in range(steps + 1))
        formula = Spacing(self.sigmas)
        gaps = gaps_of(steps)
        self.costs = {gap: 1e-6 * weight(gap) * formula.cost(*gap) for gap in gaps}
        self.shown = {gap: 1e-6 * formula.cost(*gap) for gap in gaps} if hides else self.costs
        self.true = Spacing(self.sigmas, self.costs)
        self.noise = noise
        self.stop = stop
        self.drawn = []

    def full(self, number):
        self._count("#" * (len(self.sigmas) - 1), number)
        return [self.shown]

    def psnr(self, plan, number):
        self._count(key_of(plan), number)
        # A part of the noise is the picture's, and a part its own with this plan.
        seed = random.Random(f"{key_of(plan)} {number}").gauss(0.0, self.noise)
        shared = 5 * random.Random(number).random()
        return -10 * math.log10(self.true.total(plan) + 1e-12) + seed + shared

    def _count(self, key, number):
        if self.stop == len(self.drawn):
            raise Interrupted
        self.drawn.append((key, number))

    @property
    def cost(self):
        return sum(key.count("#") / len(key) for key, _ in self.drawn)


def easy_beginning(gap):
    """Gaps near the end cost 30 times as much as at the beginning."""
    return 30.0 ** (gap[0] / STEPS)


def calibrate(toy, effort="normal", figures=None, kept=lambda: None, prompts=SEVERAL):
    figures = figures if figures is not None else Figures()
    calibration = Calibration(toy.sigmas, EFFORTS[effort], toy, figures, kept, prompts)
    return calibration, calibration.run()


def judges(effort="normal", prompts=SEVERAL):
    """Numbers of the pictures that plans are judged on."""
    return [n for n in range(EFFORTS[effort].pictures) if n % prompts >= prompts // 2]


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("weight", [lambda gap: 1.0, easy_beginning])
@pytest.mark.parametrize("steps", [7, 8, 20, 50])
def test_it_costs_no_more_than_the_effort_allows(effort, weight, steps):
    toy = Toy(weight, steps=steps)
    calibration, chosen = calibrate(toy, effort)
    assert toy.cost == pytest.approx(calibration.spent)
    assert calibration.spent <= EFFORTS[effort].budget + 1e-9
    assert [one.speedup for one in chosen] == list(SPEEDUPS)
    for one in chosen:
        assert one.computed[0] and sum(one.computed) == max_evaluations(one.speedup, steps)
        assert one.psnr is not None and one.pictures >= 2


@pytest.mark.parametrize("effort", EFFORTS)
def test_nothing_is_drawn_twice(effort):
    toy = Toy(easy_beginning)
    calibrate(toy, effort)
    assert len(set(toy.drawn)) == len(toy.drawn)


def test_equal_plans_are_drawn_once():
    """Of 7 steps most speed-ups have the same few plans."""
    toy = Toy(steps=7)
    calibrate(toy)
    full = [(key, n) for key, n in toy.drawn if "." not in key]
    plans = {key for key, _ in toy.drawn if "." in key}
    assert len(full) == EFFORTS["normal"].pictures
    assert (
        len(toy.drawn) - len(full) == len(plans) * len(judges()) == len(set(toy.drawn) - set(full))
    )


@pytest.mark.parametrize("effort", ["normal", "long"])
def test_a_better_plan_is_taken_where_gaps_differ_from_the_formula(effort):
    toy = Toy(easy_beginning)
    _, chosen = calibrate(toy, effort)
    better = [one for one in chosen if one.computed != best_spaced(sum(one.computed), SIGMAS)]
    assert len(better) >= 4
    for one in better:
        assert one.psnr > one.psnr_default and one.pictures > 2


def test_the_formula_stays_where_nothing_is_clearly_better():
    """What pictures show is nothing but chance here: all plans are as good."""
    toy = Toy(easy_beginning, noise=3.0)
    toy.true.total = lambda plan: 1e-5
    _, chosen = calibrate(toy)
    usual = [one.computed == best_spaced(sum(one.computed), SIGMAS) for one in chosen]
    assert sum(usual) >= 5
    for one, same in zip(chosen, usual, strict=True):
        assert not same or one.psnr == one.psnr_default


def test_few_takes_the_watched_plan_unseen():
    toy = Toy(easy_beginning)
    _, chosen = calibrate(toy, "few")
    full = [key for key, _ in toy.drawn if "." not in key]
    assert len(full) == 4 and all(one.pictures == 2 for one in chosen)
    assert any(one.computed != best_spaced(sum(one.computed), SIGMAS) for one in chosen)
    assert {number for key, number in toy.drawn if "." in key} == {0, 1}


def test_candidates_that_are_far_behind_are_stopped_after_two_pictures():
    toy = Toy(easy_beginning, noise=0.1)
    total = toy.true.total
    usual = {best_spaced(max_evaluations(s, STEPS), SIGMAS) for s in SPEEDUPS}
    # All but the formula's are 10 dB worse than pictures let expect.
    toy.true.total = lambda plan: total(plan) * (1 if plan in usual else 1000)
    _, chosen = calibrate(toy)
    assert all(one.computed in usual for one in chosen)
    drawn = {key: [n for k, n in toy.drawn if k == key] for key, _ in toy.drawn if "." in key}
    marks = {key_of(plan) for plan in usual}
    others = [numbers for key, numbers in drawn.items() if key not in marks]
    assert others and all(numbers == judges()[:2] for numbers in others)
    assert all(drawn[key] == judges() for key in marks)
    assert FAR < 10


def test_long_finds_what_costs_do_not_show():
    """Pictures show gaps as the formula has them, and neighbours are better."""
    toy = Toy(easy_beginning, noise=0.1, hides=True)
    _, normal = calibrate(toy)
    assert all(one.computed == best_spaced(sum(one.computed), SIGMAS) for one in normal)
    calibration, chosen = calibrate(toy, "long")
    gains = [one.psnr - one.psnr_default for one in chosen]
    assert mean(gains) > 0.3 and min(gains) >= 0
    assert calibration.spent <= 150


@pytest.mark.parametrize("effort", EFFORTS)
def test_one_that_was_interrupted_anywhere_goes_on_and_draws_nothing_twice(effort):
    whole = Toy(easy_beginning)
    first, expected = calibrate(whole, effort)
    number = len(whole.drawn)
    for stop in (0, 1, 3, 5, number // 2, number - 1):
        kept = []
        figures = Figures()
        broken = Toy(easy_beginning, stop=stop)
        with pytest.raises(Interrupted):
            calibrate(
                broken, effort, figures, lambda f=figures, k=kept: k.append(json.dumps(f.to_json()))
            )
        assert len(kept) == stop  # after every picture
        found = json.loads(kept[-1]) if kept else Figures().to_json()
        again = Toy(easy_beginning)
        second, chosen = calibrate(again, effort, Figures.from_json(found, STEPS))
        assert broken.drawn + again.drawn == whole.drawn and chosen == expected
        assert second.spent == pytest.approx(first.spent)


def test_what_a_longer_one_drew_is_left_over_by_a_shorter_one():
    """And not by one that was interrupted itself, or that asks for all of it."""
    for stop, left_over in ((30, True), (3, False)):
        figures = Figures()
        with pytest.raises(Interrupted):
            calibrate(Toy(easy_beginning, stop=stop), "long", figures)
        short, _ = calibrate(Toy(easy_beginning), "few", figures)
        assert short.left_over == left_over
    whole, _ = calibrate(Toy(easy_beginning), "long", figures)
    assert not whole.left_over


def test_a_full_picture_that_was_lost_is_drawn_again_and_counted():
    figures = Figures()
    toy = Toy(easy_beginning, stop=20)
    with pytest.raises(Interrupted):
        calibrate(toy, "normal", figures)
    figures.lose(2)
    figures.lose(99)
    again = Toy(easy_beginning)
    calibration, _ = calibrate(again, "normal", figures)
    assert again.drawn[0] == ("#" * STEPS, 2) and figures.again == 1
    assert toy.cost + again.cost == pytest.approx(calibration.spent) and calibration.spent <= 40


def test_the_budget_is_what_ends_a_comparison():
    toy = Toy(easy_beginning)
    effort = Effort(12, 6)
    calibration = Calibration(SIGMAS, effort, toy, Figures())
    chosen = calibration.run()
    assert 10 < calibration.spent <= 12 and len(chosen) == len(SPEEDUPS)


def test_numbers_that_are_none_are_refused():
    toy = Toy()
    toy.shown = {gap: math.nan for gap in toy.costs}
    with pytest.raises(ValueError, match="not finite"):
        calibrate(toy)


def broken_states():
    good = Figures({0: [dict.fromkeys(gaps_of(STEPS), 0.5)]}, {"#.": {0: 40.0}}, 1).to_json()
    assert Figures.from_json(json.loads(json.dumps(good)), STEPS).to_json() == good
    return [
        {},
        {**good, "psnr": {"#.": 3}},
        {**good, "psnr": {"#.": {"x": 3.0}}},
        {**good, "tables": {"0": []}},
        {**good, "tables": {"0": [[[0, 2, 0.5]]]}},
        {**good, "again": None},
        [],
    ]


@pytest.mark.parametrize("found", broken_states())
def test_a_state_that_is_none_is_told(found):
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Figures.from_json(found, STEPS)


@pytest.mark.parametrize("effort", ["normal", "long"])
def test_plans_that_follow_pictures_closely_are_judged_on_other_prompts(effort):
    """What is true of those that teach alone makes no picture worse."""
    toy = Toy(noise=0.1)
    taught = [n for n in range(EFFORTS[effort].pictures) if n not in judges(effort, 4)]
    usual = {best_spaced(max_evaluations(s, STEPS), SIGMAS) for s in SPEEDUPS}
    own = Toy(easy_beginning)
    toy.full = lambda number: own.full(number) if number in taught else [toy.shown]
    psnr = toy.psnr
    toy.psnr = lambda plan, number: (
        psnr(plan, number) + (10 if number in taught and plan not in usual else 0)
    )
    _, chosen = calibrate(toy, effort, prompts=4)
    for one in chosen:
        formula = best_spaced(sum(one.computed), SIGMAS)
        assert toy.true.total(one.computed) <= toy.true.total(formula)
    assert {n for key, n in toy.drawn if "." in key} >= set(judges(effort, 4))


@pytest.mark.parametrize("effort", ["normal", "long"])
def test_of_one_prompt_only_what_it_promises_is_tried_and_taken_where_it_is_nearer(effort):
    """Whatever follows its pictures more closely is farther on others."""
    toy = Toy(easy_beginning)
    calibration, chosen = calibrate(toy, effort, prompts=1)
    tables = [t for drawn in calibration.figures.tables.values() for t in drawn]
    costs = GapCosts.seen(tables, SIGMAS)
    for one in chosen:
        count = max_evaluations(one.speedup, STEPS)
        promised, formula = costs.best(count, SIGMAS), best_spaced(count, SIGMAS)
        assert one.computed == (promised if one.psnr > one.psnr_default else formula)
    tried = {key for key, _ in toy.drawn if "." in key}
    assert len(tried) <= 2 * len(SPEEDUPS)
