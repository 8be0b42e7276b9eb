"""Schedules settled before the run: spacing, budget, and prediction weights."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.quadrature.gap_costs import GapCosts, gaps_of
from rapid_core.quadrature.gram import Gram
from rapid_core.quadrature.lagrange import adams_bashforth
from rapid_core.quadrature.multistep import (
    MAX_TERMS,
    SHARE_ALWAYS,
    SHARE_AT_FIRST,
    SHARE_MEASURED,
)
from rapid_core.quadrature.spacing import best_spaced, evenly_spaced, max_evaluations
from rapid_core.reasons import ReasonCode
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.techniques.step_skip.schedule_actor import SAFE_ERROR
from rapid_core.types import FULL, Action, Mode, Observation, Reason, Window
from rapid_testing.actors import WHOLE, marks_of, text
from rapid_testing.runs import bending, products_of, weights_by_hand

SIGMAS = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3, unique=True).filter(
    lambda s: min(abs(a - b) for a in s for b in s if a != b) > 0.02
)
RUN = tuple(1 - i / 8 for i in range(9))


@given(st.integers(1, 60), st.floats(1.0, 6.0))
def test_the_schedule_never_costs_more_than_the_budget_allows(steps, speedup):
    computed = evenly_spaced(max_evaluations(speedup, steps), steps)
    assert len(computed) == steps and computed[0]
    assert sum(computed) <= max(1, steps / speedup + 1e-6)
    assert sum(computed) > steps / speedup - 1 or sum(computed) == 1
    assert sum(computed) < 2 or computed[-1]


def test_evaluations_are_spread_evenly():
    marks = "".join("#" if on else "." for on in evenly_spaced(14, 28))
    assert marks.count("#") == 14
    gaps = [len(gap) for gap in marks.split("#")]
    assert max(gaps[1:-1]) - min(gaps[1:-1]) <= 1


@given(
    SIGMAS,
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_weights_give_the_mean_of_every_polynomial_of_their_order(sigmas, start, stop, order, a, b):
    """Adams-Bashforth: exact by algebra; and with no end of the step the value at its start."""
    if abs(start - stop) < 1e-3:
        stop = start + 0.1
    used = sigmas[: order + 1]
    value = [lambda s: 1.0, lambda s: a + b * s, lambda s: a + b * s + s * s][order]
    integral = [
        lambda s: s,
        lambda s: a * s + b * s * s / 2,
        lambda s: a * s + b * s * s / 2 + s**3 / 3,
    ][order]
    scale = 1e-6 * (1 + sum(abs(w) for w in adams_bashforth(used, start, stop)))
    mean = sum(w * value(s) for w, s in zip(adams_bashforth(used, start, stop), used, strict=True))
    exact = (integral(stop) - integral(start)) / (stop - start)
    assert math.isclose(mean, exact, abs_tol=10 * scale)
    point = sum(w * value(s) for w, s in zip(adams_bashforth(used, start, None), used, strict=True))
    assert math.isclose(point, value(start), abs_tol=10 * scale)


def test_what_is_skipped_is_predicted_from_the_latest_computed_ones():
    actions, _ = marks_of(SchedulePolicy(speedup=2.0), 10)
    sigmas = [1 - i / 10 for i in range(11)]
    assert text(actions) == "".join("#" if on else "." for on in best_spaced(5, sigmas))
    skipped = next(a for i, a in enumerate(actions) if i > 3 and a.mode is Mode.SKIP)
    weights = skipped.prediction_weights
    assert len(weights) == 2 and sum(w for _, w in weights) == pytest.approx(1.0)
    first = next(a for a in actions if a.mode is Mode.SKIP)
    assert sum(w for _, w in first.prediction_weights) == pytest.approx(1.0)


def test_a_budget_below_two_evaluations_says_so():
    actions, actor = marks_of(SchedulePolicy(speedup=6.0), 4)
    assert text(actions) == "#..."
    assert actor.notes == (Reason(ReasonCode.ONE_EVALUATION, steps=4, speedup=6.0),)


def test_what_had_to_be_computed_although_it_was_to_be_skipped_is_paid_for():
    plain, _ = marks_of(SchedulePolicy(speedup=3.0), 24)
    forced, _ = marks_of(SchedulePolicy(speedup=3.0), 24, forced=(4, 11))
    computed = [i for i, a in enumerate(forced) if a.mode is Mode.RUN]
    assert text(plain)[4] == text(plain)[11] == "."
    assert len(set(computed) | {4, 11}) <= max_evaluations(3.0, 24) == text(plain).count("#")


def test_what_was_computed_for_a_mistaken_step_is_paid_for():
    """A sampler tells another sigma in its second evaluation: step 1 is taken for step 2."""
    steps = 12
    sigmas = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    actor = SchedulePolicy(speedup=2.0).start(Window(1.0, 0.0))
    computed = 0
    for index in range(steps):
        step = 2 if index == 1 else index
        known = dict(step=step, steps=steps, sigmas=sigmas, computed=computed)
        action = actor.act(Observation(index, sigmas[step], **known))
        actor.executed(action)
        computed += action.mode is Mode.RUN
    assert computed == max_evaluations(2.0, steps)


def test_a_step_of_two_evaluations_is_paid_for_once():
    """As of heun, where both had to be computed."""
    steps = 12
    sigmas = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    actor = SchedulePolicy(speedup=3.0).start(Window(1.0, 0.0))
    answers = []
    for index in range(2 * steps):
        step = index // 2
        observation = Observation(
            index, sigmas[step], step=step, steps=steps, sigmas=sigmas, computed=index and 1
        )
        action = actor.act(observation)
        actor.executed(FULL if step == 1 else action)
        answers.append(action.mode is Mode.RUN or step == 1)
    assert answers[::2] == answers[1::2] and sum(answers[::2]) == max_evaluations(3.0, steps)


def test_a_step_that_others_had_skipped_is_not_paid_for():
    actor = SchedulePolicy(speedup=2.0, safe=False).start(Window(1.0, 0.0))
    sigmas = tuple(1 - i / 8 for i in range(9))
    answers = []
    for i in range(8):
        observation = Observation(i, sigmas[i], step=i, steps=8, sigmas=sigmas, computed=i and 1)
        answers.append(actor.act(observation))
        actor.executed(Action(Mode.SKIP) if i else FULL)
    assert text(answers) == text(marks_of(SchedulePolicy(speedup=2.0), 8)[0])


@pytest.mark.parametrize("speedup", [1.5, 2.0, 8.0])
@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("forced", [(), (7,), (6, 9)])
def test_outside_of_the_window_nothing_is_skipped(speedup, searched, forced):
    """Nor to pay for what had to be computed within, and whatever a file's schedule says."""
    steps = 20
    sigmas = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    schedule = Schedule(evenly_spaced(7, steps), sigmas) if searched else None
    policy = SchedulePolicy(speedup=speedup, schedule=schedule)
    window = Window(0.76, 0.39)
    marks = text(marks_of(policy, steps, forced=forced, window=window)[0])
    assert set(marks[:5]) == set(marks[13:]) == {"#"} and "." in marks[5:13]


def test_a_window_without_steps_is_said():
    actions, actor = marks_of(
        SchedulePolicy(speedup=2.0, start_percent=0.5), 12, window=Window(0, 0)
    )
    assert set(text(actions)) == {"#"}
    assert [*actor.notes] == [Reason(ReasonCode.LITTLE_WINDOW, start=0.5, end=1.0)]


@pytest.mark.parametrize("found", [False, True])
def test_a_file_of_what_gaps_cost_is_named(found):
    policy = SchedulePolicy(speedup=2.0, source="a.safetensors", found=found)
    code = ReasonCode.POLICY_FOUND if found else ReasonCode.POLICY_GIVEN
    assert [*marks_of(policy, 12)[1].notes] == [Reason(code, file="a.safetensors")]


def test_in_its_window_a_searched_schedule_computes_where_it_would_in_all_of_the_run():
    """It has them dense at the beginning of the window and sparse at its end."""
    steps = 20
    sigmas = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    schedule = Schedule(tuple(i < 9 or i in (14, 19) for i in range(steps)), sigmas)
    window = Window(0.81, 0.0)
    marks = text(marks_of(SchedulePolicy(speedup=1.2, schedule=schedule), steps, window=window)[0])
    assert marks[:4] == "####" and marks[4:12].count("#") > 2 * marks[12:].count("#") > 0


def test_without_known_sigmas_what_is_skipped_is_predicted_by_the_polynomial():
    """As after token subsets, whose parts have sigmas of their own."""
    seen, _ = marks_of(SchedulePolicy(speedup=2.0), 12)
    blind, _ = marks_of(SchedulePolicy(speedup=2.0), 12, blind=True)
    assert text(blind) == text(seen) and all(a.prediction_weights is None for a in blind)


@pytest.mark.parametrize(
    "known, share",
    [
        ({}, SHARE_AT_FIRST),
        ({"change": 0.1}, SHARE_AT_FIRST),
        ({"change": 0.7}, 0.0),
        ({"change": 0.7, "extrapolation_skill": 1.0}, SHARE_ALWAYS + SHARE_MEASURED),
        ({"extrapolation_skill": 0.0}, SHARE_ALWAYS),
        ({"extrapolation_skill": -5.0}, 0.0),
        ({"extrapolation_skill": 5.0}, 1.0),
    ],
)
@pytest.mark.parametrize("euler", [True, False])
def test_predictions_move_on_by_as_much_of_the_slope_as_was_measured(known, share, euler):
    """Under Euler to the mean over the step, else to the value at its beginning."""
    actions = marks_of(SchedulePolicy(speedup=3.0), 24, euler=euler, **known)[0]
    i = max(i for i, a in enumerate(actions) if a.mode is Mode.SKIP)
    used, weights = zip(*actions[i].prediction_weights, strict=True)
    full = adams_bashforth(used, 1 - i / 24, 1 - (i + 1) / 24 if euler else None)
    assert weights[0] == pytest.approx(share * full[0]) and sum(weights) == pytest.approx(1.0)


def test_of_few_evaluations_the_last_comes_earlier():
    marks = {
        speedup: text(marks_of(SchedulePolicy(speedup=speedup), 8)[0])
        for speedup in (2.0, 2.5, 4.0)
    }
    assert marks == {2.0: "##.#..#.", 2.5: "#..#..#.", 4.0: "#....#.."}


def test_a_record_has_the_settings_that_count_and_no_matrices(monkeypatch):
    gram = Gram.of(products_of(bending(RUN)), 8)
    schedule = Schedule(evenly_spaced(4, 8), RUN, gram)
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda *_: pytest.fail("copied"))
    policy = SchedulePolicy(speedup=2.0, schedule=schedule, source="a.safetensors")
    assert policy.to_record() == {
        "technique": "schedule",
        "speedup": 2.0,
        "closeness": None,
        "aim": "full picture",
        "start_percent": 0.0,
        "end_percent": 1.0,
        "safe": True,
        "prediction_order": 1,
        "source": "a.safetensors",
        "learn": False,
    }
    assert policy.percents == (0.0, 1.0)


def test_it_settles_the_schedule_and_skips_by_weights_of_its_own():
    needs = SchedulePolicy(speedup=2.0, prediction_order=2).requirements
    assert needs.decides_schedule and needs.modes == {Mode.SKIP, Mode.RUN}
    assert needs.history == MAX_TERMS and needs.prediction_order == 2 and not needs.blocks


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda gram: gram.products.fill_(1.0).fill_diagonal_(0.0), id="singular"),
        pytest.param(lambda gram: gram.means.fill_(math.nan), id="nan"),
        pytest.param(lambda gram: gram.means.fill_(1e300), id="overflow"),
    ],
)
def test_weights_that_cannot_be_computed_are_adams_bashforths_and_it_says_so(damage):
    """Not from a file, which is refused with such a matrix."""
    gram = Gram.of(products_of(bending(RUN, 4)), 8)
    damage(gram)
    policy = SchedulePolicy(
        speedup=2.0, schedule=Schedule(evenly_spaced(4, 8), RUN, gram), source="a.safetensors"
    )
    plain = SchedulePolicy(speedup=2.0, schedule=Schedule(evenly_spaced(4, 8), RUN))
    actions, actor = marks_of(policy, 8)
    assert actions == marks_of(plain, 8)[0]
    assert [note.code for note in actor.notes] == ["policy_given", "schedule_without_weights"]


@pytest.mark.parametrize("forced", [(1,), (1, 3), (3, 4), (5,)])
def test_weights_are_fitted_to_what_was_really_computed(forced):
    gram = Gram.of(products_of(bending(RUN, 4)), 8)
    policy = SchedulePolicy(speedup=2.0, schedule=Schedule(evenly_spaced(4, 8), RUN, gram))
    actions, _ = marks_of(policy, 8, forced=forced)
    computed = tuple(a.mode is Mode.RUN or i in forced for i, a in enumerate(actions))
    by_hand = weights_by_hand(Schedule(computed, RUN, gram))
    skipped = [i for i, on in enumerate(computed) if not on]
    assert skipped and all(actions[i].prediction_weights == by_hand[i] for i in skipped)


def test_each_image_has_a_schedule_of_its_own():
    policy = SchedulePolicy(speedup=3.0)
    window = Window(1.0, 0.0)
    assert policy.start(window, 0) is not policy.start(window, 1)
    plain, _ = marks_of(policy, 24)
    marks_of(policy, 24, forced=(4, 11))
    assert marks_of(policy, 24)[0] == plain


# Predictions that are measured too far off.

OFF = Reason(ReasonCode.PREDICTIONS_OFF)


@pytest.mark.parametrize("measured", [SAFE_ERROR * 1.01, 3.12, math.inf, math.nan])
def test_while_predictions_are_off_everything_is_computed_and_said_once(measured):
    """NaN from the model is such an error, too."""
    actions, actor = marks_of(SchedulePolicy(speedup=2.0), 20, safe=True, measured_error=measured)
    marks = text(actions)
    assert set(marks[marks.find(".") + 3 :]) == {"#"} and actor.notes == (OFF,)
    assert marks.count(".") <= (2 if math.isfinite(measured) else 0)
    actions, actor = marks_of(SchedulePolicy(speedup=2.0, safe=False), 20, measured_error=measured)
    assert text(actions).count("#") == 10 and actor.notes == ()


@pytest.mark.parametrize("measured", [None, 0.0, SAFE_ERROR])
def test_while_they_are_not_the_schedule_is_as_it_was(measured):
    wanted = marks_of(SchedulePolicy(speedup=2.0, safe=False), 20)[0]
    actions, actor = marks_of(SchedulePolicy(speedup=2.0), 20, safe=True, measured_error=measured)
    assert actions == wanted and actor.notes == ()


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("off", [range(4, 9), (6,), range(12)])
def test_what_is_computed_for_safety_is_beside_the_budget(speedup, off):
    steps = 24
    policy = SchedulePolicy(speedup=speedup)
    planned = text(marks_of(policy, steps)[0])
    actor = policy.start(Window(1.0, 0.0))
    sigmas = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    actions, history = [], ()
    for i in range(steps):
        seen = Observation(
            index=i,
            sigma=sigmas[i],
            step=i,
            steps=steps,
            sigmas=sigmas,
            computed=len(history),
            history=history[-4:],
            measured_error=math.inf if i in off else 0.01,
        )
        actions.append(actor.act(seen))
        actor.executed(actions[-1])
        history = (*history, sigmas[i]) if actions[-1].mode is Mode.RUN else history
    expected = "".join("#" if i in off else mark for i, mark in enumerate(planned))
    assert text(actions) == expected


@pytest.mark.parametrize("steps, computed", [(7, 6), (8, 6), (10, 8), (11, 5), (12, 6)])
def test_of_short_runs_a_quarter_is_skipped_at_most(steps, computed):
    actions, actor = marks_of(SchedulePolicy(speedup=2.0), steps, safe=True)
    assert text(actions).count("#") == computed
    said = [Reason(ReasonCode.SHORT_RUN, steps=steps, skipped=steps // 4)] if steps < 11 else []
    assert [*actor.notes] == said


def test_a_schedule_of_a_longer_run_does_not_skip_more_of_a_short_one():
    plan = Schedule(evenly_spaced(14, 28), tuple(1 - i / 28 for i in range(29)))
    policy = SchedulePolicy(speedup=2.0, schedule=plan, source="a.safetensors")
    actions, actor = marks_of(policy, 8, safe=True)
    assert text(actions).count("#") == 6
    assert [note.code for note in actor.notes] == ["schedule_unfit", "short_run"]
    assert text(marks_of(policy, 8, safe=False)[0]).count("#") == 4


@pytest.mark.parametrize("turns", [(5,), (12,), (5, 12), (20,)])
@pytest.mark.parametrize("window", [WHOLE, Window(0.9, 0.1)])
def test_where_a_prompt_begins_is_planned_and_not_paid_for(turns, window):
    """It is computed anyway. What it would cost later, if nobody had known, is what others need."""
    policy = SchedulePolicy(speedup=2.0)
    planned, _ = marks_of(policy, 24, forced=turns, turns=turns, window=window)
    assert all(planned[turn] == FULL for turn in turns)
    assert text(planned).count("#") == 12


@pytest.mark.parametrize("turn", range(8, 22))
def test_what_is_paid_for_is_no_turn(turn):
    """One less is computed for each step that had to be, and never the one at which a prompt begins: it would
    be computed all the same, and had to be paid for again."""
    plain = text(marks_of(SchedulePolicy(speedup=3.0), 24, turns=(turn,))[0])
    forced = [step for step in range(3, 7) if plain[step] == "."][:2]
    marks = text(
        marks_of(SchedulePolicy(speedup=3.0), 24, forced=(*forced, turn), turns=(turn,))[0]
    )
    assert marks[turn] == "#" and marks.count("#") + len(forced) == plain.count("#")


def test_a_turn_at_the_beginning_of_the_window_is_one():
    """A single derivative predicts from there on."""
    window = Window(1 - 9.5 / 28, 0.0)
    policy = SchedulePolicy(speedup=1.6)
    usual, turned = (text(marks_of(policy, 28, window=window, turns=t)[0]) for t in ((), (10,)))
    assert usual.count("#") == turned.count("#")
    assert len(turned[11:].split("#")[0]) < len(usual[11:].split("#")[0])


def test_what_was_seen_of_plain_runs_says_nothing_of_one_that_turns():
    sigmas = tuple(1 - i / 28 for i in range(29))
    cheap_late = {gap: 1e-6 if gap[0] > 14 else 1.0 for gap in gaps_of(28)}
    costs = GapCosts.seen([cheap_late] * 4, sigmas)
    policy = SchedulePolicy(speedup=2.0, costs=costs)
    usual, turned = (text(marks_of(policy, 28, turns=turns)[0]) for turns in ((), (13,)))
    assert usual != text(marks_of(SchedulePolicy(speedup=2.0), 28)[0])
    assert turned == text(marks_of(SchedulePolicy(speedup=2.0), 28, turns=(13,))[0])


@pytest.mark.parametrize("closeness", [20.0, 30.0, 45.0, 60.0])
@pytest.mark.parametrize("turns", [(8, 19), (4, 8, 9, 14, 19, 22)])
def test_mode_quality_computes_turns_and_more_steps_for_them(closeness, turns):
    policy = SchedulePolicy(closeness=closeness, safe=False)
    usual = text(marks_of(policy, 28)[0])
    turned = text(marks_of(policy, 28, turns=turns)[0])
    assert all(turned[turn] == "#" for turn in turns)
    assert "." in turned and turned.count("#") >= usual.count("#")


def test_a_searched_schedule_that_skips_a_turn_is_not_gone_by():
    plan = Schedule(evenly_spaced(14, 28), tuple(1 - i / 28 for i in range(29)))
    policy = SchedulePolicy(speedup=2.0, schedule=plan, source="a.safetensors")
    on, off = (plan.computed.index(state, 5) for state in (True, False))
    kept, actor = marks_of(policy, 28, turns=(on,))
    assert text(kept) == "".join("#" if c else "." for c in plan.computed)
    assert [*actor.notes] == [Reason(ReasonCode.POLICY_GIVEN, file="a.safetensors")]
    own, actor = marks_of(replace(policy, speedup=1.0), 28, turns=(off,))
    assert text(own) == text(marks_of(SchedulePolicy(speedup=2.0), 28, turns=(off,))[0])
    assert [*actor.notes] == [Reason(ReasonCode.SCHEDULE_TURNS, file="a.safetensors")]
