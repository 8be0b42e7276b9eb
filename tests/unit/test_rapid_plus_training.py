"""How training sees heads that begin with a schedule: chances of what was drawn, and prices."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.policies import policy_of
from rapid_core.policy_file.schedules import schedule_tensors
from rapid_core.quadrature.spacing import evenly_spaced
from rapid_core.techniques.heads.prior import OWN, RUNGS, explore_rate, mixture, prior_logits
from rapid_core.techniques.heads.rapid3 import Heads
from rapid_core.techniques.heads.rapid_plus import NUMBERS, RapidPlusActor, RapidPlusPolicy
from rapid_core.techniques.heads.rollout import Decision
from rapid_core.techniques.step_skip.schedule import Schedule
from rapid_core.types import Aim
from rapid_testing.actors import METADATA
from rapid_testing.heads import falling, run_heads
from rapid_testing.trainings import config_of
from training.config import KL, LR, PLUS
from training.grpo import (
    GRPOConfig,
    Learner,
    RolloutBuffer,
    Step,
    Trajectory,
    departures,
    log_probability,
    trajectory_log_p,
)
from training.methods import PRICE, SILENT_ROLLOUTS, RapidPlus
from training.schedules import read_schedules

CHANNELS, STEPS = 4, 28
LADDER = tuple(Schedule(evenly_spaced(count, STEPS), falling(STEPS)) for count in (7, 8, 9, 10, 12))


def heads(silent=True):
    torch.manual_seed(0)
    made = Heads(CHANNELS, 24, ("pace",), NUMBERS, 16)
    if silent:
        made.heads["pace"].fc2.weight.data.zero_()
    return made


def drawn(made, seed=5):
    """Decisions of one image, drawn by the heads."""
    rollout = RolloutBuffer()
    policy = RapidPlusPolicy(
        heads=made, speedup=3.0, schedule=LADDER[2], ladder=LADDER, rollout=rollout, seed=seed
    )
    run_heads(policy, STEPS, CHANNELS)
    return rollout.steps[0]


def method_of(path, speedups, counts, steps=STEPS, mode="cap", heads="pace", target="full"):
    """The method that begins with evenly spaced schedules of these counts."""
    schedules = [Schedule(evenly_spaced(count, steps), falling(steps)) for count in counts]
    about = {**METADATA, "budgets": speedups}
    file = write(path / "a.safetensors", "schedule", about, schedule_tensors(schedules))
    flags = f"--start a --heads {heads} --mode {mode} --target {target} --speedups"
    return RapidPlus(config_of(f"--kind rapid+ {flags} {' '.join(map(str, speedups))}"), file)


def test_the_probability_of_a_pace_is_that_of_the_distribution_it_was_drawn_from(monkeypatch):
    made, picked = heads(silent=False), []
    original = RapidPlusActor._pick

    def pick(self, logits):
        picked.append(logits.softmax(0))
        return original(self, logits)

    monkeypatch.setattr(RapidPlusActor, "_pick", pick)
    steps = drawn(made)
    paced = [step for step in steps if step.choice.pace is not None]
    assert all(len(step.choice.prior_logits) == len(RUNGS) for step in paced)
    with torch.no_grad():
        log_p = log_probability(made, steps).log_p
    values = [
        value for step, value in zip(steps, log_p, strict=True) if step.choice.pace is not None
    ]
    assert len(paced) == len(picked) > 3
    for step, value, chances in zip(paced, values, picked, strict=True):
        assert float(value) == pytest.approx(float(chances[step.choice.pace].log()), rel=1e-4)


READ = "training.schedules"
PRIOR = prior_logits((5, 6, 7, 8, 9), explore_rate(14))
ROUGH = 0.6  # error estimate above which a sparser schedule pays
SPARSER = OWN - 1


def situations(make, number):
    """Decisions yet to be made, before numbers of which one is the error estimate."""
    return [
        Step({"pace": torch.zeros(4 * CHANNELS, 2, 2)}, numbers, torch.zeros(24), Decision())
        for numbers in torch.rand(number, NUMBERS, generator=make)
    ]


def paced(step, pace):
    return replace(step, choice=Decision(pace=pace, prior_logits=PRIOR))


def worth(steps):
    """What leaving the schedule gains, in a trajectory."""
    left = [step for step in steps if step.choice.pace != OWN]
    good = sum(step.choice.pace == SPARSER and step.numbers[-1] > ROUGH for step in left)
    return float(2 * good - len(left))


def taught(tmp_path, updates):
    """Heads that have learned where leaving the schedule pays, which it does not in the mean."""
    torch.manual_seed(0)
    made = Heads(CHANNELS, 24, ("pace",), NUMBERS, 16)
    method_of(tmp_path, [2.0, 4.0], [14, 7]).begin(made)
    learner = Learner(made, GRPOConfig(lr=LR[PLUS], kl=KL[PLUS], ranks=True))
    make = torch.Generator().manual_seed(1)
    for _ in range(updates):
        groups = []
        for _ in range(4):
            seen = situations(make, 8)
            with torch.no_grad():
                logits = logits_of(made, seen)
            chances = mixture(logits, torch.tensor(PRIOR))
            drawn = torch.multinomial(chances, 8, replacement=True, generator=make).T.tolist()
            runs = [
                [paced(step, pace) for step, pace in zip(seen, row, strict=True)] for row in drawn
            ]
            with torch.no_grad():
                old = trajectory_log_p(made, runs).log_p
            groups.append(
                [Trajectory(run, worth(run), p) for run, p in zip(runs, old, strict=True)]
            )
        learner.update(groups)
    return made


def logits_of(made, steps):
    inputs = {"pace": torch.stack([step.inputs["pace"] for step in steps])}
    numbers = torch.stack([step.numbers for step in steps])
    return made(inputs, numbers, torch.stack([step.pooled for step in steps]))["pace"]


def test_a_rule_that_heads_can_see_is_learned_where_leaving_the_schedule_costs_in_the_mean(
    tmp_path,
):
    made = taught(tmp_path, 60)
    steps = situations(torch.Generator().manual_seed(2), 400)
    with torch.no_grad():
        likeliest = (logits_of(made, steps) + torch.tensor(PRIOR)).argmax(1)
    rough = torch.stack([step.numbers[-1] for step in steps]) > ROUGH
    assert (likeliest[rough] == SPARSER).float().mean() > 0.7
    assert (likeliest[~rough] == OWN).float().mean() > 0.95


def test_how_often_heads_would_leave_the_schedule_is_counted():
    made = heads()
    steps = drawn(made)
    paces = sum(step.choice.pace is not None for step in steps)
    assert departures(made, steps) == (0, paces) and paces > 3
    made.heads["pace"].fc2.bias.data.copy_(torch.tensor([0.0, 0.0, -50.0, 0.0, 0.0]))
    assert departures(made, steps)[0] >= paces - 2


def test_what_leaves_heads_nothing_to_choose_is_refused(tmp_path):
    with pytest.raises(
        PolicyError, match="budgets = 2: the pace head chooses among .* --speedups two or more"
    ):
        method_of(tmp_path, [2.0], [14])
    with pytest.raises(PolicyError, match="the pace head chooses among"):
        method_of(tmp_path, [2.0, 2.01], [13, 13])
    assert method_of(tmp_path, [2.0], [14], heads="pace cache").speedups == [2.0]
    with pytest.raises(
        ValueError, match="of 4 steps 4x leaves one evaluation, and nothing to choose"
    ):
        method_of(tmp_path, [2.0, 4.0], [2, 1], steps=4)


def test_a_price_follows_what_is_spent_beyond_what_silent_heads_spend(tmp_path):
    method = method_of(tmp_path, [2.0, 4.0], [14, 7], mode="average")
    spent = [(4.0, 7.5), (4.0, 8.5)]  # drawn: more than the schedule's 7
    for _ in range(SILENT_ROLLOUTS // 2):
        assert method.learn(spent)["price/4"] == PRICE
    for _ in range(5):
        assert method.learn(spent)["price/4"] == pytest.approx(PRICE)  # as silent heads do
    dearer = method.learn([(4.0, 8.4)])["price/4"]
    assert PRICE < dearer < PRICE + 0.1 and method.learn([(4.0, 7.2)])["price/4"] < dearer
    assert method.learn([(4.0, 0.1)] * 9)["silent/4"] == 8.0
    assert method.course["price"][2.0] == PRICE
    for _ in range(9):
        assert method.learn([(4.0, 0.1)])["price/4"] >= 0
    cheap, dear = method.rewards([0.5, 0.5], [6.0, 8.0], 2.0)
    assert cheap - dear == pytest.approx(PRICE * 2 / 14)


@pytest.mark.parametrize(
    "target, aim", [("full", Aim.FULL_PICTURE), ("solution", Aim.BEST_PICTURE)]
)
def test_heads_learn_with_gaps_corrected_towards_the_target_and_so_does_the_file(
    tmp_path, target, aim
):
    method = method_of(tmp_path, [2.0, 4.0], [14, 7], target=target)
    made = heads()
    assert method.policy(made, 2.0).requirements.aim is aim
    about = {**METADATA, **method.metadata(made, "likeness")}
    file = write(tmp_path / "b.safetensors", "heads", about, method.tensors(made))
    assert policy_of(file, 2.0).requirements.aim is aim


def test_a_schedule_of_other_weights_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    schedules = [Schedule(evenly_spaced(14, STEPS), falling(STEPS))]
    about = {**METADATA, "budgets": [2.0], "weights": "0" * 16}
    write(tmp_path / "a.safetensors", "schedule", about, schedule_tensors(schedules))
    graph = SimpleNamespace(model=None)
    monkeypatch.setattr(f"{READ}.family_of", lambda _: SimpleNamespace(family="flux"))
    monkeypatch.setattr(f"{READ}.size_of", lambda _: {"hidden": 24})
    for own, said in (("0" * 16, False), ("f" * 16, True)):
        monkeypatch.setattr(f"{READ}.weights_of", lambda _, own=own: {"weights": own})
        read_schedules(tmp_path / "a.safetensors", graph)
        assert ("a.safetensors was made for other weights" in capsys.readouterr().out) == said
