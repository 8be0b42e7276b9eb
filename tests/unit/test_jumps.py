"""RAPID3's jumps off the grid: where they land, and how images go down by them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.heads import head_metadata, head_tensors, jumps_policy
from rapid_core.policy_file.schedules import schedule_tensors
from rapid_core.reasons import ReasonCode
from rapid_core.techniques.heads.jumps import LEAST, Evaluated, StepHead, descend, next_sigma
from rapid_core.techniques.heads.rapid3 import CLIP, Heads, Rapid3Policy
from rapid_core.techniques.step_skip.schedule import Schedule
from rapid_core.types import HeadInput, Reason, Window
from rapid_testing.actors import METADATA

CHANNELS, HIDDEN = 4, 24
PICTURE = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(1))


def latents(start, images=1):
    """(images, ...) on a straight flow to PICTURE."""
    noise = torch.randn(images, *PICTURE.shape[1:], generator=torch.Generator().manual_seed(2))
    return (1 - start) * PICTURE + start * noise


def go_down(choose, start=1.0, end=0.0, most=28, denoise=lambda x, sigma: PICTURE):
    """The latent of one image at the end, and the sigmas that it passed, first and last among
    them. choose: from sigma, derivative and evaluations made."""
    jumps, begin = [], torch.tensor(start)

    def chosen(images):
        return [choose(i.sigma, i.derivative, i.made) for i in images]

    def evaluate(x, sigmas, done):
        assert sigmas.shape == (1,) and done == (False,)
        return denoise(x, sigmas[0])

    x = latents(begin)
    out = descend(evaluate, x, begin, (start, end), most, chosen, jumps.append)
    return out, [start, *(jump.landings[0] for jump in jumps)]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(NUMBERS, min_size=1, max_size=60),
    st.floats(1e-3, 1),
    st.floats(0, 1),
    st.integers(1, 40),
    st.sampled_from([1.0, 14.6]),
)
def test_whatever_the_jumps_sigmas_strictly_fall_and_end_exactly_at_the_end(
    jumps, start, part, most, scale
):
    start, end = start * scale, start * scale * part * 0.999
    answers = iter(jumps * 40)
    _, sigmas = go_down(
        lambda sigma, d, made: next_sigma(sigma, next(answers), end, scale), start, end, most
    )
    assert sigmas[0] == start and sigmas[-1] == end
    assert all(after < before for before, after in zip(sigmas, sigmas[1:], strict=False))
    assert len(sigmas) - 1 <= most


def test_a_jump_lands_at_the_papers_floor():
    assert next_sigma(1.0, 0.5, 0.0) == 0.5
    assert next_sigma(0.9996, 0.7501, 0.0) == math.floor(1000 * 0.7501) / 1000 == 0.75
    assert next_sigma(14.6, 0.5, 0.0, scale=14.6) == 7.3


def test_jumps_are_kept_from_standing_still_and_from_ending_at_once():
    assert next_sigma(1.0, 1.0, 0.0) == next_sigma(1.0, 1 - CLIP, 0.0) < 1.0
    assert next_sigma(1.0, 0.0, -1.0) == next_sigma(1.0, CLIP, -1.0) == 0.001


def test_a_jump_to_almost_the_end_ends_there():
    assert next_sigma(0.02, 0.6, 0.0) == 0.012 and next_sigma(0.02, 0.4, 0.0) == 0.0
    assert next_sigma(0.8, 0.5, 0.5) == 0.5 and next_sigma(0.8, 0.5 / 0.8 + 0.5 * LEAST, 0.5) == 0.5
    assert next_sigma(0.8, 0.7, 0.5) == 0.56


def test_a_jump_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        next_sigma(0.5, math.nan, 0.0)


def test_the_last_evaluation_that_is_allowed_goes_all_the_way():
    _, sigmas = go_down(lambda sigma, d, made: next_sigma(sigma, 0.95, 0.0), most=4)
    assert sigmas == [1.0, 0.95, 0.902, 0.856, 0.0]
    assert go_down(lambda *_: 0.9, most=1)[1] == [1.0, 0.0]


@pytest.mark.parametrize("jump", [0.3, 0.5, 0.9])
def test_on_a_straight_flow_any_jumps_arrive_at_the_picture(jump):
    out, sigmas = go_down(lambda sigma, d, made: next_sigma(sigma, jump, 0.0))
    assert len(sigmas) > 2 and torch.allclose(out, PICTURE, atol=1e-5)


def test_a_jump_is_one_euler_step_along_the_derivative_that_the_choice_saw():
    seen = []

    def denoise(x, sigma):
        return x * 0.3 * sigma

    def choose(sigma, derivative, made):
        seen.append((sigma, derivative, made))
        return 0.4

    out, sigmas = go_down(choose, most=2, denoise=denoise)
    x = latents(1.0)
    first = x - x * 0.3
    middle = x + first * (0.4 - 1.0)
    expected = middle - (middle - middle * 0.3 * 0.4) / 0.4 * 0.4
    assert sigmas == [1.0, 0.4, 0.0] and seen[0][0] == 1.0 and seen[0][2] == 0 and len(seen) == 1
    assert torch.allclose(seen[0][1], first) and torch.allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("landing", [1.0, 1.5])
def test_a_choice_that_does_not_go_down_is_refused(landing):
    with pytest.raises(ValueError, match="from sigma 1 to .* does not go down"):
        go_down(lambda *_: landing)


SHARES = (0.3, 0.9, 0.6)  # of the sigma, that the images of a batch jump to


def batch(images, most=28, denoise=lambda x, sigma: 0.3 * x * sigma + 0.2):
    """These images of a batch of three: the latents at the end and the jumps."""
    jumps = []

    def choose(seen):
        return [next_sigma(one.sigma, SHARES[images[one.image]], 0.0) for one in seen]

    def evaluate(x, sigmas, done):
        return denoise(x, sigmas.view(-1, 1, 1, 1))

    x = latents(1.0, len(SHARES))[images]
    out = descend(evaluate, x, torch.tensor(1.0), (1.0, 0.0), most, choose, jumps.append)
    return out, jumps


def passed(jumps, row):
    """Sigmas that an image was evaluated at, and where it ended."""
    going = [jump for jump in jumps if not jump.done[row]]
    return [jump.sigmas[row].item() for jump in going], going[-1].landings[row]


@pytest.mark.parametrize("most", [28, 4])
def test_images_of_a_batch_go_the_ways_that_they_would_go_alone(most):
    together, jumps = batch([0, 1, 2], most)
    for row in range(len(SHARES)):
        alone, own = batch([row], most)
        assert torch.equal(together[row : row + 1], alone)
        assert passed(jumps, row) == passed(own, 0) and passed(own, 0)[1] == 0.0
    lengths = {len(passed(jumps, row)[0]) for row in range(len(SHARES))}
    assert max(lengths) == len(jumps) <= most and (len(lengths) > 1 or most == 4)


def test_an_image_that_has_arrived_stays_as_it_is_and_is_marked():
    out, jumps = batch([0, 1, 2])
    assert jumps[0].done == (False,) * 3 and sum(jumps[-1].done) == 2
    for before, after in zip(jumps, jumps[1:], strict=False):
        for row, done in enumerate(after.done):
            assert done == (before.landings[row] == 0.0) >= before.done[row]
            if done:
                assert torch.equal(after.x[row], out[row]) and after.landings[row] == 0.0
                last = next(jump for jump in reversed(jumps) if not jump.done[row])
                assert after.sigmas[row] == last.sigmas[row] > 0
                assert torch.equal(after.denoised[row], last.denoised[row])


def test_who_has_arrived_is_told_before_an_evaluation_and_what_it_gives_for_them_is_not_used():
    told = []

    def evaluate(x, sigmas, done):
        told.append(done)
        out = 0.3 * x * sigmas.view(-1, 1, 1, 1) + 0.2
        out[list(done)] = float("nan")
        return out

    x = latents(1.0, 3)

    def choose(seen):
        return [next_sigma(one.sigma, SHARES[one.image], 0.0) for one in seen]

    jumps = []
    out = descend(evaluate, x, torch.tensor(1.0), (1.0, 0.0), 28, choose, jumps.append)
    assert told == [jump.done for jump in jumps] and not out.isnan().any()
    assert torch.equal(out, batch([0, 1, 2])[0])
    assert torch.equal(x, latents(1.0, 3))  # the caller's tensor is its own


def test_the_latents_precision_is_kept():
    seen = []

    def evaluate(x, sigmas, done):
        seen.append((x.dtype, sigmas.dtype))
        return 0.3 * x

    x = latents(1.0, 2).half()
    out = descend(
        evaluate, x, torch.tensor(1.0), (1.0, 0.0), 2, lambda s: [0.4] * len(s), seen.append
    )
    assert out.dtype == torch.float16 and seen[0] == (torch.float16, torch.float16)


def step_head(logits=None, numbers=1, speedup=2.0, pooled=None, scale=1.0):
    torch.manual_seed(0)
    heads = Heads(CHANNELS, HIDDEN, ("step", "cache"), numbers, width=16).requires_grad_(False)
    if logits:
        heads.heads["step"].fc2.weight.data.zero_()
        heads.heads["step"].fc2.bias.data.copy_(torch.tensor(logits))
    policy = Rapid3Policy(heads=heads, speedup=speedup, source="file")
    return StepHead(policy, 20, 0.0, scale, lambda image: pooled), heads


def choice(head, sigma, made=0, image=0, derivative=PICTURE):
    (landing,) = head([Evaluated(image, sigma, derivative, made)])
    return landing


def test_the_head_jumps_by_the_mode_of_its_beta_distribution():
    head, _ = step_head([math.log(3.0), 0.0])  # alpha - 1 = 3, beta - 1 = 1: the mode is 3 / 4
    assert choice(head, 0.8) == 0.6
    assert choice(step_head([0.0, 0.0])[0], 0.8) == 0.4


def test_the_head_sees_derivative_sigma_budget_and_pooled_vector():
    pooled = torch.randn(HIDDEN)
    head, heads = step_head(numbers=2, pooled=pooled)
    asked = []
    heads.register_forward_pre_hook(lambda module, given: asked.append(given))
    for made in (0, 4):
        choice(head, 0.5, made)
    (inputs, numbers, vector), (_, later, _) = asked
    assert list(inputs) == ["step"] and inputs["step"].shape == (1, 4 * CHANNELS, 4, 4)
    assert torch.allclose(numbers, torch.tensor([[0.5, 10 / 20]]))
    assert torch.allclose(later[0, 1], torch.tensor(0.3))
    assert torch.equal(vector[0], pooled) and not head.notes


def test_the_head_is_told_sigmas_as_training_tells_them_where_they_are_above_1():
    """Cosmos samples from a sigma of 80; heads learn on the sampler's own sigmas."""
    head, heads = step_head(scale=80.0)
    asked = []
    heads.register_forward_pre_hook(lambda module, given: asked.append(given[1]))
    choice(head, 40.0)
    actor = head.policy.start(Window(80.0, 0.0))
    actor.logits(HeadInput(*torch.randn(3, CHANNELS, 8, 8)), torch.tensor(40.0))
    assert torch.equal(*asked)


def test_the_head_decides_on_each_image_by_itself_and_fetches_their_jumps_at_once(monkeypatch):
    head, heads = step_head(pooled=torch.randn(HIDDEN))
    heads.heads["step"].fc2.weight.data.mul_(3000.0)
    derivatives = torch.randn(3, 1, CHANNELS, 8, 8)
    images = [Evaluated(i, 0.9 - 0.2 * i, d, i) for i, d in enumerate(derivatives)]
    alone = [head([image])[0] for image in images]
    fetched, original = [], torch.Tensor.tolist

    def tolist(self):
        fetched.append(self.numel())
        return original(self)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    assert head(images) == alone and fetched == [3] and len(set(alone)) == 3


def test_a_pooled_vector_that_is_not_known_is_said():
    for pooled in (None, torch.randn(HIDDEN + 1)):
        head, _ = step_head(pooled=pooled)
        assert 0 <= choice(head, 0.5) < 0.5
        assert head.notes == (Reason(ReasonCode.POOLED_UNKNOWN, file="file"),)


def test_files_without_a_step_head_are_named_and_sent_to_accelerate(tmp_path):
    thin = Heads(CHANNELS, HIDDEN, ("cache", "sparse"), width=16)
    more = head_metadata(thin, 0, (0.5, 0.25, 0.125))
    schedule = Schedule((True, False, True), (1.0, 0.6, 0.3, 0.0))
    files = [
        write(tmp_path / "thin.safetensors", "heads", {**METADATA, **more}, head_tensors(thin)),
        write(
            tmp_path / "plan.safetensors",
            "schedule",
            {**METADATA, "budgets": [1.5]},
            schedule_tensors([schedule]),
        ),
        write(
            tmp_path / "some.safetensors",
            "threshold",
            {**METADATA, "budgets": [2.0]},
            {"thresholds": torch.tensor([0.1])},
        ),
    ]
    problems = ("heads = cache, sparse", "kind = 'schedule'", "kind = 'threshold'")
    for file, problem in zip(files, problems, strict=True):
        with pytest.raises(
            PolicyError, match=f"{file.name}: {problem}.*no step head.*RAPID Accelerate"
        ):
            jumps_policy(file, 1.0)
