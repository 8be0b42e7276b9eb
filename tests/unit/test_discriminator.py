"""The adversarial reward: it learns, remembers little, goes on as it was, and touches nothing but
its adapter."""

import math

import pytest
import torch
import torch.nn.functional as F

from training.discriminator import Adapter, Discriminator, Replay
from training.features import RandomFeatures, features_for
from training.pictures import Drawn, Pictures
from training.references import Reference
from training.rewards import Mixture, parsed
from training.scorer import Scorer

PROMPTS = 12  # of the warm-up


def sharp(number, seed):
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def blurred(number, seed):
    return F.avg_pool2d(sharp(number, seed), 3, 1, 1)


def taught(steps, seed=0, **settings):
    found = Discriminator(RandomFeatures(), seed, **settings)
    found.remember(found.look(sharp(48, 1)), found.look(blurred(48, 2)))
    return found, [found.step(str(i)) for i in range(steps)]


def test_it_learns_to_tell_pictures_apart_that_it_has_not_seen():
    found, scalars = taught(60)
    assert scalars[-1]["discriminator/loss"] < 0.3 < scalars[0]["discriminator/loss"]
    assert scalars[-1]["discriminator/accuracy"] == 1.0
    full, drawn = (found.likeness(found.look(make(16, 9))) for make in (sharp, blurred))
    assert full.min() > 0.6 and drawn.max() < 0.4 and 0 <= drawn.min() and full.max() <= 1


def test_before_it_has_learned_the_adapter_is_the_identity():
    adapter, features = Adapter(16), torch.randn(5, 16)
    assert torch.equal(adapter(features), adapter.logit(features)[:, 0])


def test_the_gradient_reaches_the_adapter_and_nothing_else():
    found = Discriminator(features_for("judge"), 0)
    before = [p.clone() for p in found.features.network.parameters()]
    found.remember(found.look(sharp(4, 1)), found.look(blurred(4, 2)))
    assert not found.look(sharp(1, 3)).requires_grad
    found.step("once")
    assert all(p.grad is not None for p in found.adapter.parameters())
    assert all(p.grad is None for p in found.features.network.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(before, found.features.network.parameters(), strict=True)
    )
    owned = {id(p) for group in found.optimiser.param_groups for p in group["params"]}
    assert owned == {id(p) for p in found.adapter.parameters()}


def test_only_the_last_pictures_are_remembered():
    replay = Replay(2, limit=5)
    for i in range(4):
        replay.add(torch.full((2, 2), float(i)))
    assert replay.rows[:, 0].tolist() == [1, 2, 2, 3, 3] and replay.rows.dtype == torch.half
    assert (
        replay.rows.untyped_storage().nbytes() == 5 * 2 * 2
    )  # nothing of what was forgotten is held


def test_it_goes_on_from_its_state_as_if_nothing_had_happened(tmp_path):
    whole, _ = taught(8)
    half, _ = taught(4)
    torch.save(half.state(), tmp_path / "state")
    torch.manual_seed(77)  # of no influence
    resumed = Discriminator(RandomFeatures(), 0)
    resumed.load(torch.load(tmp_path / "state", weights_only=True))
    for i in range(4, 8):
        resumed.step(str(i))
    for name, tensor in whole.adapter.state_dict().items():
        assert torch.equal(tensor, resumed.adapter.state_dict()[name])
    assert torch.equal(whole.drawn.rows, resumed.drawn.rows)
    assert torch.equal(whole.full.rows, resumed.full.rows)
    other, _ = taught(8, seed=1)
    assert not torch.equal(other.adapter.logit.weight, whole.adapter.logit.weight)


def test_making_and_teaching_it_leaves_the_global_random_numbers_alone():
    before = torch.random.get_rng_state()
    taught(2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("height, width", [(32, 48), (300, 256)])
def test_random_features_are_the_same_every_time(height, width):
    pictures = torch.rand(2, 3, height, width)
    found = RandomFeatures()(pictures)
    assert found.shape == (2, RandomFeatures.width) and torch.equal(
        found, RandomFeatures()(pictures)
    )
    assert not torch.allclose(found[0], found[1])


def test_features_are_clips_where_it_is_here_and_unknown_ones_are_refused(monkeypatch):
    import training.features

    def missing():
        raise ValueError("not here")

    monkeypatch.setattr(training.features, "ClipFeatures", missing)
    assert features_for("auto").name == "fixed random convolutions"
    assert features_for("judge").name == "the demo's training judge"
    with pytest.raises(ValueError, match="not here"):
        features_for("clip")
    clip = RandomFeatures()
    monkeypatch.setattr(training.features, "ClipFeatures", lambda: clip)
    assert features_for("auto") is clip
    with pytest.raises(ValueError, match="features vgg: give one of auto, clip, judge, random"):
        features_for("vgg")


class Shown:
    """A graph whose latents are pictures already."""

    def picture(self, latents):
        return latents


def reference(prompt, seed):
    return Reference(prompt, 0, sharp(1, seed), (1.0, 0.0), "euler", 1)


def scored(folder, omega, broken=0):
    """A scorer after its warm-up, a reference, and the prompts that were drawn for it. broken: of
    the four images of a prompt, those that overflowed."""
    scorer = Scorer(
        Mixture(parsed("ssim"), ["p"]),
        Pictures(Shown(), folder / "pictures"),
        Discriminator(RandomFeatures(), 0),
        omega,
        20,
    )
    drawn = []

    def draw(number):
        drawn.append(number)
        latents = blurred(4, 10 + number)
        latents[:broken, 0, 0, 0] = math.inf
        return latents, reference(str(number), 20 + number)

    scorer.warm_up(draw, PROMPTS, folder / "warm_up")
    return scorer, reference("p", 1), drawn


@pytest.mark.parametrize("omega", [0.5, 1.0])
def test_the_score_weighs_quality_and_likeness_and_stays_in_0_to_1(tmp_path, omega):
    scorer, wanted, _ = scored(tmp_path, omega)
    latents = torch.cat((sharp(1, 1), blurred(2, 5)))
    drawn = Drawn(latents, wanted, scorer.pictures)
    quality, _ = scorer.rewards(drawn)
    likeness = scorer.discriminator.likeness(scorer.discriminator.look(drawn.pictures))
    found = scorer.scores(latents, wanted)
    both = [(q + omega * float(d)) / (1 + omega) for q, d in zip(quality, likeness, strict=True)]
    assert found == pytest.approx(both)
    assert likeness[0] > 0.5 > likeness[1:].max() and 0 <= min(found) and max(found) <= 1
    assert (
        f"(q + {omega:g} d) / {1 + omega:g}" in scorer.about
        and "fixed random convolutions" in scorer.about
    )


def test_each_update_learns_once_and_logs_what_it_saw(tmp_path):
    scorer, wanted, _ = scored(tmp_path, 1.0)
    remembered = len(scorer.discriminator.drawn.rows)
    scorer.scores(blurred(3, 5), wanted)
    scorer.scores(blurred(3, 6), wanted)
    before = scorer.discriminator.adapter.logit.weight.clone()
    scalars = scorer.learn(0)
    assert len(scorer.discriminator.drawn.rows) == remembered + 6
    assert scalars.keys() == {
        "reward/ssim",
        "reward/discriminator",
        "discriminator/loss",
        "discriminator/accuracy",
    }
    assert not torch.equal(before, scorer.discriminator.adapter.logit.weight)
    assert scorer.learn(1).keys() == {
        "discriminator/loss",
        "discriminator/accuracy",
    }  # of this iteration alone


def test_the_warm_up_draws_each_prompt_once_however_often_it_is_begun(tmp_path):
    first, _, drawn = scored(tmp_path, 1.0)
    again, _, redrawn = scored(tmp_path, 1.0)
    assert drawn == list(range(PROMPTS)) and redrawn == []
    assert torch.equal(
        first.discriminator.adapter.logit.weight, again.discriminator.adapter.logit.weight
    )


def test_without_a_discriminator_the_score_is_the_quality(tmp_path):
    scorer = Scorer(Mixture(parsed("psnr"), ["p"]), Pictures(None, tmp_path))
    assert scorer.scores(sharp(1, 1), reference("p", 1)) == pytest.approx([1.0], abs=1e-3)
    assert scorer.learn(0).keys() == {"reward/psnr"} and scorer.state() == {}
    scorer.warm_up(lambda number: pytest.fail("nothing is to be drawn"), 3, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", [1, 4])
def test_the_warm_up_learns_nothing_from_images_that_overflowed(tmp_path, broken):
    scorer, wanted, _ = scored(tmp_path, 1.0, broken)
    discriminator = scorer.discriminator
    assert len(discriminator.full.rows) == PROMPTS
    assert len(discriminator.drawn.rows) == (4 - broken) * PROMPTS
    assert all(torch.isfinite(p).all() for p in discriminator.adapter.parameters())
    assert all(map(math.isfinite, scorer.scores(blurred(2, 5), wanted)))


@pytest.mark.parametrize("reward", ["psnr", "ssim"])
def test_an_image_that_overflowed_is_worth_nothing_and_nobody_learns_from_it(tmp_path, reward):
    scorer, wanted, _ = scored(tmp_path, 1.0)
    scorer.rewards = Mixture(parsed(reward), ["p"])
    latents = blurred(3, 5)
    latents[1, 0, 0, 0] = math.inf
    found = scorer.scores(latents, wanted)
    assert found[1] == 0 < min(found[0], found[2]) and scorer.seen[0][1][1].shape[0] == 2
    assert scorer.scores(torch.full_like(latents, math.nan), wanted) == [0.0] * 3
    assert all(map(math.isfinite, scorer.learn(0).values()))
    assert all(torch.isfinite(p).all() for p in scorer.discriminator.adapter.parameters())
