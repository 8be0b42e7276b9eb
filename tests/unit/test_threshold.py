"""The accumulated-error rule."""

import math

from rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from rapid_core.types import FULL, Action, ImageState, Mode, Observation, Window


def run(policy, errors, window=None, measured=None):
    actor, since, out = policy.start(window or Window(1.0, 0.0)), 0, []
    for i, error in enumerate(errors):
        sigma = 1 - i / len(errors)
        (action,) = actor.act(Observation(i, sigma, (ImageState(i, since, error, measured),)))
        level = action.level
        since = 0 if level is Mode.RUN else since + 1
        out.append(level)
    return "".join("#" if level is Mode.RUN else "." for level in out)


def test_an_unknown_error_is_computed():
    assert run(ThresholdPolicy(0.1), [math.inf, math.inf, math.nan]) == "###"


def test_errors_add_up_until_the_threshold_and_start_again():
    assert run(ThresholdPolicy(0.1, max_consecutive=9), [0.04] * 7) == "..#..#."


def test_no_more_than_max_consecutive_are_left_out():
    assert run(ThresholdPolicy(1.0, max_consecutive=2), [0.0] * 7) == "..#..#."


def test_nothing_is_left_out_outside_the_window():
    assert (
        run(ThresholdPolicy(1.0, max_consecutive=9), [0.0] * 10, Window(0.65, 0.35)) == "####...###"
    )


def test_the_guard_computes_while_the_measured_error_is_too_large():
    assert run(ThresholdPolicy(1.0, guard=0.3), [0.0] * 4, measured=0.4) == "####"


def test_each_image_of_a_batch_decides_for_itself():
    actor = ThresholdPolicy(0.1).start(Window(1.0, 0.0))
    states = (ImageState(3, 0, 0.05), ImageState(3, 0, 0.5))
    assert actor.act(Observation(3, 0.5, states)) == (Action(Mode.SKIP), FULL)


def test_an_error_counts_by_the_length_of_its_step():
    actor = ThresholdPolicy(0.1, max_consecutive=9).start(Window(1.0, 0.0))

    def level(weight):
        return actor.act(Observation(1, 0.5, (ImageState(1, 0, 0.06),), weight=weight))[0].level

    assert [level(w) for w in (1.0, 2.0, 0.5)] == [Mode.SKIP, Mode.RUN, Mode.SKIP]
