"""RAPID3's heads: jumps, choices, budget, files."""

import gc
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.heads import head_metadata, head_tensors, heads_of
from rapid_core.policy_file.policies import policy_of
from rapid_core.reasons import ReasonCode
from rapid_core.techniques.heads.network import beta, beta_mode, embedding, packed
from rapid_core.techniques.heads.rapid3 import HEADS, OUTPUTS, Heads, Rapid3Policy, seed_of
from rapid_core.types import FULL, Action, HeadInput, Mode, Reason
from rapid_testing.actors import METADATA
from rapid_testing.heads import WINDOW, decide, falling, run_heads

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
    rollout, sigmas = RolloutBuffer(), falling(28)
    actions, _, _ = run_heads(
        Rapid3Policy(heads=heads(), speedup=3.0, rollout=rollout, seed=seed), 28, CHANNELS
    )
    computed = [i for i, a in enumerate(actions) if a.mode is Mode.RUN]
    assert actions[0].mode is Mode.RUN and len(computed) <= 28 // 3
    jumps = [row[-1].jump for row in rollout.rows if row[-1].jump is not None]
    assert len(jumps) >= len(computed) - 1
    for at, after, jump in zip(computed, [*computed[1:], 28], jumps, strict=False):
        target = math.floor(1000 * sigmas[at] * jump) / 1000
        assert 0 <= target < sigmas[at]
        assert all(
            actions[i].mode is Mode.SKIP for i in range(at + 1, after) if sigmas[i] > target + 1e-6
        )
        assert after == 28 or sigmas[after] <= target + 1e-6


def test_a_jump_skips_every_evaluation_above_its_target():
    policy = Rapid3Policy(
        heads=steer(heads("step"), step=[0.0, 0.0]), speedup=1.0
    )  # mode 0.5: half of the sigma
    actions, ran, _ = run_heads(policy, 16, CHANNELS)
    # Then down to 62 thousandths, below the last of the grid.
    assert ran == [1.0, 0.5, 0.25, 0.125]
    skipped = [a for a in actions if a.mode is Mode.SKIP]
    assert all(a.prediction_weights == ((a.prediction_weights[0][0], 1.0),) for a in skipped)


def test_a_budget_that_short_jumps_use_up_early_is_said_and_nothing_is_drawn_for_what_is_skipped_then():
    rollout = RolloutBuffer()
    short = Rapid3Policy(
        heads=steer(heads("step"), step=[8.0, -8.0]), speedup=4.0, source="short", rollout=rollout
    )
    actions, _, actor = run_heads(short, 28, CHANNELS)
    assert [a.mode for a in actions] == [Mode.RUN] * 7 + [Mode.SKIP] * 21
    assert sum(row[-1].jump is not None for row in rollout.rows) == 6
    assert Reason(ReasonCode.BUDGET_SPENT, file="short", steps=21) in actor.notes
    assert [note.code for note in actor.notes].count("budget_spent") == 1


def test_reuse_voids_the_sparse_choice_and_absent_heads_choose_nothing():
    rollout = RolloutBuffer()
    always = steer(heads(), step=[9.0, -9.0], cache=[-9.0, 9.0], sparse=[0.0, 0.0, 9.0, 0.0])
    actions, _, _ = run_heads(Rapid3Policy(heads=always, speedup=1.0, rollout=rollout), 8, CHANNELS)
    assert [a.mode for a in actions[1:]] == [Mode.REUSE] * 7
    assert all(row[-1].cache == 1 and row[-1].sparse is None for row in rollout.rows)
    thin = steer(heads("sparse"), sparse=[0.0, 0.0, 9.0, 0.0])
    actions, _, _ = run_heads(Rapid3Policy(heads=thin, speedup=1.0), 8, CHANNELS)
    assert [a.density for a in actions] == [1.0] + [0.25] * 7
    rollout = RolloutBuffer()
    run_heads(Rapid3Policy(heads=thin, speedup=1.0, rollout=rollout), 8, CHANNELS)
    assert {(row[-1].jump, row[-1].cache) for row in rollout.rows} == {(None, None)}


def test_heads_out_of_use_are_not_asked_and_without_the_step_head_nothing_is_skipped():
    always = steer(heads(), step=[0.0, 0.0], cache=[-9.0, 9.0])
    policy = Rapid3Policy(heads=always, speedup=4.0, use=("cache",))
    actions, _, _ = run_heads(policy, 16, CHANNELS)
    assert [a.mode for a in actions] == [Mode.RUN] + [Mode.REUSE] * 15
    assert policy.requirements.modes == {Mode.RUN, Mode.REUSE}
    assert policy.to_record()["heads"] == ["cache"] and "densities" not in policy.to_record()
    actions, _, _ = run_heads(Rapid3Policy(heads=heads(), speedup=4.0, use=()), 16, CHANNELS)
    assert all(a.full for a in actions)


def test_without_a_rollout_buffer_nothing_is_drawn():
    first, second = (
        run_heads(Rapid3Policy(heads=heads(), speedup=2.0, seed=seed), 20, CHANNELS)[0]
        for seed in (1, 2)
    )
    assert [a.mode for a in first] == [a.mode for a in second]


def test_the_first_image_draws_by_the_policys_seed_and_others_by_seeds_of_their_own():
    rows = {}
    for image in (0, 1, 2, 1):
        rollout = RolloutBuffer()
        policy = Rapid3Policy(heads=heads(), speedup=2.0, rollout=rollout, seed=5)
        run_heads(policy, 20, CHANNELS, image=image)
        drawn = [row[-1] for row in rollout.rows]
        assert rows.setdefault(image, drawn) == drawn
        assert {row[0] for row in rollout.rows} == {image}
    assert rows[0] != rows[1] != rows[2] != rows[0]
    assert seed_of(5, 0) == 5
    assert len({seed_of(seed, image) for seed in range(9) for image in range(9)}) == 81


def test_what_another_policy_had_computed_is_charged_and_what_it_skipped_is_not():
    actor = Rapid3Policy(heads=steer(heads("step"), step=[8.0, -8.0]), speedup=2.0).start(WINDOW)
    sigmas, seen = falling(8), HeadInput(*torch.randn(3, CHANNELS, 8, 8))
    decide(actor, None, 0, sigmas, (), 0)
    assert actor.charged == {0}
    assert decide(actor, seen, 1, sigmas, (1.0,), 0).mode is Mode.RUN
    actor.executed(Action(Mode.SKIP))  # not charged twice, and not taken back
    assert actor.charged == {0, 1}
    for step in (2, 3):
        actor.step = step
        actor.executed(Action(Mode.REUSE))
        actor.executed(FULL)
    assert decide(actor, seen, 4, sigmas, sigmas[:4], 0).mode is Mode.SKIP  # 4 of 8 were computed


def test_a_policys_heads_lie_once_on_the_device_of_a_run_and_leave_with_it():
    """Copies of an earlier run would be of heads that training has changed since."""
    policy = Rapid3Policy(heads=heads(), speedup=2.0)
    actors = [policy.start(WINDOW, image) for image in range(3)]
    copies = {id(actor.run.on(torch.device("meta"))) for actor in actors}
    assert len(copies) == 1 and next(policy.heads.parameters()).device.type == "cpu"
    again = policy.start(WINDOW, 0)
    assert again.run is not actors[0].run and policy.start(WINDOW, 1).run is again.run
    latest = policy._latest
    del actors, again
    gc.collect()
    assert latest() is None and policy.start(WINDOW, 2).run is not None


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
    assert policy.speedup == 2.5 and policy.prediction_order == 1
    assert policy.requirements.modes == {Mode.RUN, Mode.REUSE, Mode.SKIP}


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("heads", ["jump"], "heads = ['jump']; accepted is a list of some of step, cache, sparse"),
        ("width", 8, "condition.pooled.weight has shape (16, 24); accepted is 8 x 24"),
        ("hidden", -1, "hidden = -1; accepted is a whole number"),
        ("scales", {"step": 0}, "scales = {'step': 0}"),
        ("densities", [0.5, 2, 3], "densities = [0.5, 2, 3]"),
        ("forecast_order", 7, "forecast_order = 7"),
        ("heads", ["step"], "scales ="),
    ],
)
def test_wrong_heads_are_named(tmp_path, field, value, words):
    ours = heads()
    more = {**head_metadata(ours, 1, (0.5, 0.25, 0.125)), field: value}
    file = write(tmp_path / "heads.safetensors", "heads", {**METADATA, **more}, head_tensors(ours))
    with pytest.raises(PolicyError) as error:
        policy_of(file, 2.0)
    assert words in str(error.value)


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


def test_a_policy_says_what_it_needs():
    needs = Rapid3Policy(heads=heads(), speedup=2.0, prediction_order=1).requirements
    assert needs.logits and needs.decides_schedule and needs.blocks and needs.features is None
    assert needs.history == 4 and needs.prediction_order == 1 and needs.attention_density == 0.5


def test_an_image_without_a_pooled_vector_is_decided_all_the_same():
    actor = Rapid3Policy(heads=heads(), speedup=2.0, source="file").start(WINDOW)
    latent, sigma = torch.randn(CHANNELS, 8, 8), torch.tensor(0.5)
    numbers = (sum(OUTPUTS[name] for name in HEADS),)
    with_it = actor.logits(HeadInput(latent, latent, latent, torch.randn(HIDDEN)), sigma)
    assert with_it.shape == numbers and not actor.notes
    assert actor.logits(None, sigma) is None and not actor.known
    assert actor.logits(HeadInput(latent, latent, latent), sigma).shape == numbers and actor.known
    assert actor.notes == (Reason(ReasonCode.POOLED_UNKNOWN, file="file"),)
    video = torch.randn(CHANNELS, 5, 8, 8)
    assert actor.logits(HeadInput(video, video, video), sigma).shape == numbers


def test_an_answer_that_is_not_a_number_is_an_error():
    actor = Rapid3Policy(heads=heads("step"), speedup=2.0, source="file").start(WINDOW)
    seen = HeadInput(*torch.full((3, CHANNELS, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="policy file: its heads answer what is not a number"):
        decide(actor, seen, 1, falling(8), (1.0,), 0)
