"""GRPO: what must hold by algebra, and a bandit that it has to learn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.techniques.heads.network import beta
from rapid_core.techniques.heads.rapid3 import Decision, Heads, HeadsActor, HeadsPolicy
from rapid_core.types import HeadInput, ImageState, Observation
from rapid_testing.actors import run_heads
from training.grpo import Learner, Settings, Trajectory, advantages, trajectory_log_p
from training.likelihood import Row, TrajectoryTape, log_probability

CHANNELS, HIDDEN = 4, 24


def heads(*names):
    torch.manual_seed(0)
    return Heads(CHANNELS, HIDDEN, names or ("step", "cache", "sparse"), width=16)


def rollout(of, seed, steps=12):
    rollout = TrajectoryTape()
    run_heads(HeadsPolicy(of, 1.0, rollout=rollout, seed=seed), steps, CHANNELS)
    return rollout.rows[0]


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12))
def test_advantages_of_a_group_sum_to_zero_and_equal_rewards_say_nothing(rewards):
    found = advantages(rewards)
    if found is None:
        assert torch.tensor(rewards, dtype=torch.float64).std(unbiased=False) <= 1e-4
    else:
        assert float(found.sum()) == pytest.approx(0.0, abs=1e-3)
        best = max(range(len(rewards)), key=rewards.__getitem__)
        assert float(found[best]) == float(found.max()) > 0
    assert advantages([1.5] * len(rewards)) is None


def test_by_ranks_only_the_order_counts_and_equal_rewards_share_a_place():
    found = advantages([0.1, 0.5, 0.5, 0.51], ranks=True)
    assert float(found.sum()) == pytest.approx(0.0, abs=1e-5) and found[1] == found[2]
    assert torch.equal(found, advantages([-90.0, 0.5, 0.5, 7.0], ranks=True))
    assert advantages([0.5, 0.5, 0.5], ranks=True) is None


def test_advantages_of_a_large_group_that_are_cut_add_up_to_nothing_as_well():
    assert float(advantages([0.0] * 31 + [1.0]).sum()) == pytest.approx(0.0, abs=1e-5)


def drawn_groups(of, number=2, images=4):
    """Groups of rollouts; the reward is the number of the image."""
    groups = []
    for group in range(number):
        runs = [rollout(of, 10 * group + i) for i in range(images)]
        with torch.no_grad():
            old, _ = trajectory_log_p(of, runs)
        groups.append([Trajectory(rows, float(i), old[i]) for i, rows in enumerate(runs)])
    return groups


def test_stored_and_recomputed_log_probabilities_are_equal_and_the_first_ratio_is_one():
    ours = heads()
    groups = drawn_groups(ours)
    for trajectory in groups[
        0
    ]:  # row by row, as they were drawn, from what the tape kept in half precision
        one_by_one = sum(trajectory_log_p(ours, [[row]])[0][0].detach() for row in trajectory.rows)
        assert float(trajectory.log_p) == pytest.approx(float(one_by_one), abs=1e-3)
    scalars = Learner(ours, Settings(epochs=2)).update(groups)
    assert scalars["first_ratio"] == 1.0
    assert scalars["ratio"] != pytest.approx(1.0, abs=1e-6) and scalars["dropped_groups"] == 0


def test_gradients_of_groups_add_up_to_that_of_the_whole_objective():
    """Groups of unlike sizes, one that says nothing between them, and an image that decided
    nothing."""
    ours = heads()
    groups, mute = drawn_groups(ours, 3), Trajectory([], 9.0, torch.tensor(0.0))
    groups[0], groups[1] = (
        [*groups[0][:3], mute],
        [Trajectory(t.rows, 1.0, t.log_p) for t in groups[1]],
    )
    kept = [t for group in (groups[0], groups[2]) for t in group if t.rows]
    advantage = torch.cat(
        [advantages([t.reward for t in groups[0]])[:3], advantages([t.reward for t in groups[2]])]
    )
    new, entropy = trajectory_log_p(ours, [t.rows for t in kept])
    ratio = (new - torch.stack([t.log_p for t in kept])).exp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    loss = -objective - 0.5 * entropy / sum(len(t.rows) for t in kept)
    wanted = torch.autograd.grad(loss, list(ours.parameters()))
    scalars = Learner(ours, Settings(clip=0.2, epochs=1, entropy=0.5, grad_norm=1e9)).update(groups)
    assert scalars["dropped_groups"] == 1 and scalars["loss"] == pytest.approx(
        float(loss.detach()), abs=1e-4
    )
    for parameter, gradient in zip(ours.parameters(), wanted, strict=True):
        assert torch.allclose(
            parameter.grad, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()) + 1e-6
        )


def row(choice):
    return Row(
        {n: torch.zeros(4 * CHANNELS, 4, 4).half() for n in ("step", "cache", "sparse")},
        torch.tensor([0.5]),
        torch.zeros(HIDDEN).half(),
        choice,
    )


def test_absent_and_void_choices_are_not_in_the_probability():
    ours = heads()
    with torch.no_grad():
        full, _ = log_probability(
            ours, [row(Decision(0.5, 1, None)), row(Decision(None, 1, None)), row(Decision())]
        )
        step, _ = log_probability(ours, [row(Decision(0.5, None, None))])
    assert float(full[2]) == 0.0
    assert float(full[0] - full[1]) == pytest.approx(float(step[0]), abs=1e-5)
    assert float(full[1]) == pytest.approx(
        math.log(0.5), abs=0.05
    )  # fresh heads hardly prefer anything


def test_a_two_armed_bandit_is_learned():
    """Reuse pays, recompute does not: after some updates reuse is what is drawn."""
    ours = heads("cache")
    learner, generator = (
        Learner(ours, Settings(lr=1e-2, entropy=0.0)),
        torch.Generator().manual_seed(0),
    )
    blank = row(Decision())

    def chance():
        with torch.no_grad():
            return float(log_probability(ours, [row(Decision(None, 1, None))])[0].exp())

    assert chance() == pytest.approx(0.5, abs=0.1)
    for _ in range(40):
        drawn = (torch.rand(8, generator=generator) < chance()).long().tolist()
        rows = [
            [Row(blank.inputs, blank.numbers, blank.pooled, Decision(None, c, None))] for c in drawn
        ]
        with torch.no_grad():
            old, _ = trajectory_log_p(ours, rows)
        learner.update(
            [[Trajectory(r, float(c), p) for r, c, p in zip(rows, drawn, old, strict=True)]]
        )
    assert chance() > 0.95


def test_groups_that_say_nothing_are_dropped_and_counted():
    ours = heads("cache")
    before = [p.clone() for p in ours.parameters()]
    group = [Trajectory([row(Decision(None, 1, None))], 1.0, torch.tensor(-0.7)) for _ in range(4)]
    assert Learner(ours).update([group, group]) == {"dropped_groups": 2.0}
    assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


class Watching(HeadsActor):
    """Remembers log p of what was drawn, from the very numbers it was drawn by."""

    def __init__(self, policy):
        super().__init__(policy)
        self.drawn = {0: [], 1: []}

    def _one(self, number, image, observation, logits):
        before = len(self.policy.rollout.rows.get(number, ()))
        action = super()._one(number, image, observation, logits)
        for row in self.policy.rollout.rows.get(number, ())[before:]:
            total, c = 0.0, row.choice
            if c.jump is not None:
                total += float(
                    torch.distributions.Beta(*beta(logits["step"])).log_prob(torch.tensor(c.jump))
                )
            for name, picked in (("cache", c.cache), ("sparse", c.sparse)):
                total += 0.0 if picked is None else float(logits[name].log_softmax(0)[picked])
            self.drawn[number].append(total)
        return action


def test_the_tape_gives_back_the_probabilities_that_choices_were_drawn_by():
    """Two images, one of which is not known at first, so that rows and images must not be mixed
    up."""
    ours, rollout, make = heads(), TrajectoryTape(), torch.Generator().manual_seed(3)
    actor = Watching(HeadsPolicy(ours, 1.0, rollout=rollout, seed=4))
    for i in range(12):
        looks = [
            HeadInput(*torch.randn(3, CHANNELS, 8, 8, generator=make)) if i > n else None
            for n in range(2)
        ]
        answers = actor.ask(looks, torch.tensor(1 - i / 12))
        images = tuple(ImageState(int(look is not None), 0, 0.1, levels=(1.0,)) for look in looks)
        actor.act(
            Observation(
                i,
                1 - i / 12,
                images,
                i,
                12,
                answers=tuple([] if answers is None else answers.tolist()),
            )
        )
    for number in range(2):
        with torch.no_grad():
            found, _ = log_probability(ours, rollout.rows[number])
        assert len(found) >= 9
        assert torch.allclose(found, torch.tensor(actor.drawn[number]), atol=1e-3)
