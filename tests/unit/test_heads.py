"""RAPID3's heads: jumps, choices, budget, files."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.policies import head_metadata, head_tensors, heads_of, policy_of
from rapid_core.techniques.heads.network import beta, beta_mode, embedding, packed
from rapid_core.techniques.heads.rapid3 import HEADS, OUTPUTS, Heads, HeadsActor, HeadsPolicy
from rapid_core.types import HeadInput, Mode
from rapid_testing.actors import METADATA, run_heads

CHANNELS, HIDDEN = 4, 24


def heads(*names, **settings):
    torch.manual_seed(0)
    return Heads(
        CHANNELS, HIDDEN, names or ("step", "cache", "sparse"), **{"width": 16, **settings}
    )


def steer(heads, **logits):
    """Heads that answer the same whatever they see."""
    for name, values in logits.items():
        heads.heads[name].fc2.weight.data.zero_()
        heads.heads[name].fc2.bias.data.copy_(torch.tensor(values))
    return heads


class RolloutBuffer:
    def __init__(self):
        self.rows = []

    def add(self, *row):
        self.rows.append(row)


@given(st.floats(-6, 6), st.floats(-6, 6))
def test_jumps_are_unimodal_and_lie_between_nothing_and_everything(a, b):
    logits = torch.tensor([a, b])
    assert all(p > 1 for p in beta(logits))
    assert 0 < beta_mode(logits) < 1


def test_latents_are_packed_two_by_two_odd_sides_and_videos_too():
    assert packed(torch.zeros(2, 4, 6, 8)).shape == (2, 16, 3, 4)
    assert packed(torch.zeros(2, 4, 5, 7)).shape == (2, 16, 3, 4)
    assert packed(torch.zeros(2, 4, 3, 6, 8)).shape == (2, 16, 3, 4)
    still = torch.randn(2, 4, 1, 6, 8)
    assert torch.allclose(
        packed(still.expand(-1, -1, 5, -1, -1)), packed(still[:, :, 0]), atol=1e-6
    )
    assert embedding(torch.zeros(5, 1)).shape == (5, 1, 64)


@given(st.integers(0, 10**6))
def test_drawn_jumps_strictly_fall_and_the_budget_is_a_ceiling(seed):
    """Each jump from a computed evaluation lands below it, and nothing above the landing is
    computed or reused."""
    rollout, schedule = RolloutBuffer(), [1 - i / 28 for i in range(28)]
    actions, _ = run_heads(HeadsPolicy(heads(), 3.0, rollout=rollout, seed=seed), 28, CHANNELS)
    computed = [i for i, a in enumerate(actions) if a.level is Mode.RUN]
    assert actions[0].level is Mode.RUN and len(computed) <= 28 // 3
    jumps = [row[-1].jump for row in rollout.rows if row[-1].jump is not None]
    assert len(jumps) >= len(computed) - 1
    for at, after, jump in zip(computed, [*computed[1:], 28], jumps, strict=False):
        target = math.floor(1000 * schedule[at] * jump) / 1000
        assert 0 <= target < schedule[at]
        assert all(
            actions[i].level is Mode.SKIP
            for i in range(at + 1, after)
            if schedule[i] > target + 1e-6
        )
        assert after == 28 or schedule[after] <= target + 1e-6


def test_a_jump_holds_every_evaluation_above_its_target():
    policy = HeadsPolicy(
        steer(heads("step"), step=[0.0, 0.0]), 1.0
    )  # mode 0.5: half of the noise level
    actions, levels = run_heads(policy, 16, CHANNELS)
    assert levels == [
        1.0,
        0.5,
        0.25,
        0.125,
    ]  # then down to 62 thousandths, below the last of the grid
    assert all(
        a.weights == ((w, 1.0),) for a in actions if a.level is Mode.SKIP for w, _ in a.weights
    )


def test_a_budget_that_short_jumps_use_up_early_is_said_and_nothing_is_drawn_for_what_is_held_then(
    monkeypatch,
):
    rollout, made = RolloutBuffer(), []
    monkeypatch.setattr(
        HeadsPolicy, "start", lambda self, window: made.append(HeadsActor(self)) or made[0]
    )
    short = HeadsPolicy(
        steer(heads("step"), step=[8.0, -8.0]), 4.0, source="short", rollout=rollout
    )
    actions, _ = run_heads(short, 28, CHANNELS)
    assert [a.level for a in actions] == [Mode.RUN] * 7 + [Mode.SKIP] * 21
    assert sum(row[-1].jump is not None for row in rollout.rows) == 6
    note = next(note for note in made[0].notes if "budget" in note)
    assert note.startswith("short: the budget was spent 21 steps before the end")


def test_reuse_voids_the_sparse_choice_and_absent_heads_choose_nothing():
    rollout = RolloutBuffer()
    always = steer(heads(), step=[9.0, -9.0], cache=[-9.0, 9.0], sparse=[0.0, 0.0, 9.0, 0.0])
    actions, _ = run_heads(HeadsPolicy(always, 1.0, rollout=rollout), 8, CHANNELS)
    assert [a.level for a in actions[1:]] == [Mode.REUSE] * 7
    assert all(row[-1].cache == 1 and row[-1].sparse is None for row in rollout.rows)
    thin = steer(heads("sparse"), sparse=[0.0, 0.0, 9.0, 0.0])
    actions, _ = run_heads(HeadsPolicy(thin, 1.0), 8, CHANNELS)
    assert [a.density for a in actions] == [1.0] + [0.25] * 7
    rollout = RolloutBuffer()
    run_heads(HeadsPolicy(thin, 1.0, rollout=rollout), 8, CHANNELS)
    assert {(row[-1].jump, row[-1].cache) for row in rollout.rows} == {(None, None)}


def test_heads_out_of_use_are_not_asked_and_without_the_step_head_nothing_is_held():
    policy = HeadsPolicy(steer(heads(), step=[0.0, 0.0], cache=[-9.0, 9.0]), 4.0, use=("cache",))
    actions, _ = run_heads(policy, 16, CHANNELS)
    assert [a.level for a in actions] == [Mode.RUN] + [Mode.REUSE] * 15
    assert Mode.SKIP not in policy.levels and policy.settings()["heads"] == ["cache"]
    actions, _ = run_heads(HeadsPolicy(heads(), 4.0, use=()), 16, CHANNELS)
    assert all(a.dense for a in actions)


def test_without_a_tape_nothing_is_drawn():
    first, second = (run_heads(HeadsPolicy(heads(), 2.0, seed=s), 20, CHANNELS)[0] for s in (1, 2))
    assert [a.level for a in first] == [a.level for a in second]


def test_heads_are_written_and_read(tmp_path):
    ours = heads(scales={"step": 0.5})
    more = head_metadata(ours, 1, (0.5, 0.25, 0.125))
    file = write(tmp_path / "heads.safetensors", "heads", {**METADATA, **more}, head_tensors(ours))
    found = heads_of(file)
    assert found.scales == ours.scales and not any(p.requires_grad for p in found.parameters())
    x = {name: torch.randn(2, 4 * CHANNELS, 8, 8) for name in OUTPUTS}
    numbers, pooled = torch.rand(2, 1), torch.randn(2, HIDDEN)
    for name, logits in found(x, numbers, pooled).items():
        assert torch.equal(logits, ours(x, numbers, pooled)[name])
    policy = policy_of(file, 2.5)
    assert (
        policy.speedup == 2.5
        and policy.forecast_order == 1
        and policy.levels >= {Mode.REUSE, Mode.SKIP}
    )


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("heads", ["jump"], "heads = ['jump']; wanted are some of step, cache, sparse"),
        ("width", 8, "condition.pooled.weight has shape (16, 24); wanted is 8 x 24"),
        ("hidden", -1, "hidden = -1; wanted is a whole number"),
        ("scales", {"step": 0}, "scales = {'step': 0}"),
        ("densities", [0.5, 2, 3], "densities = [0.5, 2, 3]"),
        ("forecast_order", 7, "forecast_order = 7"),
        ("heads", ["step"], "scales ="),
    ],
)
def test_wrong_heads_are_named(tmp_path, field, value, said):
    ours = heads()
    more = {**head_metadata(ours, 1, (0.5, 0.25, 0.125)), field: value}
    file = write(tmp_path / "heads.safetensors", "heads", {**METADATA, **more}, head_tensors(ours))
    with pytest.raises(PolicyError) as error:
        policy_of(file, 2.0)
    assert said in str(error.value)


def test_nan_in_a_head_is_named(tmp_path):
    ours = heads()
    tensors = head_tensors(ours)
    tensors["heads.step.fc1.bias"] = torch.full_like(tensors["heads.step.fc1.bias"], float("nan"))
    file = write(
        tmp_path / "heads.safetensors",
        "heads",
        {**METADATA, **head_metadata(ours, 1, (0.5, 0.25, 0.125))},
        tensors,
    )
    with pytest.raises(PolicyError, match="heads.step.fc1.bias holds NaN"):
        heads_of(file)


def test_an_image_without_a_pooled_vector_is_decided_all_the_same():
    actor = HeadsPolicy(heads(), 2.0).start(None)
    latent = torch.randn(CHANNELS, 8, 8)
    looks = [
        HeadInput(latent, latent, latent),
        None,
        HeadInput(latent, latent, latent, torch.randn(HIDDEN)),
    ]
    answers = actor.ask(looks, torch.tensor(0.5))
    wanted = (2 * sum(OUTPUTS[name] for name in HEADS),)
    assert answers.shape == wanted and actor.asked == [0, 2]
    assert actor.ask([None], torch.tensor(0.5)) is None
    video = torch.randn(CHANNELS, 5, 8, 8)
    assert actor.ask([HeadInput(video, video, video)] * 2, torch.tensor(0.5)).shape == wanted
