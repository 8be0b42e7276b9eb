"""A closeness to ask for in place of a speed-up, and the one that a run tells."""

import math

from rapid_core.quadrature.closeness import HIGHEST, MARGIN, closeness, error_for
from rapid_core.quadrature.spacing import gap_cost
from rapid_core.techniques.step_skip.closeness_actor import ERROR_OF_COST
from rapid_core.techniques.step_skip.schedule import SchedulePolicy
from rapid_core.types import Mode, Observation, Window

STEPS = 28
SIGMAS = tuple(3 * t / (1 + 2 * t) for t in (1 - i / STEPS for i in range(STEPS + 1)))


def run(asked, error=lambda start, stop: ERROR_OF_COST * gap_cost(start, stop), **settings):
    """Steps that are computed, where gaps have these errors: as the engine tells them, at the
    evaluation after the one that ended the gap."""
    policy = SchedulePolicy(closeness=asked, **settings)
    actor = policy.start(Window(2.0, -1.0) if not settings else Window(*settings_window(settings)))
    computed, told, history = [], None, ()
    for i in range(STEPS):
        action = actor.act(
            Observation(
                index=i,
                sigma=SIGMAS[i],
                step=i,
                steps=STEPS,
                sigmas=SIGMAS,
                euler=True,
                computed=len(computed),
                since_computed=i - 1 - computed[-1] if computed else 0,
                gap_error=told,
                history=history[-4:],
            )
        )
        actor.executed(action)
        if action.mode is Mode.RUN:
            if computed and i > computed[-1] + 1:
                told = error(SIGMAS[computed[-1]], SIGMAS[i])
            computed.append(i)
            history = (*history, SIGMAS[i])
    return computed


def settings_window(settings):
    """Sigmas of shares of the schedule."""
    places = (settings.get("start_percent", 0.0), settings.get("end_percent", 1.0))
    return [SIGMAS[round(share * STEPS)] for share in places]


def test_closeness_falls_with_errors_and_with_the_lengths_of_gaps():
    assert closeness([(1e-4, 1.0)], True) > closeness([(1e-4, 1.0)], False)
    assert closeness([(1e-4, 1.0)] * 2, True) < closeness([(1e-4, 1.0)], True)
    assert closeness([(1e-4, 2.0)], True) < closeness([(1e-4, 1.0)], True)
    assert closeness([(1e-30, 1.0)], True) == HIGHEST
    assert closeness([], True) is None and closeness([(math.nan, 1.0)], True) is None
    assert error_for(30.0, True) > error_for(40.0, True) > error_for(40.0, False)


def test_the_closer_a_picture_has_to_be_the_more_is_computed():
    counts = [len(run(asked)) for asked in (30.0, 36.0, 42.0, 48.0, 54.0)]
    assert counts == sorted(counts) and counts[0] < counts[-1] <= STEPS


def test_errors_stay_within_what_was_asked_for():
    for asked in (34.0, 40.0, 45.0):
        computed = run(asked)
        spent = sum(
            ERROR_OF_COST * gap_cost(SIGMAS[a], SIGMAS[b])
            for a, b in zip(computed, computed[1:], strict=False)
            if b > a + 1
        )
        assert spent <= error_for(asked + MARGIN, True) * 3


def test_a_rough_image_computes_more_than_a_smooth_one():
    smooth = run(40.0, lambda a, b: 0.1 * ERROR_OF_COST * gap_cost(a, b))
    rough = run(40.0, lambda a, b: 10 * ERROR_OF_COST * gap_cost(a, b))
    assert len(smooth) < len(run(40.0)) < len(rough)


def test_gaps_that_turn_out_bad_grow_short():
    computed = run(34.0, lambda a, b: 1.0)
    gaps = [b - a for a, b in zip(computed, computed[1:], strict=False)]
    assert max(gaps[len(gaps) // 2 :]) <= 2 < gaps[0]


def test_an_error_that_is_no_number_computes_the_rest():
    for error in (math.nan, math.inf):
        computed = run(34.0, lambda a, b, error=error: error)
        assert computed[-1] == STEPS - 1 and len(computed) > STEPS - 8


def test_outside_of_the_window_everything_is_computed():
    computed = run(30.0, start_percent=0.25, end_percent=0.75)
    assert {*range(7)} <= {*computed} and {*range(22, 28)} <= {*computed}
    assert len(computed) < STEPS


def test_steps_of_no_length_make_no_trouble():
    policy = SchedulePolicy(closeness=30.0, safe=False)
    sigmas = (1.0, *(0.9,) * 10, 0.5, 0.0)
    actor = policy.start(Window(2.0, -1.0))
    computed = 0
    since = 0
    for i, sigma in enumerate(sigmas[:-1]):
        known = dict(step=i, steps=len(sigmas) - 1, sigmas=sigmas, computed=computed)
        action = actor.act(
            Observation(i, sigma, since_computed=since, gap_error=1e-6, euler=True, **known)
        )
        actor.executed(action)
        ran = action.mode is Mode.RUN
        computed, since = computed + ran, 0 if ran else since + 1
    assert computed > 1
