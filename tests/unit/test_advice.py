"""What a report says of a run that skipped next to nothing."""

from dataclasses import replace

import pytest

from rapid_core.advice import THRESHOLDS, advice, threshold_for
from rapid_core.reasons import ReasonCode, text
from rapid_core.record import EvaluationRecord, RunRecord
from rapid_core.techniques.region.policy import RegionPolicy
from rapid_core.techniques.step_skip.schedule import SchedulePolicy
from rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from rapid_core.types import Mode, Observation, Reason, Window

STEPS = 24


def record(policy, error=0.105, steps=STEPS, modes=None, **changes):
    """A run on evenly spaced sigmas that computed everything; error: as estimated from the fourth
    evaluation on."""
    modes = modes or ["run"] * steps
    evaluations = [
        EvaluationRecord(
            index=i,
            sigma=1 - i / steps,
            occurrence=0,
            modes=(mode,),
            token_share=(float(mode == "run"),),
            cost=(float(mode == "run"),),
            full_cost=(1.0,),
            error_estimate=(error if i > 2 else None,),
            measured_error=(None,),
            step=i,
        )
        for i, mode in enumerate(modes)
    ]
    made = RunRecord(
        sampler="euler",
        family="flux",
        shape=(1, 4, 8, 8),
        sigmas=tuple(1 - i / steps for i in range(steps + 1)),
        policies=(policy.to_record(),),
        evaluations=tuple(evaluations),
        seconds=1.0,
        bytes=0,
    )
    return replace(made, **changes)


def codes(found):
    return [reason.code for reason in found]


def test_a_threshold_below_the_errors_is_named_with_one_that_skips_a_third():
    policy = ThresholdPolicy(threshold=0.05)
    (said,) = advice(record(policy))
    assert said.code == "little_threshold"
    assert said.params == {"error": 0.1, "threshold": 0.05, "needed": 0.11}
    assert text(said) == (
        "the estimated error of a skipped step was about 0.1, and reuse_threshold is 0.05: about "
        "0.11 skips a third"
    )


@pytest.mark.parametrize("share", [0.2, 1 / 3, 0.5, 0.6])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_number_to_set_is_the_lowest_at_which_the_rule_skips_so_many(share, order):
    """Against Cache Reuse's own actor, shown errors that grow with the distance."""
    policy = ThresholdPolicy(threshold=0.001, prediction_order=order)
    run = record(policy, error=0.0305)
    grown = [[1, 2, 3, 4], [1, 3, 6, 10], [1, 4, 10, 20]][order]

    def skipped(threshold):
        actor = replace(policy, threshold=threshold).start(Window(2.0, 0.0))
        since = number = 0
        for i in range(STEPS):
            error = 0.0305 * grown[since] if i > 2 else float("inf")
            action = actor.act(
                Observation(index=i, sigma=1 - i / STEPS, error=error, since_computed=since)
            )
            actor.executed(action)
            since = 0 if action.mode is Mode.RUN else since + 1
            number += action.mode is not Mode.RUN
        return number

    needed = threshold_for(run, policy.to_record(), share)
    below = THRESHOLDS[THRESHOLDS.index(needed) - 1]
    assert skipped(needed) >= share * STEPS > skipped(below)


def test_long_steps_count_more():
    run = record(ThresholdPolicy(threshold=0.05))
    late = tuple(1 - (i / STEPS) ** 2 for i in range(STEPS + 1))  # where there are errors
    policy = run.policies[0]
    assert threshold_for(replace(run, sigmas=late), policy) > threshold_for(run, policy)


def test_a_run_that_cannot_be_predicted_is_told_no_number():
    (said,) = advice(record(ThresholdPolicy(threshold=0.1), error=0.73))
    assert said.code == "little_rough" and said.params == {"error": 0.73, "threshold": 0.1}


def test_where_the_threshold_was_high_enough_it_was_the_window_or_the_safety_check():
    narrow = ThresholdPolicy(threshold=0.2, start_percent=0.9)
    assert codes(advice(record(narrow))) == ["little_window"]
    assert codes(advice(record(ThresholdPolicy(threshold=0.2)))) == ["little_rough"]


def test_few_steps_are_said_to_be_few():
    policy = ThresholdPolicy(threshold=0.05)
    few, number = advice(record(policy, steps=9))
    assert text(few) == "9 steps: the first 3 are always computed"
    assert number.code == "little_threshold" and number.params["needed"] > 0.05


def test_short_runs_say_in_one_sentence_that_there_is_little_to_gain_and_what_was_done():
    policy = ThresholdPolicy(threshold=0.05)
    first, *rest = advice(record(policy, steps=8))
    assert text(first) == (
        "little to gain here: this run has only 8 steps; 8 of 8 evaluations were computed in full"
    )
    assert "little_few" not in codes(rest)
    saved = ["run"] * 6 + ["skip"] * 2
    assert text(*advice(record(policy, steps=8, modes=saved))).endswith(
        "6 of 8 evaluations were computed in full"
    )
    assert codes(advice(record(RegionPolicy(keep_ratio=0.5), steps=4))) == ["little_short"]
    noted = {"notes": (Reason(ReasonCode.FEW_STEPS, steps=4, few=6),)}
    assert advice(record(policy, steps=4, **noted)) == []


def test_a_closeness_that_takes_nearly_all_steps_is_named():
    (said,) = advice(record(SchedulePolicy(closeness=60.0)))
    assert text(said).startswith("a closeness of 60 dB takes nearly all steps")
    assert advice(record(SchedulePolicy(speedup=1.1))) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"modes": ["run", "run", "skip"] * 8},
        {"modes": ["run", "run", "reuse"] * 8},
        {"policies": ()},
        {"policies": ({"technique": "region_adaptive"},)},
        {"policies": (ThresholdPolicy(threshold=0.1).to_record(),) * 2},
        {"policies": (ThresholdPolicy(threshold=0.1, source="a.safetensors").to_record(),)},
        {"evaluations": ()},
        {"notes": (Reason(ReasonCode.SAMPLER_ADDS_NOISE, sampler="lcm"),)},
    ],
)
def test_where_something_was_saved_or_nothing_can_be_known_there_is_no_advice(changes):
    assert advice(record(ThresholdPolicy(threshold=0.05), **changes)) == []


def test_where_the_record_says_why_and_where_tokens_were_saved_there_is_no_advice():
    run = record(ThresholdPolicy(threshold=0.05))
    said = [replace(e, reasons=(Reason(ReasonCode.AR_VIDEO),)) for e in run.evaluations]
    partial = [replace(e, token_share=(0.5,)) for e in run.evaluations]
    for evaluations in (said, partial):
        assert advice(replace(run, evaluations=tuple(evaluations))) == []
