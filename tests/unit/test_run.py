"""A run: what it observes, remembers and fetches, image by image."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from rapid_core.engine.plan import RunPlan
from rapid_core.engine.run import Run
from rapid_core.engine.step_counter import StepCounter
from rapid_core.quadrature.sigmas import place_in_schedule, snap_to_schedule, step_weights
from rapid_core.types import Action, Actor, Mode, Policy, Reason, Requirements, Window


@dataclass(frozen=True, kw_only=True)
class Listed(Policy):
    """A policy whose actors answer from a list, and keep what they saw."""

    technique: ClassVar[str] = "listed"
    modes: tuple[Mode, ...] = ()
    seen: list = field(default_factory=list, compare=False)
    safety: bool = False

    @property
    def requirements(self) -> Requirements:
        return Requirements(modes=frozenset(Mode), safety=self.safety)

    def start(self, window: Window, image: int = 0) -> Actor:
        return _ListedActor(list(self.modes), self.seen)

    def to_record(self) -> dict[str, Any]:
        return {"technique": self.technique}


class _ListedActor(Actor):
    def __init__(self, modes, seen):
        self.modes = modes
        self.seen = seen
        self.done = []

    def act(self, observation):
        self.seen.append(observation)
        return Action(self.modes.pop(0) if self.modes else Mode.RUN)

    def executed(self, action):
        self.done.append(action.mode)


def run_of(*modes, order=0, batch=1, sigmas=(), history=0, sampler="euler"):
    policy = Listed(modes=modes)
    plan = RunPlan(
        policies=(policy,),
        windows=(Window(math.inf, 0.0),),
        batch=batch,
        shape=(batch, 2),
        sigmas=sigmas,
        sampler=sampler,
        prediction_order=order,
        history=history,
    )
    return Run(plan), policy.seen


def step(run, sigma, denoised=0.0, x=None):
    """One evaluation whose derivative is (x - denoised) / sigma."""
    x = torch.ones(run.plan.batch, 2) if x is None else x
    evaluation = run.begin(x, torch.as_tensor(sigma).reshape(-1))
    run.end(evaluation, x, torch.full_like(x, denoised))
    return evaluation


def test_errors_are_unknown_until_the_order_has_points_enough():
    run, seen = run_of(order=1)
    for sigma in (1.0, 0.9, 0.8, 0.7):
        step(run, sigma)
    assert [math.isinf(o.error) for o in seen] == [True, True, True, False]


def test_what_is_skipped_is_not_remembered_as_computed():
    run, _ = run_of(Mode.RUN, Mode.SKIP)
    step(run, 1.0)
    step(run, 0.9)
    (image,) = run.images
    assert len(image.guided.points) == 1
    assert (image.computed, image.since_computed) == (1, 1)


def test_actors_are_told_what_was_executed_whoever_wanted_it():
    run, _ = run_of(Mode.RUN, Mode.SKIP, Mode.SKIP)
    x = torch.ones(1, 2)
    for sigma, forced in ((1.0, False), (0.9, True), (0.8, False)):
        evaluation = run.begin(x, torch.tensor([sigma]))
        if forced:
            evaluation.actions[0] = Action()
        run.end(evaluation, x, x)
    (actor,) = run.images[0].actor.actors
    assert actor.done == [Mode.RUN, Mode.RUN, Mode.SKIP]


def test_a_second_look_at_the_same_sigma_is_judged_by_how_far_the_latent_moved():
    run, seen = run_of()
    step(run, 0.5, x=torch.ones(1, 2))  # derivative 2
    run.begin(torch.full((1, 2), 1.1), torch.tensor([0.5]))
    assert seen[-1].error == pytest.approx(0.1 / (0.5 * 2), rel=1e-5)


def test_the_measured_error_arrives_with_the_next_observation():
    run, seen = run_of()
    for sigma, denoised in ((1.0, 0.0), (0.5, 0.5), (0.25, 0.75)):  # derivatives 1, 1, 1
        step(run, sigma, denoised)
    step(run, 0.125, 0.5)  # derivative 4 where 1 was predicted
    run.finish()
    assert seen[2].measured_error == pytest.approx(0.0, abs=1e-6)
    assert run.images[0].measured_log[3] == pytest.approx(0.75)


def test_one_synchronisation_an_evaluation(monkeypatch):
    calls = []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__", "cpu"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _original=original, _name=name, **named):
            calls.append(_name)
            return _original(self, *args, **named)

        monkeypatch.setattr(torch.Tensor, name, counted)
    run, _ = run_of(order=1, batch=2, history=3)
    for sigma in (1.0, 0.9, 0.8, 0.7):
        calls.clear()
        step(run, sigma)
        assert calls == ["tolist"]


def test_images_at_sigmas_of_their_own_are_each_predicted_with_their_own():
    """A model with a constant derivative, which every prediction meets exactly."""
    derivative = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    run, _ = run_of(Mode.RUN, Mode.RUN, Mode.SKIP, batch=2, order=1)
    x = torch.randn(2, 2)
    for sigma in (1.0, 0.8, 0.6):
        sigmas = torch.tensor([sigma, sigma**2])
        evaluation = run.begin(x, sigmas)
        for image in run.images:
            if evaluation.actions[image.number].mode is Mode.RUN:
                own = evaluation.sigmas[image.number]
                image.cond("positive").add(own, derivative[image.number])
            else:
                predicted = image.predict_cond("positive", evaluation)
                assert torch.allclose(predicted, derivative[image.number])
        evaluation.cond_keys.add("positive")
        run.end(evaluation, x, x - sigmas[:, None] * derivative)
    assert evaluation.own_sigmas == pytest.approx((0.6, 0.36))


def test_an_image_that_has_ended_is_skipped_without_being_asked():
    run, seen = run_of(batch=2)
    step(run, 1.0)
    run.ended = frozenset({1})
    evaluation = step(run, torch.tensor([0.5, 1.0]))
    assert [a.mode for a in evaluation.actions] == [Mode.RUN, Mode.SKIP]
    assert [o.image for o in seen] == [0, 1, 0]


def test_a_note_about_one_file_is_made_once_however_many_images_make_it():
    """The words of the first image stand; other notes are told apart by all they say."""
    run, _ = run_of(batch=3)
    notes = {
        0: [Reason("budget_spent", file="a", steps=5), Reason("one", steps=1)],
        1: [Reason("budget_spent", file="a", steps=7), Reason("one", steps=2)],
        2: [Reason("budget_spent", file="b", steps=5), Reason("one", steps=1)],
    }
    for image in run.images:
        image.actor = SimpleNamespace(notes=notes[image.number])
    assert run.notes == (*notes[0], notes[1][1], notes[2][0])


def test_one_image_holds_no_memory_of_the_others():
    run, _ = run_of(batch=4)
    step(run, 1.0, x=torch.randn(4, 2))
    for image in run.images:
        (point,) = image.guided.points
        assert point.value.untyped_storage().nbytes() == 2 * 4
        assert image.last_latent.untyped_storage().nbytes() == 2 * 4


def test_step_weights_are_roots_of_the_steps_lengths_within_limits():
    assert step_weights((1.0, 0.75, 0.5, 0.25, 0.0)) == pytest.approx((1.0,) * 4)
    assert step_weights((1.0, 0.9, 0.5)) == pytest.approx((0.75, (0.4 / 0.25) ** 0.5))
    roots = ((0.2 / 0.25) ** 0.5, (0.3 / 0.25) ** 0.5)
    assert step_weights((1.0, 0.8, 0.5)) == pytest.approx(roots)
    long = (3**0.5 * (99 / 99.6) ** 0.5, 0.75, 0.75)
    assert step_weights((100.0, 1.0, 0.5, 0.4)) == pytest.approx(long)
    assert step_weights(()) == step_weights((1.0,)) == (1.0,)
    assert step_weights((0.5, 0.5)) == (1.0,)


def test_a_sigma_that_was_computed_anew_is_the_schedules():
    sigmas = (1.0, 0.75, 0.5, 0.0)
    assert snap_to_schedule(0.75 * (1 + 5e-7), sigmas, None) == 0.75
    assert snap_to_schedule(0.75 * (1 - 5e-7), sigmas, 0.6) == 0.75
    assert snap_to_schedule(0.6 + 1e-8, sigmas, 0.6) == 0.6
    assert snap_to_schedule(0.0, sigmas, 0.5) == 0.0
    assert snap_to_schedule(0.7499, sigmas, 0.75) == 0.7499
    assert snap_to_schedule(1.2, (), None) == 1.2


def test_a_sigma_belongs_to_the_last_step_that_begins_at_it_or_above():
    sigmas = (1.0, 0.75, 0.5, 0.0)
    places = [place_in_schedule(s, sigmas) for s in (1.5, 1.0, 0.9, 0.75, 0.6, 0.5, 0.1, 0.0)]
    assert places == [0, 0, 0, 1, 1, 2, 2, 2]
    assert place_in_schedule(0.5, ()) == 0


class TestStepCounter:
    sigmas = tuple(1 - i / 10 for i in range(11))

    def evaluate(self, counter, sigma):
        counter.counted()
        return counter.step(sigma)

    @pytest.mark.parametrize("factor", [0.9, 0.95, 1.05, 1.1])
    def test_steps_are_counted_where_the_sampler_tells_other_sigmas(self, factor):
        counter, steps = StepCounter(self.sigmas), []
        for i, sigma in enumerate(self.sigmas[:-1]):
            told = sigma * factor if 3 <= i <= 7 else sigma
            steps.append(self.evaluate(counter, told))
            counter.passed(i)
        assert steps == list(range(10))

    @pytest.mark.parametrize("factor", [0.95, 1.05, 1.1])
    def test_steps_are_counted_where_no_sigma_is_told_as_it_is(self, factor):
        counter, steps = StepCounter(self.sigmas), []
        for i, sigma in enumerate(self.sigmas[:-1]):
            steps.append(self.evaluate(counter, sigma * factor))
            counter.passed(i)
        assert steps == list(range(10))

    def test_steps_at_one_sigma_are_counted(self):
        sigmas = (1.0, 0.8, 0.6, 0.6, 0.6, 0.4, 0.0)
        counter, steps = StepCounter(sigmas), []
        for i, sigma in enumerate(sigmas[:-1]):
            steps.append(self.evaluate(counter, sigma))
            counter.passed(i)
        assert steps == list(range(6))

    def test_after_another_sigma_one_of_the_schedule_may_be_told_by_chance(self):
        counter, steps = StepCounter(self.sigmas), []
        for i, told in enumerate((1.0, 0.9, 0.8, 0.63, 0.5, 0.4, 0.4)):
            steps.append(self.evaluate(counter, told))
            counter.passed(i)
        assert steps == list(range(7))

    def test_sigmas_between_two_steps_belong_to_the_step_before(self):
        """dpm_2 looks at the middle of every step, after its callback."""
        counter, steps = StepCounter(self.sigmas), []
        for i, sigma in enumerate(self.sigmas[:-1]):
            steps.append(self.evaluate(counter, sigma))
            counter.passed(i)
            steps.append(self.evaluate(counter, sigma - 0.05))
        assert steps == [i for i in range(10) for _ in range(2)]

    def test_without_callbacks_the_sigma_tells_the_step(self):
        counter = StepCounter(self.sigmas)
        assert [self.evaluate(counter, s * 0.99) for s in self.sigmas[:-1]] == list(range(10))

    def test_a_first_sigma_a_little_below_the_schedules_is_the_schedules(self):
        """dpmpp_sde moves it, and looks at the middle of each step before the next callback."""
        counter, steps = StepCounter(self.sigmas), []
        for i, sigma in enumerate(self.sigmas[:-1]):
            steps.append(self.evaluate(counter, sigma - 3e-5 if i == 0 else sigma))
            counter.passed(i)
            steps.append(self.evaluate(counter, sigma - 0.05))
        assert steps == [i for i in range(10) for _ in range(2)]

    def told_other(self, told, one_evaluation=None, again=(), calls_back=True):
        """Evaluation at which it was known that other sigmas are told, None for never. again: sigmas
        that are told once more, and less."""
        counter = StepCounter(self.sigmas, one_evaluation)
        number = 0
        for i, sigma in enumerate(told):
            for each in (sigma, sigma - 0.05) if i in again else (sigma,):
                self.evaluate(counter, each)
                if counter.told_other:
                    return number
                number += 1
            if calls_back:
                counter.passed(i)
        return None

    @pytest.mark.parametrize("one_evaluation", [None, False, True])
    def test_the_schedules_sigmas_are_none_other(self, one_evaluation):
        for moved in (0.0, 3e-5, -3e-5):
            told = [s + moved * (i == 0) for i, s in enumerate(self.sigmas[:-1])]
            assert self.told_other(told, one_evaluation) is None

    @pytest.mark.parametrize("first", [0.95, 1.05, 0.0, 0.9])
    def test_a_first_sigma_that_is_not_the_schedules_first_is_another(self, first):
        """As RES4LYF's resample tells a zero before it begins, or Detail Daemon less than is there."""
        assert self.told_other([first, *self.sigmas[1:-1]]) == 0

    def test_later_ones_are_others_where_one_evaluation_a_step_is_known(self):
        told = [s * 0.97 if i >= 3 else s for i, s in enumerate(self.sigmas[:-1])]
        assert self.told_other(told, one_evaluation=True, calls_back=False) == 3
        assert self.told_other(told, calls_back=False) is None
        assert self.told_other(told) == 3  # seen by the callbacks
        assert self.told_other(told, one_evaluation=False) is None
        early = [s * 0.97 if i >= 1 else s for i, s in enumerate(self.sigmas[:-1])]
        assert self.told_other(early) == 2 and self.told_other(early, one_evaluation=True) == 1

    def test_sigmas_between_two_steps_are_none_other(self):
        assert self.told_other(self.sigmas[:-1], again=range(10)) is None


class TestOtherSigmas:
    """Once a sampler tells other sigmas than the schedule's."""

    sigmas = tuple(1 - i / 10 for i in range(10)) + (0.0,)

    def actions(self, told, safety):
        policy = Listed(modes=(Mode.SKIP,) * 20, safety=safety)
        plan = RunPlan(
            policies=(policy,),
            windows=(Window(math.inf, 0.0),),
            shape=(1, 2),
            sigmas=self.sigmas,
        )
        run = Run(plan)
        modes = [step(run, sigma).actions[0].mode for sigma in told]
        return modes, run.notes

    def test_a_policy_under_safety_computes_from_there_on(self):
        told = [s * 0.97 if i >= 3 else s for i, s in enumerate(self.sigmas[:-1])]
        modes, notes = self.actions(told, safety=True)
        assert modes == [Mode.SKIP] * 3 + [Mode.RUN] * 7
        assert notes == (Reason("other_sigmas"),)

    def test_others_go_on(self):
        told = [s * 0.97 for s in self.sigmas[:-1]]
        modes, notes = self.actions(told, safety=False)
        assert modes == [Mode.SKIP] * 10 and notes == ()
