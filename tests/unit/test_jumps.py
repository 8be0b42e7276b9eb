"""RAPID3's jumps off the grid: where they land, and how a run goes down by them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.policies import head_metadata, head_tensors, jumps_policy, plan_tensors
from rapid_core.techniques.heads.jumps import LEAST, StepHead, descend, next_level
from rapid_core.techniques.heads.rapid3 import CLIP, Heads, HeadsPolicy
from rapid_core.techniques.step_skip.schedule import Plan
from rapid_testing.actors import METADATA

CHANNELS, HIDDEN = 4, 24
PICTURE = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(1))


def go_down(choose, start=1.0, end=0.0, most=28, denoise=lambda x, sigma: PICTURE):
    """The latent at the end, and the noise levels that a run passed, first and last among them."""
    levels, begin = [start], torch.tensor(start)
    noise = torch.randn(PICTURE.shape, generator=torch.Generator().manual_seed(2))
    x = (1 - begin) * PICTURE + begin * noise
    out = descend(
        denoise, x, begin, (start, end), most, choose, lambda *seen: levels.append(seen[3])
    )
    return out, levels


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(NUMBERS, min_size=1, max_size=60),
    st.floats(1e-3, 1),
    st.floats(0, 1),
    st.integers(1, 40),
    st.sampled_from([1.0, 14.6]),
)
def test_whatever_the_jumps_noise_levels_strictly_fall_and_end_exactly_at_the_end(
    jumps, start, part, most, scale
):
    start, end = start * scale, start * scale * part * 0.999
    answers = iter(jumps * 40)
    _, levels = go_down(
        lambda level, d, made: next_level(level, next(answers), end, scale), start, end, most
    )
    assert levels[0] == start and levels[-1] == end
    assert all(after < before for before, after in zip(levels, levels[1:], strict=False))
    assert len(levels) - 1 <= most


def test_a_jump_lands_at_the_papers_floor():
    assert next_level(1.0, 0.5, 0.0) == 0.5
    assert next_level(0.9996, 0.7501, 0.0) == math.floor(1000 * 0.7501) / 1000 == 0.75
    assert next_level(14.6, 0.5, 0.0, scale=14.6) == 7.3


def test_jumps_are_kept_from_standing_still_and_from_ending_at_once():
    assert next_level(1.0, 1.0, 0.0) == next_level(1.0, 1 - CLIP, 0.0) < 1.0
    assert next_level(1.0, 0.0, -1.0) == next_level(1.0, CLIP, -1.0) == 0.001


def test_a_jump_to_almost_the_end_ends_there():
    assert next_level(0.02, 0.6, 0.0) == 0.012 and next_level(0.02, 0.4, 0.0) == 0.0
    assert next_level(0.8, 0.5, 0.5) == 0.5 and next_level(0.8, 0.5 / 0.8 + 0.5 * LEAST, 0.5) == 0.5
    assert next_level(0.8, 0.7, 0.5) == 0.56


def test_a_jump_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        next_level(0.5, math.nan, 0.0)


def test_the_last_evaluation_that_is_allowed_goes_all_the_way():
    _, levels = go_down(lambda level, d, made: next_level(level, 0.95, 0.0), most=4)
    assert levels == [1.0, 0.95, 0.902, 0.856, 0.0]
    assert go_down(lambda *_: 0.9, most=1)[1] == [1.0, 0.0]


@pytest.mark.parametrize("jump", [0.3, 0.5, 0.9])
def test_on_a_straight_flow_any_jumps_arrive_at_the_picture(jump):
    out, levels = go_down(lambda level, d, made: next_level(level, jump, 0.0))
    assert len(levels) > 2 and torch.allclose(out, PICTURE, atol=1e-5)


def test_a_jump_is_one_euler_step_along_the_derivative_that_the_choice_saw():
    seen = []

    def denoise(x, sigma):
        return x * 0.3 * sigma

    def choose(level, derivative, made):
        seen.append((level, derivative, made))
        return 0.4

    out, levels = go_down(choose, most=2, denoise=denoise)
    x = go_down(lambda *_: 0.0, start=1.0, end=1.0)[0]
    first = x - x * 0.3
    middle = x + first * (0.4 - 1.0)
    wanted = middle - (middle - middle * 0.3 * 0.4) / 0.4 * 0.4
    assert levels == [1.0, 0.4, 0.0] and seen[0][0] == 1.0 and seen[0][2] == 0 and len(seen) == 1
    assert torch.allclose(seen[0][1], first) and torch.allclose(out, wanted, atol=1e-6)


@pytest.mark.parametrize("wanted", [1.0, 1.5])
def test_a_choice_that_does_not_go_down_is_refused(wanted):
    with pytest.raises(ValueError, match="from noise level 1 to .* does not go down"):
        go_down(lambda *_: wanted)


def step_head(logits=None, numbers=1, speedup=2.0, pooled=None):
    torch.manual_seed(0)
    heads = Heads(CHANNELS, HIDDEN, ("step", "cache"), numbers, width=16).requires_grad_(False)
    if logits:
        heads.heads["step"].fc2.weight.data.zero_()
        heads.heads["step"].fc2.bias.data.copy_(torch.tensor(logits))
    return StepHead(HeadsPolicy(heads, speedup, source="file"), 20, 0.0, 1.0, lambda: pooled), heads


def test_the_head_jumps_by_the_mode_of_its_beta_distribution():
    head, _ = step_head([math.log(3.0), 0.0])  # alpha - 1 = 3, beta - 1 = 1: the mode is 3 / 4
    assert head(0.8, PICTURE, 0) == 0.6
    assert step_head([0.0, 0.0])[0](0.8, PICTURE, 0) == 0.4


def test_the_head_sees_derivative_level_budget_and_pooled_vector():
    pooled = torch.randn(HIDDEN)
    head, heads = step_head(numbers=2, pooled=pooled)
    asked = []
    heads.register_forward_pre_hook(lambda module, given: asked.append(given))
    for made in (0, 4):
        head(0.5, PICTURE, made)
    (inputs, numbers, vector), (_, later, _) = asked
    assert list(inputs) == ["step"] and inputs["step"].shape == (1, 4 * CHANNELS, 4, 4)
    assert torch.allclose(numbers, torch.tensor([[0.5, 10 / 20]])) and torch.allclose(
        later[0, 1], torch.tensor(0.3)
    )
    assert torch.equal(vector[0], pooled) and not head.notes


def test_a_pooled_vector_that_is_not_known_is_said():
    for pooled in (None, torch.randn(HIDDEN + 1)):
        head, _ = step_head(pooled=pooled)
        assert 0 <= head(0.5, PICTURE, 0) < 0.5 and "pooled vector is not known" in head.notes[0]


def test_files_without_a_step_head_are_named_and_sent_to_accelerate(tmp_path):
    thin = Heads(CHANNELS, HIDDEN, ("cache", "sparse"), width=16)
    more = head_metadata(thin, 0, (0.5, 0.25, 0.125))
    plan = Plan((True, False, True), (1.0, 0.6, 0.3, 0.0))
    files = [
        write(tmp_path / "thin.safetensors", "heads", {**METADATA, **more}, head_tensors(thin)),
        write(
            tmp_path / "plan.safetensors",
            "schedule",
            {**METADATA, "budgets": [1.5]},
            plan_tensors([plan]),
        ),
        write(
            tmp_path / "some.safetensors",
            "threshold",
            {**METADATA, "budgets": [2.0]},
            {"thresholds": torch.tensor([0.1])},
        ),
    ]
    for file, said in zip(
        files, ("heads = cache, sparse", "kind = 'schedule'", "kind = 'threshold'"), strict=True
    ):
        with pytest.raises(
            PolicyError, match=f"{file.name}: {said}.*no step head.*RAPID Accelerate"
        ):
            jumps_policy(file, 1.0)
