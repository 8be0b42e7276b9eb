"""Heads that begin with a plan."""

from argparse import Namespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.engine.run import RunState
from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.policies import (
    head_metadata,
    head_tensors,
    jumps_policy,
    plan_tensors,
    policy_of,
)
from rapid_core.quadrature.gram import Gram
from rapid_core.techniques.heads.prior import (
    CLOSED,
    OWN,
    RUNGS,
    mixture,
    next_computed,
    next_in_schedule,
    prior_logits,
)
from rapid_core.techniques.heads.rapid3 import OUTPUTS, Heads, HeadsPolicy
from rapid_core.techniques.heads.rapid_plus import NUMBERS, PlannedActor, PlannedPolicy
from rapid_core.techniques.step_skip.schedule import Plan, evenly_spaced
from rapid_core.types import HeadInput, Mode
from rapid_testing.actors import METADATA, run_heads, text
from rapid_testing.runs import bending, products_of, weights_by_hand
from training.likelihood import TrajectoryTape, left_plan, log_probability
from training.methods import PRICE, SILENT, Planned

CHANNELS, STEPS = 4, 28
SCHEDULE = tuple(1 - i / STEPS for i in range(STEPS)) + (0.0,)
GRAM = Gram.of(products_of(bending(SCHEDULE, 4)), STEPS)


def heads(silent=True, **settings):
    torch.manual_seed(0)
    made = Heads(CHANNELS, 24, ("pace",), NUMBERS, 16, **settings)
    if silent:
        made.heads["pace"].fc2.weight.data.zero_()
    return made


def plan(marks, gram=None):
    return Plan(tuple(marks), SCHEDULE, gram)


def on_ladder(made, speedup=3.0, gram=None, **settings):
    ladder = tuple(plan(evenly_spaced(count, STEPS), gram) for count in (5, 6, 7, 8, 9, 10, 12, 14))
    own = next(p for p in ladder if sum(p.computed) == int(STEPS / speedup))
    return PlannedPolicy(made, speedup, plan=own, ladder=ladder, **settings)


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=5, max_size=5), st.floats(0.01, 0.4)
)
def test_a_rung_is_open_where_it_leads_elsewhere(targets, chance):
    targets[OWN] = 4
    leaning = prior_logits(targets, chance)
    opened = [target for target, value in zip(targets, leaning, strict=True) if value > CLOSED]
    assert sorted(opened) == sorted({target for target in targets if target is not None})
    assert max(range(len(RUNGS)), key=leaning.__getitem__) == OWN


def test_another_plan_is_followed_to_its_next_evaluation():
    marks = [True, False, True, False, True, False]
    assert [next_computed(marks, i, 3) for i in range(6)] == [2, 2, 4, 4, 6, 6] and next_computed(
        marks, 0, 0
    ) == 6


def test_a_plan_that_is_not_of_the_ladder_has_no_rungs():
    made = heads(silent=False)
    made.heads["pace"].fc2.bias.data.copy_(torch.tensor([30.0, 20.0, 0.0, 20.0, 30.0]))
    policy = PlannedPolicy(
        made,
        3.0,
        plan=plan(evenly_spaced(9, STEPS)),
        ladder=(plan(evenly_spaced(7, STEPS)), plan(evenly_spaced(14, STEPS))),
    )
    actions, _ = run_heads(policy, STEPS, CHANNELS)
    assert [a.level is Mode.RUN for a in actions] == list(evenly_spaced(9, STEPS))


def test_the_next_step_is_the_plans_as_long_as_it_can_be_paid():
    marks = [True, False, True, False, True, False, False, True]
    assert [next_in_schedule(marks, i, 1, 9) for i in range(8)] == [2, 2, 4, 4, 7, 7, 7, 8]
    assert next_in_schedule(marks, 2, 4, 0) == 8 and next_in_schedule(marks, 0, 1, 1) == 7
    assert next_in_schedule(marks, 0, 1, 2) in (
        3,
        4,
    )  # a smaller budget than the plan's: evenly spread, to the last step
    assert (
        next_in_schedule(marks, 1, 2, 2) == 4
    )  # one that was spent early takes the place of the plan's next


@given(st.integers(2, STEPS), st.randoms())
def test_heads_that_say_nothing_are_the_plan(count, random):
    marks = {0, STEPS - 1, *random.sample(range(1, STEPS - 1), count - 2)}
    wanted = [i in marks for i in range(STEPS)]
    actions, _ = run_heads(
        PlannedPolicy(heads(), STEPS / count, plan=plan(wanted)), STEPS, CHANNELS
    )
    assert [a.level is Mode.RUN for a in actions] == wanted


def test_where_the_plan_is_followed_weights_fitted_to_it_fill_the_gaps():
    wanted = plan(evenly_spaced(10, STEPS), GRAM)
    policy = PlannedPolicy(heads(), 2.8, plan=wanted)
    actions, _ = run_heads(policy, STEPS, CHANNELS, euler=True)
    assert text(actions) == "".join("#" if on else "." for on in wanted.computed)
    assert [a.weights for a in actions] == weights_by_hand(wanted)


def test_where_it_is_left_weights_are_fitted_to_what_was_computed_instead():
    left = 0
    for seed in range(20):
        policy = on_ladder(heads(), gram=GRAM, rollout=TrajectoryTape(), seed=seed)
        actions, _ = run_heads(policy, STEPS, CHANNELS, euler=True)
        on = tuple(a.level is Mode.RUN for a in actions)
        assert [a.weights for a in actions] == weights_by_hand(plan(on, GRAM))
        left += on != tuple(evenly_spaced(9, STEPS))
    assert left > 5


@given(st.integers(0, 10**6))
def test_drawn_jumps_leave_the_plan_a_little_and_never_the_budget(seed):
    policy = on_ladder(heads(), rollout=TrajectoryTape(), seed=seed)
    actions, _ = run_heads(policy, STEPS, CHANNELS)
    computed = [i for i, a in enumerate(actions) if a.level is Mode.RUN]
    assert 2 <= len(computed) <= 9
    assert max(b - a for a, b in zip(computed, computed[1:], strict=False)) <= 12


def test_in_the_mean_mode_an_image_may_spend_half_as_much_again():
    made = heads(silent=False)
    made.heads["pace"].fc2.bias.data.copy_(
        torch.tensor([0.0, 0.0, 0.0, 20.0, 30.0])
    )  # as dense as can be
    spent = {}
    for mode in ("cap", "average"):
        actions, _ = run_heads(on_ladder(made, 4.0, mode=mode), STEPS, CHANNELS)
        spent[mode] = text(actions).count("#")
    assert spent == {"cap": 7, "average": 10}


def test_the_probability_of_a_pace_is_that_of_the_distribution_it_was_drawn_from(monkeypatch):
    made, rollout, picked = heads(silent=False), TrajectoryTape(), []
    real = PlannedActor._pick
    monkeypatch.setattr(
        PlannedActor, "_pick", lambda self, x: picked.append(x.softmax(0)) or real(self, x)
    )
    run_heads(on_ladder(made, rollout=rollout, seed=5), STEPS, CHANNELS)
    rows = rollout.rows[0]
    assert rows and all(
        len(row.choice.prior_logits) == len(RUNGS) for row in rows if row.choice.pace is not None
    )
    with torch.no_grad():
        found, _ = log_probability(made, rows)
    paced = [
        (row, value) for row, value in zip(rows, found, strict=True) if row.choice.pace is not None
    ]
    assert len(paced) == len(picked) > 3
    for (row, value), chances in zip(paced, picked, strict=True):
        assert float(value) == pytest.approx(float(chances[row.choice.pace].log()), rel=1e-4)


def test_training_goes_on_leaving_the_plan_when_heads_would_never():
    made = heads()
    made.heads["pace"].fc2.bias.data.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0, 0.0]))
    marks, runs = "".join("#" if on else "." for on in evenly_spaced(9, STEPS)), []
    for seed in range(30):
        rollout = TrajectoryTape()
        found = text(run_heads(on_ladder(made, rollout=rollout, seed=seed), STEPS, CHANNELS)[0])
        paces = [row.choice.pace for row in rollout.rows[0] if row.choice.pace is not None]
        assert found == marks or any(pace != OWN for pace in paces)
        runs.append((found != marks, sum(pace != OWN for pace in paces)))
    assert text(run_heads(on_ladder(made), STEPS, CHANNELS)[0]) == marks
    assert (
        sum(left for left, _ in runs) > 15 and 0.5 < sum(paces for _, paces in runs) / len(runs) < 6
    )
    chances = mixture(
        torch.tensor([0.0, 0.0, 50.0, 0.0, 0.0]), torch.tensor(prior_logits((5, 6, 7, 8, 9), 0.2))
    )
    assert float(chances[OWN]) == pytest.approx(0.9) and float(chances.sum()) == pytest.approx(1.0)


def test_how_often_heads_would_leave_the_plan_is_counted():
    made, rollout = heads(), TrajectoryTape()
    run_heads(on_ladder(made, rollout=rollout, seed=5), STEPS, CHANNELS)
    paces = sum(row.choice.pace is not None for row in rollout.rows[0])
    assert left_plan(made, rollout.rows[0]) == (0, paces) and paces > 3
    made.heads["pace"].fc2.bias.data.copy_(torch.tensor([0.0, 0.0, -50.0, 0.0, 0.0]))
    assert left_plan(made, rollout.rows[0])[0] >= paces - 2


@pytest.mark.parametrize("kind", ["rapid3", "rapid+"])
def test_what_heads_ask_for_stays_on_the_device(kind, monkeypatch):
    """It is fetched with the engine's own numbers; all that decides afterwards is on the host."""
    policy = (
        PlannedPolicy(heads(), 2.0)
        if kind == "rapid+"
        else HeadsPolicy(Heads(CHANNELS, 24, width=16), 2.0)
    )
    actor, calls = policy.start(None), []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, _o=original, _n=name, **k: calls.append(_n) or _o(self, *a, **k),
        )
    look = HeadInput(
        *(torch.randn(CHANNELS, 8, 8) for _ in range(3)), torch.randn(24), None, torch.tensor(0.1)
    )
    asked = actor.ask([look, None, look], torch.tensor(0.5))
    assert (
        asked is not None
        and len(asked) == 2 * sum(OUTPUTS[name] for name in policy.names)
        and calls == []
    )


def file_of(path, **changes):
    made = heads(silent=False)
    about = {
        **METADATA,
        **head_metadata(made, 1, (0.5, 0.25, 0.125)),
        "structure": "rapid+",
        **changes,
    }
    tensors = {
        **head_tensors(made),
        **plan_tensors([plan(evenly_spaced(14, STEPS)), plan(evenly_spaced(7, STEPS))]),
    }
    return write(path / "a.safetensors", "heads", about, tensors)


def test_a_file_keeps_heads_and_plans(tmp_path):
    file = file_of(tmp_path, mode="average")
    policy = policy_of(file, 3.7)
    assert (
        isinstance(policy, PlannedPolicy)
        and policy.mode == "average"
        and sum(policy.plan.computed) == 7
    )
    assert [sum(p.computed) for p in policy.ladder] == [7, 14]
    assert "plan" not in policy.settings() and policy.settings()["technique"] == "rapid+"
    with pytest.raises(PolicyError, match="mode = 'mean'.*cap, average"):
        policy_of(file_of(tmp_path, mode="mean"), 2.0)
    with pytest.raises(
        PolicyError, match="from step to step of a plan; connect it to RAPID Accelerate"
    ):
        jumps_policy(file, 2.0)


def test_what_leaves_heads_nothing_to_choose_is_refused(tmp_path):
    def method(speedups, counts, steps=STEPS, heads=("pace",)):
        schedule = tuple(1 - i / steps for i in range(steps)) + (0.0,)
        tensors = plan_tensors([Plan(evenly_spaced(count, steps), schedule) for count in counts])
        file = write(
            tmp_path / "a.safetensors", "schedule", {**METADATA, "budgets": speedups}, tensors
        )
        return Planned(
            Namespace(speedups=speedups, mode="cap", sparse_backend="auto", heads=list(heads)), file
        )

    with pytest.raises(
        PolicyError, match="budgets = 2: the pace head chooses among .* --speedups two or more"
    ):
        method([2.0], [14])
    with pytest.raises(PolicyError, match="the pace head chooses among"):
        method([2.0, 2.01], [13, 13])
    assert method([2.0], [14], heads=("pace", "cache")).speedups == [2.0]
    with pytest.raises(
        ValueError, match="of 4 steps 4x leaves one evaluation, and nothing to choose"
    ):
        method([2.0, 4.0], [2, 1], steps=4)


@pytest.mark.parametrize("kind", ["rapid3", "rapid+"])
def test_answers_of_heads_come_with_the_engines_own_numbers(kind, monkeypatch):
    """Of what is on the device; what is reckoned with on the host afterwards is smaller."""
    batch, steps = 8, 6
    schedule = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    own = Plan(evenly_spaced(3, steps), schedule)
    policy = (
        PlannedPolicy(heads(), 2.0, plan=own, ladder=(own,))
        if kind == "rapid+"
        else HeadsPolicy(Heads(CHANNELS, 24, width=16), 2.0)
    )
    state, calls = RunState(batch, order=1, actor=policy.start(None), schedule=schedule), []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, _o=original, _n=name, **k: (
                calls.append((_n, self.numel())) or _o(self, *a, **k)
            ),
        )
    make = torch.Generator().manual_seed(1)
    for i in range(steps):
        calls.clear()
        x = torch.randn(batch, CHANNELS, 8, 8, generator=make)
        evaluation = state.begin(x, torch.tensor(schedule[i]))
        state.end(evaluation, x, torch.zeros_like(x))
        (fetched,) = [size for name, size in calls if size > batch]
        assert all(size <= 5 for name, size in calls if size != fetched)
        assert i == 0 or fetched > batch * sum(OUTPUTS[name] for name in policy.names)


def test_a_price_follows_what_is_spent_beyond_what_silent_heads_spend(tmp_path):
    tensors = plan_tensors([plan(evenly_spaced(14, STEPS)), plan(evenly_spaced(7, STEPS))])
    about = {**METADATA, "budgets": [2.0, 4.0], "reward": "tested"}
    file = write(tmp_path / "a.safetensors", "schedule", about, tensors)
    method = Planned(
        Namespace(speedups=[2.0, 4.0], mode="average", sparse_backend="auto", heads=["pace"]), file
    )
    spent = [(4.0, 7.5), (4.0, 8.5)]  # drawn: more than the plan's 7
    for _ in range(SILENT // 2):
        assert method.learn(spent)["price/4"] == PRICE
    for _ in range(5):
        assert method.learn(spent)["price/4"] == pytest.approx(PRICE)  # as silent heads do
    dearer = method.learn([(4.0, 8.4)])["price/4"]
    assert PRICE < dearer < PRICE + 0.1 and method.learn([(4.0, 7.2)])["price/4"] < dearer
    assert (
        method.learn([(4.0, 0.1)] * 9)["silent/4"] == 8.0 and method.course["price"][2.0] == PRICE
    )
    for _ in range(9):
        assert method.learn([(4.0, 0.1)])["price/4"] >= 0
    cheap, dear = method.rewards([0.5, 0.5], [6.0, 8.0], 2.0)
    assert cheap - dear == pytest.approx(PRICE * 2 / 14)
