"""The accumulated-error rule."""

import math

import pytest

from rapid_core.techniques.step_skip.threshold import MAX_CONSECUTIVE, ThresholdPolicy
from rapid_core.types import FULL, Action, Mode, Must, Observation, Window

EVERYWHERE = Window(1.0, 0.0)
SKIP = Action(Mode.SKIP)


def actions_of(policy, errors, window=EVERYWHERE, measured=None, overruled=(), forced=()):
    """What it asks for. overruled: evaluations that another technique has skipped, as far as it
    may; forced: evaluations that are computed, whatever it asks for."""
    actor, since, actions, executed = policy.start(window), 0, [], []
    for i, error in enumerate(errors):
        action = actor.act(
            Observation(
                i,
                1 - i / len(errors),
                since_computed=since,
                error=error,
                measured_error=measured,
            )
        )
        done = FULL if i in forced else action
        if i in overruled and action.must is Must.NOTHING:
            done = SKIP
        actor.executed(done)
        since = 0 if done.mode is Mode.RUN else since + 1
        actions.append(action)
        executed.append(done)
    return actions, executed


def text(actions):
    return "".join("#" if action.mode is Mode.RUN else "." for action in actions)


def run(policy, errors, **how):
    """One character for what was executed of each evaluation."""
    return text(actions_of(policy, errors, **how)[1])


def test_an_unknown_error_is_computed():
    assert run(ThresholdPolicy(threshold=0.1), [math.inf, math.inf, math.nan]) == "###"


def test_errors_add_up_until_the_threshold_and_start_again():
    assert run(ThresholdPolicy(threshold=0.1, max_consecutive=9), [0.04] * 7) == "..#..#."


def test_no_more_than_max_consecutive_are_skipped():
    assert run(ThresholdPolicy(threshold=1.0, max_consecutive=2), [0.0] * 7) == "..#..#."


def test_nothing_is_skipped_outside_the_window():
    policy = ThresholdPolicy(threshold=1.0, max_consecutive=9)
    assert run(policy, [0.0] * 10, window=Window(0.65, 0.35)) == "####...###"


def test_the_safety_check_computes_while_the_measured_error_is_too_large():
    policy = ThresholdPolicy(threshold=1.0, guard=0.3)
    assert run(policy, [0.0] * 4, measured=0.4) == "####"
    assert run(policy, [0.0] * 4, measured=0.2) == "...#"


def test_each_image_of_a_batch_decides_for_itself():
    actors = [ThresholdPolicy(threshold=0.1).start(EVERYWHERE, image) for image in range(2)]
    seen = [Observation(3, 0.5, image=i, error=error) for i, error in enumerate((0.05, 0.5))]
    assert [a.act(o) for a, o in zip(actors, seen, strict=True)] == [SKIP, FULL]


def test_an_error_counts_by_the_length_of_its_step():
    def mode(weight):
        actor = ThresholdPolicy(threshold=0.1, max_consecutive=9).start(EVERYWHERE)
        return actor.act(Observation(1, 0.5, error=0.06, step_weight=weight)).mode

    assert [mode(w) for w in (1.0, 2.0, 0.5)] == [Mode.SKIP, Mode.RUN, Mode.SKIP]


def test_where_it_was_overruled_the_error_goes_on_adding_up():
    """A budget that began anew would let five be skipped in a row where two are allowed."""
    policy = ThresholdPolicy(threshold=0.09, max_consecutive=100, guard=0.0)
    asked, executed = actions_of(policy, [0.04] * 9, overruled=(2, 3))
    assert text(asked) == "..###..#."
    assert text(executed) == "....#..#."
    assert all(action.must is Must.NOTHING for action in asked)


def test_where_it_was_overruled_by_a_computation_the_error_begins_anew():
    policy = ThresholdPolicy(threshold=0.09, max_consecutive=100, guard=0.0)
    assert run(policy, [0.04] * 7, forced=(1,)) == ".#..#.."


@pytest.mark.parametrize("unknown", [math.inf, math.nan])
def test_an_unknown_error_that_was_skipped_stays_unknown_until_the_next_computation(unknown):
    policy = ThresholdPolicy(threshold=0.1, max_consecutive=100, guard=0.0)
    asked, executed = actions_of(policy, [unknown, 0.01, 0.01, 0.01], overruled=(0, 1))
    assert text(asked) == "###." and text(executed) == "..#."


def test_the_error_adds_up_outside_the_window_too():
    """Skipped there by another technique."""
    policy = ThresholdPolicy(threshold=0.1, max_consecutive=100)
    asked, _ = actions_of(
        policy, [0.04] * 10, window=Window(0.75, 0.0), overruled=range(3), measured=None
    )
    assert text(asked)[:6] == "####.."


def test_others_may_not_skip_more_in_a_row_than_the_cap():
    policy = ThresholdPolicy(threshold=1e-9, max_consecutive=1)
    asked, executed = actions_of(policy, [0.01] * 8, overruled=range(8))
    assert text(executed) == ".#" * 4
    assert [action.must for action in asked] == [Must.NOTHING, Must.RUN] * 4


def test_others_may_not_undercut_the_safety_check():
    policy = ThresholdPolicy(threshold=1.0, guard=1e-6)
    asked, executed = actions_of(policy, [0.0] * 6, measured=0.1, overruled=range(6))
    assert text(executed) == "######" and {a.must for a in asked} == {Must.ALL}


def test_outside_the_window_it_asks_for_nothing_that_others_must_keep():
    policy = ThresholdPolicy(threshold=1.0, max_consecutive=1, guard=1e-6)
    asked, _ = actions_of(policy, [0.0] * 6, window=Window(0.1, 0.0), measured=9.0)
    assert set(asked) == {FULL}


@pytest.mark.parametrize("mode", [Mode.SKIP, Mode.REUSE])
def test_what_it_needs_and_what_a_record_says(mode):
    policy = ThresholdPolicy(threshold=0.1, mode=mode, prediction_order=2, start_percent=0.2)
    needs = policy.requirements
    assert needs.modes == {mode, Mode.RUN} and needs.prediction_order == 2 and not needs.history
    assert needs.blocks == (mode is Mode.REUSE) and not needs.decides_schedule
    assert policy.percents == (0.2, 1.0)
    assert policy.to_record() == {
        "technique": "cache_reuse",
        "threshold": 0.1,
        "start_percent": 0.2,
        "end_percent": 1.0,
        "max_consecutive": MAX_CONSECUTIVE,
        "prediction_order": 2,
        "mode": mode.value,
        "guard": 0.5,
        "safe": True,
        "source": "",
    }
    assert ThresholdPolicy(threshold=0.1, source="a.safetensors").requirements.decides_schedule
