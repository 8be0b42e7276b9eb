"""GRPO: what must hold by algebra, and a bandit that it has to learn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.techniques.heads.network import RunHeads, beta
from rapid_core.techniques.heads.rapid3 import Heads, Rapid3Actor, Rapid3Policy
from rapid_core.techniques.heads.rollout import Decision
from rapid_core.types import HeadInput
from rapid_testing.heads import decide, falling, run_heads
from training.grpo import (
    GRPOConfig,
    Learner,
    RolloutBuffer,
    Step,
    Trajectory,
    advantages,
    log_probability,
    trajectory_log_p,
)

CHANNELS, HIDDEN = 4, 24


def heads(*names):
    torch.manual_seed(0)
    return Heads(CHANNELS, HIDDEN, names or ("step", "cache", "sparse"), width=16)


def rollout(of, seed, steps=12):
    buffer = RolloutBuffer()
    run_heads(Rapid3Policy(heads=of, speedup=1.0, rollout=buffer, seed=seed), steps, CHANNELS)
    return buffer.steps[0]


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
            old = trajectory_log_p(of, runs).log_p
        groups.append([Trajectory(steps, float(i), old[i]) for i, steps in enumerate(runs)])
    return groups


def test_stored_and_recomputed_log_probabilities_are_equal_and_the_first_ratio_is_one():
    ours = heads()
    groups = drawn_groups(ours)
    # Step by step, as they were drawn, from what the buffer kept in half precision.
    for trajectory in groups[0]:
        one_by_one = sum(
            trajectory_log_p(ours, [[one]]).log_p[0].detach() for one in trajectory.steps
        )
        assert float(trajectory.log_p) == pytest.approx(float(one_by_one), abs=1e-3)
    scalars = Learner(ours, GRPOConfig(epochs=2)).update(groups)
    assert scalars["first_ratio"] == 1.0
    assert scalars["ratio"] != pytest.approx(1.0, abs=1e-6) and scalars["dropped_groups"] == 0


def test_gradients_of_groups_add_up_to_that_of_the_whole_objective():
    """Groups of unlike sizes, one that says nothing between them, and an image that decided
    nothing."""
    ours = heads()
    groups = drawn_groups(ours, 3)
    groups[0] = [*groups[0][:3], Trajectory([], 9.0, torch.tensor(0.0))]
    groups[1] = [Trajectory(t.steps, 1.0, t.log_p) for t in groups[1]]
    kept = [t for group in (groups[0], groups[2]) for t in group if t.steps]
    advantage = torch.cat(
        [advantages([t.reward for t in groups[0]])[:3], advantages([t.reward for t in groups[2]])]
    )
    new, entropy, _ = trajectory_log_p(ours, [t.steps for t in kept])
    ratio = (new - torch.stack([t.log_p for t in kept])).exp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    loss = -objective - 0.5 * entropy / sum(len(t.steps) for t in kept)
    wanted = torch.autograd.grad(loss, list(ours.parameters()))
    scalars = Learner(ours, GRPOConfig(clip=0.2, epochs=1, entropy=0.5, max_grad_norm=1e9)).update(
        groups
    )
    assert scalars["dropped_groups"] == 1 and scalars["loss"] == pytest.approx(
        float(loss.detach()), abs=1e-4
    )
    for parameter, gradient in zip(ours.parameters(), wanted, strict=True):
        assert torch.allclose(
            parameter.grad, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()) + 1e-6
        )


def step_of(choice):
    """A decision by heads that saw nothing."""
    return Step(
        {n: torch.zeros(4 * CHANNELS, 4, 4).half() for n in ("step", "cache", "sparse")},
        torch.tensor([0.5]),
        torch.zeros(HIDDEN).half(),
        choice,
    )


def test_absent_and_void_choices_are_not_in_the_probability():
    ours = heads()
    with torch.no_grad():
        full = log_probability(
            ours,
            [
                step_of(Decision(0.5, 1, None)),
                step_of(Decision(None, 1, None)),
                step_of(Decision()),
            ],
        ).log_p
        jump = log_probability(ours, [step_of(Decision(0.5, None, None))]).log_p
    assert float(full[2]) == 0.0
    assert float(full[0] - full[1]) == pytest.approx(float(jump[0]), abs=1e-5)
    # Fresh heads hardly prefer anything.
    assert float(full[1]) == pytest.approx(math.log(0.5), abs=0.05)


def test_a_two_armed_bandit_is_learned():
    """Reuse pays, recompute does not: after some updates reuse is what is drawn."""
    ours = heads("cache")
    learner = Learner(ours, GRPOConfig(lr=1e-2, entropy=0.0))
    generator = torch.Generator().manual_seed(0)
    blank = step_of(Decision())

    def chance():
        with torch.no_grad():
            return float(log_probability(ours, [step_of(Decision(None, 1, None))]).log_p.exp())

    assert chance() == pytest.approx(0.5, abs=0.1)
    for _ in range(40):
        drawn = (torch.rand(8, generator=generator) < chance()).long().tolist()
        runs = [
            [Step(blank.inputs, blank.numbers, blank.pooled, Decision(None, c, None))]
            for c in drawn
        ]
        with torch.no_grad():
            old = trajectory_log_p(ours, runs).log_p
        group = [Trajectory(s, float(c), p) for s, c, p in zip(runs, drawn, old, strict=True)]
        learner.update([group])
    assert chance() > 0.95


def test_groups_that_say_nothing_are_dropped_and_counted():
    ours = heads("cache")
    before = [p.clone() for p in ours.parameters()]
    group = [
        Trajectory([step_of(Decision(None, 1, None))], 1.0, torch.tensor(-0.7)) for _ in range(4)
    ]
    assert Learner(ours).update([group, group]) == {"dropped_groups": 2.0}
    assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


class Watching(Rapid3Actor):
    """Remembers log p of what was drawn, from the very numbers it was drawn by."""

    def __init__(self, policy, image):
        super().__init__(policy, RunHeads(policy.heads), image)
        self.drawn = []

    def _decide(self, observation, logits):
        before = len(self.policy.rollout.steps.get(self.image, ()))
        action = super()._decide(observation, logits)
        for step in self.policy.rollout.steps.get(self.image, ())[before:]:
            total = 0.0
            if step.choice.jump is not None:
                jumps = torch.distributions.Beta(*beta(logits["step"]))
                total += float(jumps.log_prob(torch.tensor(step.choice.jump)))
            for name in ("cache", "sparse"):
                picked = getattr(step.choice, name)
                if picked is not None:
                    total += float(logits[name].log_softmax(0)[picked])
            self.drawn.append(total)
        return action


def test_the_buffer_gives_back_the_probabilities_that_choices_were_drawn_by():
    """Two images, one of which is not known at first, so that steps and images must not be mixed
    up."""
    ours = heads()
    buffer = RolloutBuffer()
    make = torch.Generator().manual_seed(3)
    policy = Rapid3Policy(heads=ours, speedup=1.0, rollout=buffer, seed=4)
    actors = [Watching(policy, image) for image in range(2)]
    sigmas = falling(12)
    for i in range(12):
        for image, actor in enumerate(actors):
            parts = torch.randn(3, CHANNELS, 8, 8, generator=make)
            seen = HeadInput(*parts) if i > image else None
            history = (1.0,) if seen is not None else ()
            decide(actor, seen, i, sigmas, history, 0, image=image)
    for image, actor in enumerate(actors):
        with torch.no_grad():
            log_p = log_probability(ours, buffer.steps[image]).log_p
        assert len(log_p) >= 9
        assert torch.allclose(log_p, torch.tensor(actor.drawn), atol=1e-3)


def test_the_reported_kl_is_never_negative_and_zero_where_nothing_changed():
    """The naive estimate, the mean of old less new log p, is either."""
    ours = heads("cache")
    learner = Learner(ours, GRPOConfig(lr=1e-2, epochs=1))
    group = [
        Trajectory([step_of(Decision(None, c, None))], float(c), torch.tensor(0.0)) for c in (0, 1)
    ]
    with torch.no_grad():
        old = trajectory_log_p(ours, [t.steps for t in group]).log_p
    same = [Trajectory(t.steps, t.reward, p) for t, p in zip(group, old, strict=True)]
    assert learner.update([same])["approx_kl_k3"] == 0.0
    likelier = [Trajectory(t.steps, t.reward, t.log_p - 2) for t in group]
    with torch.no_grad():
        new = trajectory_log_p(ours, [t.steps for t in group]).log_p
    assert float((torch.full((2,), -2.0) - new).mean()) < 0
    ratio = (new + 2).exp()
    expected = float(((ratio - 1) - (new + 2)).mean())
    assert expected > 0
    assert learner.update([likelier])["approx_kl_k3"] == pytest.approx(expected, rel=1e-4)
