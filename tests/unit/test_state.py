"""The state of a run: what it observes, remembers and fetches."""

import math

import pytest
import torch

from rapid_core.engine.run import RunState
from rapid_core.quadrature.sigmas import snap_to_schedule, step_weights
from rapid_core.types import Action, Mode


class Always:
    """An actor that answers from a list and keeps what it saw."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    def act(self, observation):
        self.seen.append(observation)
        levels = self.answers.pop(0) if self.answers else (Mode.RUN,) * len(observation.images)
        return tuple(Action(level) for level in levels)


def step(state, sigma, denoised=0.0, x=None):
    """One evaluation whose derivative is (x - denoised) / sigma."""
    x = torch.ones(state.batch, 2) if x is None else x
    evaluation = state.begin(x, torch.tensor(sigma))
    state.end(evaluation, x, torch.full_like(x, denoised))
    return evaluation


def test_errors_are_unknown_until_the_order_has_points_enough():
    actor = Always()
    state = RunState(1, order=1, actor=actor)
    for sigma in (1.0, 0.9, 0.8, 0.7):
        step(state, sigma)
    errors = [o.images[0].error for o in actor.seen]
    assert [math.isinf(e) for e in errors] == [True, True, True, False]


def test_what_is_held_is_not_remembered_as_computed():
    actor = Always((Mode.RUN,), (Mode.SKIP,))
    state = RunState(1, order=0, actor=actor)
    step(state, 1.0)
    step(state, 0.9)
    assert len(state.guided.points(0)) == 1
    assert (state.computed, state.since) == ([1], [1])


def test_a_second_look_at_the_same_level_is_judged_by_how_far_the_latent_moved():
    actor = Always()
    state = RunState(1, order=0, actor=actor)
    step(state, 0.5, x=torch.ones(1, 2))  # derivative 2
    state.begin(torch.full((1, 2), 1.1), torch.tensor(0.5))
    assert actor.seen[-1].images[0].error == pytest.approx(0.1 / (0.5 * 2), rel=1e-5)


def test_the_measured_error_arrives_with_the_next_observation():
    actor = Always()
    state = RunState(1, order=0, actor=actor)
    for sigma, denoised in ((1.0, 0.0), (0.5, 0.5), (0.25, 0.75)):  # derivatives 1, 1, 1
        step(state, sigma, denoised)
    step(state, 0.125, 0.5)  # derivative 4 where 1 was forecast
    state.finish()
    assert actor.seen[2].images[0].measured == pytest.approx(0.0, abs=1e-6)
    assert state.measured_log[3, 0] == pytest.approx(0.75)


def test_one_synchronisation_an_evaluation(monkeypatch):
    calls = []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, _o=original, _n=name, **k: calls.append(_n) or _o(self, *a, **k),
        )
    state = RunState(2, order=1, actor=Always())
    for sigma in (1.0, 0.9, 0.8, 0.7):
        calls.clear()
        step(state, sigma)
        assert calls == ["tolist"]


def test_step_weights_are_roots_of_the_steps_lengths_within_limits():
    assert step_weights((1.0, 0.75, 0.5, 0.25, 0.0)) == pytest.approx((1.0,) * 4)
    assert step_weights((1.0, 0.9, 0.5)) == pytest.approx((0.75, (0.4 / 0.25) ** 0.5))
    assert step_weights((1.0, 0.8, 0.5)) == pytest.approx(
        ((0.2 / 0.25) ** 0.5, (0.3 / 0.25) ** 0.5)
    )
    assert step_weights((100.0, 1.0, 0.5, 0.4)) == pytest.approx(
        (3**0.5 * (99 / 99.6) ** 0.5, 0.75, 0.75)
    )
    assert step_weights(()) == step_weights((1.0,)) == (1.0,)
    assert step_weights((0.5, 0.5)) == (1.0,)


def test_a_level_that_was_reckoned_anew_is_the_one_that_was_meant():
    schedule = (1.0, 0.75, 0.5, 0.0)
    assert (
        snap_to_schedule(0.75 * (1 + 5e-7), schedule, None)
        == snap_to_schedule(0.75 * (1 - 5e-7), schedule, 0.6)
        == 0.75
    )
    assert (
        snap_to_schedule(0.6 + 1e-8, schedule, 0.6) == 0.6
        and snap_to_schedule(0.0, schedule, 0.5) == 0.0
    )
    assert (
        snap_to_schedule(0.7499, schedule, 0.75) == 0.7499
        and snap_to_schedule(1.2, (), None) == 1.2
    )
