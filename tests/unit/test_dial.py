"""The dial's suites on figures that are known."""

from types import SimpleNamespace

import pytest

from benchmarks.dial import curve, quality, samplers
from benchmarks.dial.bench import predicted
from benchmarks.rivals.tuning import RIVALS, one_at_a_time
from evaluation.decisions import Decision
from evaluation.suites import FullRun, Method, Picture, Suite

PLAIN = dict(steps=28, prompts=16, evaluations=28.0, computed=14.0, error=None)


def point(speedup, computed, mean, worst, sampler="euler"):
    return curve.Point(sampler, speedup, computed, mean, mean, worst)


def test_speed_ups_that_compute_as_many_share_their_pictures():
    assert curve.shared((2.0, 2.1, 2.2, 4.0), 28) == {14: [2.0], 13: [2.1], 12: [2.2], 7: [4.0]}
    assert curve.shared((5.7, 6.0, 5.8), 28) == {4: [5.7, 5.8, 6.0]}


def test_a_lower_speed_up_that_is_farther_is_named_beside_the_best_higher_one():
    found = [point(1.5, 18, 46, 28), point(2, 14, 48, 40), point(3, 9, 47, 30)]
    assert curve.violations(found) == [
        "euler, mean: 1.5x is 2.0 dB farther than 2x",
        "euler, worst: 1.5x is 12.0 dB farther than 2x",
    ]


def test_within_the_tolerance_or_on_another_sampler_nothing_is_named():
    found = [point(1.5, 18, 46, 40), point(2, 14, 46.25, 40), point(3, 9, 60, 60, "uni_pc")]
    assert curve.violations(found) == []


def test_a_value_between_two_whole_numbers_of_evaluations():
    assert quality.around(12.4) == [12, 13] and quality.around(12.0) == [12]
    assert quality.between(12.25, [12, 13], [40.0, 44.0]) == pytest.approx(41)
    assert quality.between(12.0, [12], [40.0]) == 40


def test_settings_are_tried_one_after_another_until_nothing_changes():
    tried = []

    def score(settings):
        tried.append(settings)
        return -2 * abs(settings["a"] - 3) - abs(settings["b"] - settings["a"])

    found = one_at_a_time(score, [{"a": 0, "b": 0}], {"b": (0, 2, 3), "a": (0, 1, 3)}, 5)
    assert found == {"a": 3, "b": 3}
    assert len(tried) == len({tuple(s.items()) for s in tried})  # none twice
    assert one_at_a_time(score, [{"a": 9, "b": 9}, found], {"a": (3,)}, 0) == {"a": 9, "b": 9}


@pytest.mark.parametrize("name", RIVALS)
def test_every_setting_that_is_tried_makes_a_policy_of_as_many_evaluations(name):
    rival = RIVALS[name]
    assert rival.gentle.keys() == rival.published.keys() == rival.tried.keys()
    for setting, values in rival.tried.items():
        for value in values:
            for count in (5, 14, 23):
                policy = rival.make(count, 28, **{**rival.published, setting: value})
                assert sum(policy.computed) == count


def test_a_row_of_a_sampler_says_how_close_or_why_not():
    known = dict(PLAIN, sampler="deis", psnr=50.0, psnr_worst=44.0, difference=3.0, reason="Fine.")
    assert samplers.line(known) == (
        "deis: 14.0 of 28.0 computed, 50.0 dB (worst 44.0), +3.0 dB beside as few steps. Fine."
    )
    full = dict(PLAIN, sampler="lcm", computed=28.0, psnr=None, reason="It adds noise.")
    assert samplers.line(full) == "lcm: 28.0 of 28.0 computed, equal. It adds noise."
    assert samplers.line({"sampler": "x", "error": "with the node: bad"}) == "x: with the node: bad"


def suite_of(steps):
    """A suite of a model with 28 steps, for what it says of methods."""
    suite = object.__new__(Suite)
    suite.steps = steps
    suite.subject = SimpleNamespace(family=SimpleNamespace(steps=28))
    return suite


def test_full_pictures_are_kept_by_sampler_and_steps():
    assert suite_of(28)._kind(FullRun()) == suite_of(50)._kind(FullRun(steps=28)) == "full"
    assert suite_of(50)._kind(FullRun()) == "full_euler_50"
    assert suite_of(28)._kind(FullRun("deis")) == "full_deis_28"
    assert suite_of(28)._kind(FullRun("lcm", alone=True)) == "full_lcm_28_alone"


def test_a_method_draws_its_own_reference_only_without_a_patch():
    suite = suite_of(28)
    own = Method("full_deis", "2x", sampler="deis", reference=FullRun("deis"))
    alone = Method("full_lcm", "2x", sampler="lcm", reference=FullRun("lcm", alone=True), batch=1)
    assert all(map(suite._is_full, (own, alone, Method("full", "1.0"))))
    others = [
        Method("fewer_deis", "2x", sampler="deis"),
        Method("fewer_euler", "2x", steps=14),
        Method("full_alone", "2x", batch=1),
        Method("full_noise1", "1.0", noise=1000),
        Method("patched", "2x", lambda model: model),
    ]
    assert not any(map(suite._is_full, others))


def picture(method, seed, computed, psnr, closeness=None):
    decisions = [Decision("run" if i < computed else "skip") for i in range(28)]
    return Picture(method, seed, decisions, 1.0, psnr, 40.0, 0.9, 1, 1, psnr is None, [], closeness)


def suite_with(pictures):
    return SimpleNamespace(kind="flux", name="dial_quality", done=lambda: pictures)


def test_quality_says_what_share_was_as_close_as_asked_and_what_speed_alone_gives():
    asked = [picture("quality_euler/40 dB", i, 12 + i % 2, 37.5 + i) for i in range(4)]
    speed = [picture("speed_euler/12 computed", i, 12, 36.0 + i) for i in range(4)]
    speed += [picture("speed_euler/13 computed", i, 13, 37.0 + i) for i in range(4)]
    assert quality.figures(suite_with(asked), "euler", 45) is None
    found = quality.figures(suite_with([*asked, *speed]), "euler", 40)
    assert found is not None
    assert quality.words(found) == [
        "euler, asked for 40 dB: 39.0 dB in the mean, 5th percentile 37.5, worst 37.5; "
        "75% at 38 dB or more; 12.50 evaluations (12 to 13 a picture)",
        "euler, speed alone at 12.50 evaluations: 5th percentile 36.5",
    ]


def test_predicted_closeness_is_ranked_against_the_true_one_where_it_is_known():
    known = [picture("a/2x", i, 14, 40.0 + i, 50.0 - i) for i in range(3)]
    known += [picture("a/2x", 3, 28, None, 90.0), picture("b/2x", 4, 14, 30.0)]
    # Equal pictures count as 100 dB: ranks 1 2 3 4 against 3 2 1 4, 1 - 6 * 8 / 60.
    assert predicted(suite_with(known)) == [
        "flux: dial_quality, predicted closeness, 4 pictures: Spearman 0.20"
    ]
    assert predicted(suite_with(known[:2])) == []


def test_a_number_is_asked_for_by_the_choice_that_is_no_named_closeness():
    options = ["Faithful (45 dB)", "Balanced (40 dB)", "Draft (34 dB)", "a number"]
    slots = {"closeness": SimpleNamespace(options=options)}
    asked = {"mode": "quality", "decibels": 40.0}
    assert quality.inputs(SimpleNamespace(node_inputs=lambda: slots), 40) == {
        **asked,
        "closeness": "a number",
    }
    assert quality.inputs(SimpleNamespace(node_inputs=dict), 40) == asked
