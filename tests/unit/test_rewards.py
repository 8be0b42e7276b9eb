"""Rewards: the paper's discount and its trap, each reward's range, mixtures, and what is said of
missing packages."""

import importlib
import json
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demo.world import WORLDS
from training.pictures import Drawn, Pictures
from training.references import Reference
from training.rewards import REWARDS, Mixture, discount, discounted, parsed
from training.rewards.judged import Agreement, Judged, Preference
from training.rewards.likeness import Decibels, Fidelity, Perceptual, Similarity

SCENE = "flat red background, big blue plain circle top left, small white plain cross right"


@given(st.integers(1, 40), st.floats(0.5, 0.99))
def test_the_discount_is_the_mean_of_its_powers(steps, rate):
    assert discount(steps, rate) == pytest.approx(
        sum(rate ** (steps - k) for k in range(1, steps + 1)) / steps
    )


@given(st.floats(0.01, 1.0), st.floats(1.0, 28.0), st.floats(1.0, 28.0))
def test_of_equal_pictures_the_cheaper_one_is_worth_more(quality, one, other):
    a, b = discounted([quality, quality], [one, other], 0.97)
    assert a == pytest.approx(b) if one == pytest.approx(other) else (a > b) == (one < other)


def test_quality_below_nothing_is_refused():
    """Discounting would make it better the more a bad picture costs."""
    with pytest.raises(ValueError, match="quality -0.3 is below 0"):
        discounted([0.5, -0.3], [10.0, 10.0], 0.97)


class Shown:
    """A graph whose latents are pictures already."""

    def picture(self, latents):
        return latents.clamp(0, 1)


def drawn(folder, latents, wanted, prompt=SCENE):
    reference = Reference(prompt, 0, wanted, (1.0, 0.0), "euler", 1)
    return Drawn(latents, reference, Pictures(Shown(), folder))


def worse(wanted, scales):
    """A picture with noise of each of these strengths."""
    noise = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([wanted + scale * noise for scale in scales])


def picture(size=64):
    return torch.linspace(0, 1, 3 * size * size).view(1, 3, size, size)


@pytest.fixture
def squeeze(monkeypatch, tmp_path):
    """Random weights where torchvision keeps those of SqueezeNet, the smallest of LPIPS's
    networks."""
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = tmp_path / "hub" / "checkpoints" / SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(squeezenet1_1().state_dict(), path)


@pytest.mark.parametrize("make", [Decibels, Fidelity, Similarity, lambda: Perceptual("squeeze")])
def test_likeness_is_one_for_the_dense_picture_and_falls_with_noise_but_not_below_nothing(
    make, tmp_path, squeeze
):
    latents = worse(picture(), [0.0, 0.01, 0.1, 10.0])
    found = make()(drawn(tmp_path, latents, picture()))
    assert found == sorted(found, reverse=True) and found[0] > 0.99 and 0 <= found[-1] < found[1]
    assert len(set(found)) == 4


def test_what_a_preference_model_gives_is_mapped_to_0_to_1_and_keeps_its_order(
    tmp_path, monkeypatch
):
    """ImageReward's figures are often negative. Of the package only its way to be called is known
    here."""
    package = ModuleType("ImageReward")
    package.__spec__ = ModuleSpec("ImageReward", None)
    asked = []

    def score(prompt, image):
        asked.append((prompt, image.size))
        return 4 * image.getpixel((0, 0))[0] / 255 - 2

    package.load = lambda name, device: SimpleNamespace(score=score)
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    latents = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 12)
    found = Preference()(drawn(tmp_path, latents, latents[:1]))
    assert found == pytest.approx([1 / (1 + math.exp(-s)) for s in (-2, 0, 2)], abs=0.01)
    assert asked == [(SCENE, (12, 8))] * 3


def test_clip_scores_lie_in_0_to_1_and_follow_picture_and_prompt(tmp_path):
    """A CLIP of toy size with random weights, saved as public ones are."""
    transformers = pytest.importorskip("transformers")
    from training.clip import Clip

    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghij", *(c + "</w>" for c in "abcdefghij")]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    ).save_pretrained(tmp_path)
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(words),
            "max_position_embeddings": 8,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    clip = Clip("a test", str(tmp_path))
    pictures = torch.rand(3, 3, 20, 31)
    assert clip.pictures(pictures).shape == (3, 12)
    assert (
        torch.allclose(clip.pictures(pictures).norm(dim=1), torch.ones(3))
        and not clip.model.training
    )
    assert clip.text("a b c d e f g h i j a b c").shape == (1, 12)
    cosines = []
    for prompt in ("a b", "h j", "a b", "h j"):
        if len(cosines) == 6:
            clip.model.visual_projection.weight.neg_()  # so that there are angles on both sides
        found = Agreement(clip)(drawn(tmp_path, pictures, pictures[:1], prompt))
        cosine = clip.pictures(pictures.half().float()) @ clip.text(prompt)[0]
        assert found == pytest.approx((2.5 * cosine).clamp(0, 1).tolist(), abs=1e-5)
        cosines += cosine.tolist()
    assert (
        min(cosines) < 0 < max(cosines)
        and len({round(c, 6) for c in cosines}) == 12
        and max(found) > 0
    )


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_judge_prefers_pictures_of_the_prompt(world, tmp_path):
    chosen = world.sample(4, torch.Generator().manual_seed(5), "train")
    pictures = world.draw(chosen, 128, 128, torch.Generator().manual_seed(6))
    for row, prompt in enumerate(chosen.prompts()):
        shown = torch.stack((pictures[row], pictures[row - 1], torch.full((3, 128, 128), 0.5)))
        found = Judged()(drawn(tmp_path, shown, pictures[:1], prompt))
        assert 0 <= min(found) and max(found) <= 1 and found[0] > 0.8
        if chosen.count[row]:
            assert found[0] > found[1] and found[0] > found[2]


def test_prompts_that_the_judge_cannot_read_are_refused_at_once():
    with pytest.raises(
        ValueError, match="reward judge: shapes: 'a cat' is not a prompt of the demo's scenes"
    ):
        Mixture(parsed("judge"), [SCENE, "a cat"])


@pytest.mark.parametrize(
    "reward, missing, said",
    [
        (
            "ssim",
            "torchmetrics",
            "reward ssim needs the package torchmetrics, .*pip install torchmetrics",
        ),
        ("lpips", "torchmetrics", "pip install torchmetrics"),
        ("lpips", "torchvision", "pip install torchvision"),
        (
            "imagereward",
            "ImageReward",
            "reward imagereward needs the package image-reward, .*pip install image-reward",
        ),
        (
            "clip",
            "transformers",
            "reward clip needs the package transformers, .*pip install transformers",
        ),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    reward, missing, said, monkeypatch
):
    for name in [n for n in sys.modules if n.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    with pytest.raises(ValueError, match=said):
        REWARDS[reward]()


def test_missing_weights_are_named_with_the_command_that_fetches_them(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="import AlexNet_Weights as w; w.DEFAULT.get_state_dict"):
        REWARDS["lpips"]()


def test_a_package_that_is_there_but_broken_says_why(monkeypatch):
    package = ModuleType("ImageReward")
    package.__spec__ = ModuleSpec("ImageReward", None)
    monkeypatch.setitem(sys.modules, "ImageReward", package)

    def broken(name):
        raise ImportError("cannot import name apply_chunking_to_forward")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        ValueError,
        match="image-reward is installed, but cannot be imported: cannot import name apply",
    ):
        REWARDS["imagereward"]()


@given(st.dictionaries(st.sampled_from(sorted(REWARDS)), st.floats(0.01, 100), min_size=1))
def test_weights_of_a_mixture_are_shares_of_their_sum(weights):
    found = parsed([f"{name}:{weight}" for name, weight in weights.items()])
    assert sum(found.values()) == pytest.approx(1.0)
    assert found == pytest.approx(
        {name: weight / sum(weights.values()) for name, weight in weights.items()}
    )


def test_a_name_alone_weighs_one():
    assert parsed(["psnr", "judge:0.5"]) == pytest.approx({"psnr": 2 / 3, "judge": 1 / 3})
    assert parsed("psnr") == {"psnr": 1.0}


@pytest.mark.parametrize(
    "given, said",
    [
        (
            ["beauty"],
            "reward beauty: give each of psnr, decibels, ssim, lpips, imagereward, clip, judge at most once",
        ),
        (["psnr", "psnr:2"], "reward psnr:2: give each of"),
        (["psnr:0"], "reward psnr:0: the weight must be a number above 0"),
        (["psnr:much"], "the weight must be a number above 0, as in psnr:0.5"),
        (["psnr:-1"], "above 0"),
        (["psnr:nan"], "above 0"),
        (["psnr:inf"], "above 0"),
        ([], "no reward given"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        parsed(given)


def test_a_mixture_is_the_weighted_mean_and_says_what_it_is(tmp_path):
    mixture = Mixture(parsed(["psnr:3", "ssim"]), [SCENE])
    total, columns = mixture(drawn(tmp_path, worse(picture(), [0.01, 0.1]), picture()))
    assert columns.keys() == {"psnr", "ssim"} and columns["psnr"] != columns["ssim"]
    assert total == pytest.approx(
        [0.75 * p + 0.25 * s for p, s in zip(columns["psnr"], columns["ssim"], strict=True)]
    )
    assert mixture.about == (
        "0.75 sigmoid((PSNR of the latent to the reference's - 40 dB) / 6) + "
        "0.25 max(0, SSIM to the reference picture)"
    )


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_a_reward_outside_of_0_to_1_is_refused(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(Fidelity, "__call__", lambda self, drawn: [0.5, wrong])
    with pytest.raises(ValueError, match="reward psnr: .* has to lie in 0 .. 1"):
        Mixture(parsed("psnr"), [SCENE])(drawn(tmp_path, picture(), picture()))


def test_frames_of_a_video_count_alike(tmp_path):
    class Frames(Shown):
        def picture(self, latents):
            return latents.movedim(2, 1).flatten(0, 1).clamp(0, 1)

    wanted = picture().unsqueeze(2).repeat(1, 1, 2, 1, 1)
    latents = wanted.repeat(2, 1, 1, 1, 1)
    latents[1, :, 1] += 0.1 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    reference = Reference(SCENE, 0, wanted, (1.0, 0.0), "euler", 1)
    video = Similarity()(Drawn(latents, reference, Pictures(Frames(), tmp_path)))
    still = Similarity()(drawn(tmp_path / "still", latents[1:, :, 1], picture()))
    assert video == pytest.approx([1.0, (1 + still[0]) / 2], abs=1e-4)
