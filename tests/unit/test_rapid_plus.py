"""Heads that begin with a schedule."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.engine.plan import HostFacts, plan_run
from rapid_core.engine.run import Run
from rapid_core.engine.tap import Tap
from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.heads import head_metadata, head_tensors, jumps_policy
from rapid_core.policy_file.policies import policy_of
from rapid_core.policy_file.schedules import schedule_tensors
from rapid_core.quadrature.gram import Gram
from rapid_core.quadrature.spacing import evenly_spaced
from rapid_core.techniques.heads.prior import (
    CLOSED,
    OWN,
    RUNGS,
    mixture,
    next_computed,
    next_in_schedule,
    prior_logits,
)
from rapid_core.techniques.heads.rapid3 import OUTPUTS, Heads, Rapid3Policy
from rapid_core.techniques.heads.rapid_plus import NUMBERS, RapidPlusPolicy
from rapid_core.techniques.heads.rollout import Decision
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.types import Aim, HeadInput, Mode
from rapid_testing.actors import METADATA, text
from rapid_testing.euler import sampled
from rapid_testing.heads import WINDOW, decide, falling, run_heads
from rapid_testing.runs import bending, products_of, weights_by_hand

CHANNELS, STEPS = 4, 28
SIGMAS = falling(STEPS)
GRAM = Gram.of(products_of(bending(SIGMAS, 4)), STEPS)


class RolloutBuffer:
    """What was chosen, where anything was."""

    def __init__(self):
        self.choices = []

    def add(self, image, evaluation, inputs, numbers, pooled, choice):
        if choice != Decision():
            self.choices.append(choice)

    @property
    def paces(self):
        return [choice.pace for choice in self.choices if choice.pace is not None]


def heads(silent=True, **settings):
    torch.manual_seed(0)
    made = Heads(CHANNELS, 24, ("pace",), NUMBERS, 16, **settings)
    if silent:
        made.heads["pace"].fc2.weight.data.zero_()
    return made


def schedule(marks, gram=None):
    return Schedule(tuple(marks), SIGMAS, gram)


def on_ladder(made, speedup=3.0, gram=None, **settings):
    counts = (5, 6, 7, 8, 9, 10, 12, 14)
    ladder = tuple(schedule(evenly_spaced(count, STEPS), gram) for count in counts)
    own = next(rung for rung in ladder if sum(rung.computed) == int(STEPS / speedup))
    return RapidPlusPolicy(heads=made, speedup=speedup, schedule=own, ladder=ladder, **settings)


def draw(made, seed, **settings):
    """Actions of drawn choices, and what was drawn."""
    rollout = RolloutBuffer()
    policy = on_ladder(made, rollout=rollout, seed=seed, **settings)
    return run_heads(policy, STEPS, CHANNELS, euler=True)[0], rollout


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=5, max_size=5), st.floats(0.01, 0.4)
)
def test_a_rung_is_open_where_it_leads_elsewhere(targets, chance):
    targets[OWN] = 4
    prior = prior_logits(targets, chance)
    opened = [target for target, value in zip(targets, prior, strict=True) if value > CLOSED]
    assert sorted(opened) == sorted({target for target in targets if target is not None})
    assert max(range(len(RUNGS)), key=prior.__getitem__) == OWN


def test_another_schedule_is_followed_to_its_next_evaluation():
    marks = [True, False, True, False, True, False]
    assert [next_computed(marks, i, 3) for i in range(6)] == [2, 2, 4, 4, 6, 6]
    assert next_computed(marks, 0, 0) == 6


def test_a_schedule_that_is_not_of_the_ladder_has_no_rungs():
    made = heads(silent=False)
    made.heads["pace"].fc2.bias.data.copy_(torch.tensor([30.0, 20.0, 0.0, 20.0, 30.0]))
    policy = RapidPlusPolicy(
        heads=made,
        speedup=3.0,
        schedule=schedule(evenly_spaced(9, STEPS)),
        ladder=(schedule(evenly_spaced(7, STEPS)), schedule(evenly_spaced(14, STEPS))),
    )
    actions, _, _ = run_heads(policy, STEPS, CHANNELS)
    assert [a.mode is Mode.RUN for a in actions] == list(evenly_spaced(9, STEPS))


def test_the_next_step_is_the_schedules_as_long_as_it_can_be_paid():
    marks = [True, False, True, False, True, False, False, True]
    assert [next_in_schedule(marks, i, 1, 9) for i in range(8)] == [2, 2, 4, 4, 7, 7, 7, 8]
    assert next_in_schedule(marks, 2, 4, 0) == 8 and next_in_schedule(marks, 0, 1, 1) == 7
    # A smaller budget than the schedule's: evenly spaced, to the last step.
    assert next_in_schedule(marks, 0, 1, 2) in (3, 4)
    # One that was spent early takes the place of the schedule's next.
    assert next_in_schedule(marks, 1, 2, 2) == 4


@pytest.mark.parametrize("early", range(1, 6))
def test_what_was_spent_early_is_saved_bit_by_bit_and_not_in_one_hole(early):
    marks = evenly_spaced(10, STEPS)  # every third
    computed = list(range(early))  # without a gap
    while len(computed) < 10:
        left = 10 - len(computed)
        computed.append(next_in_schedule(marks, computed[-1], len(computed), left))
    gaps = [b - a for a, b in zip(computed, computed[1:], strict=False)]
    assert computed[-1] == STEPS - 1 and max(gaps) <= 6


@given(st.integers(2, STEPS), st.randoms())
def test_heads_that_say_nothing_are_the_schedule(count, random):
    computed = {0, STEPS - 1, *random.sample(range(1, STEPS - 1), count - 2)}
    marks = [i in computed for i in range(STEPS)]
    policy = RapidPlusPolicy(heads=heads(), speedup=STEPS / count, schedule=schedule(marks))
    actions, _, _ = run_heads(policy, STEPS, CHANNELS)
    assert [a.mode is Mode.RUN for a in actions] == marks


def test_where_the_schedule_is_followed_weights_fitted_to_it_fill_the_gaps():
    own = schedule(evenly_spaced(10, STEPS), GRAM)
    policy = RapidPlusPolicy(heads=heads(), speedup=2.8, schedule=own)
    actions, _, _ = run_heads(policy, STEPS, CHANNELS, euler=True)
    assert text(actions) == "".join("#" if on else "." for on in own.computed)
    assert [a.prediction_weights for a in actions] == weights_by_hand(own)


@pytest.mark.parametrize("aim", Aim)
def test_without_fitted_weights_gaps_are_corrected_as_those_of_the_schedule_are(aim):
    own = schedule(evenly_spaced(9, STEPS))
    alone = SchedulePolicy(schedule=own, aim=aim, safe=False)
    policy = RapidPlusPolicy(
        heads=heads(), speedup=3.0, prediction_order=1, schedule=own, learned_aim=aim
    )
    latents, decisions = sampled(policy, SIGMAS)
    assert torch.equal(latents, sampled(alone, SIGMAS)[0])
    assert policy.requirements.aim is aim and decisions == sampled(alone, SIGMAS)[1]
    other = next(one for one in Aim if one is not aim)
    assert not torch.equal(latents, sampled(replace(policy, learned_aim=other), SIGMAS)[0])


def test_where_it_is_left_weights_are_fitted_to_what_was_computed_instead():
    left = 0
    for seed in range(20):
        actions, _ = draw(heads(), seed, gram=GRAM)
        on = tuple(a.mode is Mode.RUN for a in actions)
        assert [a.prediction_weights for a in actions] == weights_by_hand(schedule(on, GRAM))
        left += on != tuple(evenly_spaced(9, STEPS))
    assert left > 5


@given(st.integers(0, 10**6))
def test_drawn_jumps_leave_the_schedule_a_little_and_never_the_budget(seed):
    actions, _ = draw(heads(), seed)
    computed = [i for i, a in enumerate(actions) if a.mode is Mode.RUN]
    assert 2 <= len(computed) <= 9
    assert max(b - a for a, b in zip(computed, computed[1:], strict=False)) <= 12


def test_in_the_mean_mode_an_image_may_spend_half_as_much_again():
    made = heads(silent=False)
    # As many evaluations as can be.
    made.heads["pace"].fc2.bias.data.copy_(torch.tensor([0.0, 0.0, 0.0, 20.0, 30.0]))
    spent = {}
    for mode in ("cap", "average"):
        policy = on_ladder(made, 4.0, mode=mode)
        assert policy.to_record()["mode"] == mode
        spent[mode] = text(run_heads(policy, STEPS, CHANNELS)[0]).count("#")
    assert spent == {"cap": 7, "average": 10}


def test_a_second_look_at_a_step_is_computed_in_full_and_costs_nothing_more():
    actor, history = on_ladder(heads()).start(WINDOW), ()
    for index in (0, 1):
        seen = HeadInput(*torch.randn(3, CHANNELS, 8, 8)) if history else None
        action = decide(actor, seen, 0, SIGMAS, history, 0)
        assert action.full and actor.charged == {0}, index
        history = (1.0,)


def test_training_goes_on_leaving_the_schedule_when_heads_would_never():
    made = heads()
    made.heads["pace"].fc2.bias.data.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0, 0.0]))
    own, runs = "".join("#" if on else "." for on in evenly_spaced(9, STEPS)), []
    for seed in range(30):
        actions, rollout = draw(made, seed)
        left = sum(pace != OWN for pace in rollout.paces)
        assert text(actions) == own or left
        runs.append((text(actions) != own, left))
    assert text(run_heads(on_ladder(made), STEPS, CHANNELS)[0]) == own
    assert sum(left for left, _ in runs) > 15
    assert 0.5 < sum(paces for _, paces in runs) / len(runs) < 6
    chances = mixture(
        torch.tensor([0.0, 0.0, 50.0, 0.0, 0.0]), torch.tensor(prior_logits((5, 6, 7, 8, 9), 0.2))
    )
    assert float(chances[OWN]) == pytest.approx(0.9) and float(chances.sum()) == pytest.approx(1.0)


def watch_transfers(monkeypatch):
    """Name and number of elements of every transfer to the host from here on."""
    calls = []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__", "cpu"):
        original = getattr(torch.Tensor, name)

        def transfer(self, *args, _original=original, _name=name, **named):
            calls.append((_name, self.numel()))
            return _original(self, *args, **named)

        monkeypatch.setattr(torch.Tensor, name, transfer)
    return calls


def policy_of_kind(kind):
    if kind == "rapid+":
        return RapidPlusPolicy(heads=heads(), speedup=2.0)
    return Rapid3Policy(heads=Heads(CHANNELS, 24, width=16), speedup=2.0)


@pytest.mark.parametrize("kind", ["rapid3", "rapid+"])
def test_what_heads_ask_for_stays_on_the_device(kind, monkeypatch):
    """It is fetched with the engine's own numbers; all that decides afterwards is on the host."""
    policy = policy_of_kind(kind)
    actor = policy.start(WINDOW)
    parts = torch.randn(3, CHANNELS, 8, 8).unbind()
    seen = HeadInput(*parts, pooled=torch.randn(24), error=torch.tensor(0.1))
    sigma = torch.tensor(0.5)
    calls = watch_transfers(monkeypatch)
    logits = actor.logits(seen, sigma)
    assert len(logits) == sum(OUTPUTS[name] for name in policy.names) and calls == []


@pytest.mark.parametrize("kind", ["rapid3", "rapid+"])
def test_logits_of_heads_come_with_the_engines_own_numbers(kind, monkeypatch):
    """Of what is on the device; what is reckoned with on the host afterwards is smaller."""
    batch, steps = 8, 6
    sigmas = falling(steps)
    policy = policy_of_kind(kind)
    facts = HostFacts(shape=(batch, CHANNELS, 8, 8), sigmas=sigmas)
    run = Run(plan_run((policy,), facts), Tap())
    calls = watch_transfers(monkeypatch)
    make = torch.Generator().manual_seed(1)
    for i in range(steps):
        calls.clear()
        x = torch.randn(batch, CHANNELS, 8, 8, generator=make)
        evaluation = run.begin(x, torch.full((batch,), sigmas[i]))
        run.end(evaluation, x, torch.zeros_like(x))
        (fetched,) = [size for _, size in calls if size > batch]
        assert all(size <= 5 for _, size in calls if size != fetched)
        assert i == 0 or fetched > batch * sum(OUTPUTS[name] for name in policy.names)


def file_of(path, **changes):
    made = heads(silent=False)
    about = {
        **METADATA,
        **head_metadata(made, 1, (0.5, 0.25, 0.125)),
        "structure": "rapid+",
        **changes,
    }
    schedules = [schedule(evenly_spaced(14, STEPS)), schedule(evenly_spaced(7, STEPS))]
    tensors = {**head_tensors(made), **schedule_tensors(schedules)}
    return write(path / "a.safetensors", "heads", about, tensors)


def test_a_file_keeps_heads_and_schedules(tmp_path):
    file = file_of(tmp_path, mode="average")
    policy = policy_of(file, 3.7)
    assert isinstance(policy, RapidPlusPolicy) and policy.mode == "average"
    assert sum(policy.schedule.computed) == 7
    assert [sum(rung.computed) for rung in policy.ladder] == [7, 14]
    assert policy.to_record() == {
        "technique": "rapid+",
        "speedup": 3.7,
        "prediction_order": 1,
        "heads": ["pace"],
        "source": "a.safetensors",
        "mode": "average",
        "aim": "full picture",
    }
    with pytest.raises(PolicyError, match="mode = 'mean'.*cap, average"):
        policy_of(file_of(tmp_path, mode="mean"), 2.0)
    with pytest.raises(
        PolicyError, match="from step to step of a schedule; connect it to RAPID Accelerate"
    ):
        jumps_policy(file, 2.0)


def test_a_file_says_which_picture_its_heads_learned_to_come_near(tmp_path):
    assert policy_of(file_of(tmp_path), 2.0).requirements.aim is Aim.FULL_PICTURE
    best = policy_of(file_of(tmp_path, aim="best picture"), 2.0)
    assert best.requirements.aim is Aim.BEST_PICTURE
    with pytest.raises(PolicyError, match="aim = 'nice'; accepted is one of full picture, best"):
        policy_of(file_of(tmp_path, aim="nice"), 2.0)
    # RAPID Accelerate gives a policy those of its settings that it has a field for.
    names = {field.name for field in fields(RapidPlusPolicy)}
    assert names.isdisjoint({"aim", "start_percent", "end_percent", "safe"})
