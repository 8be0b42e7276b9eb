"""Worlds of demo models: found by their files, and the same in every respect that others rely on."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo import demo_model, world
from demo.demo_model import DemoModel
from demo.emoji import demo_model as emoji_model
from demo.latents import LatentMap
from demo.pack.word_table import WordTableError
from demo.scene_judge import SceneJudge
from demo.taesd import Decoder, load_decoder
from demo.weights import WeightsError
from demo.world import EMOJI, SHAPES, WORLDS, weights_of, world_of, world_of_prompts

# Before there were worlds.
EXPECTED = {
    "test": [
        "noise purple background, big blue striped circle top right",
        "flat yellow background, big purple plain ring bottom",
    ],
    "dev": ["noise purple background, big blue striped cross top right"],
}
by_name = pytest.mark.parametrize("one", WORLDS, ids=lambda one: one.name)


def test_a_model_is_of_the_world_whose_words_its_table_has(tmp_path):
    path = tmp_path / "flux.safetensors"
    demo_model.export("flux", DemoModel("flux").state_dict(), path, 0)
    assert world_of(path) is SHAPES
    emoji_model.export("flux", emoji_model.DemoModel("flux").state_dict(), path, 0)
    assert world_of(path) is EMOJI
    path.with_name("flux_words.safetensors").unlink()
    with pytest.raises(WordTableError, match="flux_words.safetensors is missing"):
        world_of(path)


def test_every_shipped_model_has_a_world_and_is_loaded_by_it():
    kinds = [
        p.stem for p in weights_of("flux").parent.glob("*.safetensors") if "_words" not in p.stem
    ]
    assert {"flux", "sd3", "lumina", "lumina_next"} <= set(kinds)
    for kind in kinds:
        own = world_of(weights_of(kind))
        assert own.load_model(weights_of(kind)).kind == kind
        assert own.bag([own.language.example]).shape[1] == own.language.tokens


@by_name
def test_prompts_are_read_back_as_their_scenes_and_tell_their_world(one):
    for split in world.SPLITS:
        chosen = one.prompts(70, split)
        texts = chosen.prompts()
        assert len(texts) == len(chosen) == 70 and one.prompts(9, split).prompts() == texts[:9]
        assert one.read(texts).prompts() == texts
        assert world_of_prompts(texts) is one


def test_prompts_of_no_world_are_answered_by_all():
    with pytest.raises(
        ValueError, match=r"shapes: 'a cat' is not a prompt.*emoji: .*no background"
    ):
        world_of_prompts(["a cat"])
    with pytest.raises(ValueError, match="an empty prompt describes no scene"):
        EMOJI.read([""])


@by_name
def test_its_judge_sees_what_true_scenes_show_and_not_what_others_do(one):
    judge = SceneJudge(one, one.prompts(24), one.load_judge(one.judge))
    pictures = one.draw(judge.scenes, 128, 128, torch.Generator().manual_seed(0))
    named = [judge.right(picture, number) for number, picture in enumerate(pictures)]
    assert sum(right for right, _ in named) >= 0.97 * sum(number for _, number in named)
    wrong = [judge.right(picture, number) for number, picture in enumerate(pictures.roll(1, 0))]
    assert sum(right for right, _ in wrong) < 0.5 * sum(number for _, number in wrong)
    assert judge.features(pictures[0]).shape[0] == 9
    sure = one.confidence(judge.network, pictures, judge.scenes)
    assert sure.mean() > 0.8
    assert one.confidence(judge.network, pictures.roll(1, 0), judge.scenes).mean() < 0.5
    figures = one.score(pictures, judge.scenes, judge.network)
    assert figures["pictures"] == 24 and figures["background"] == 1.0
    assert judge.true_features(64).shape == (3 * 24 * 9, judge.features(pictures[0]).shape[1])


def test_the_shapes_prompts_are_those_that_their_results_were_measured_on():
    assert SHAPES.prompts(2).prompts() == EXPECTED["test"]
    assert SHAPES.prompts(1, "dev").prompts() == EXPECTED["dev"]


@by_name
def test_its_latent_map_and_its_decoder_undo_one_another(one):
    pictures = one.draw(one.prompts(2), 128, 128, torch.Generator().manual_seed(0))
    drawn = one.load_decoder()(one.latents().encode(pictures)).clamp(0, 1)
    assert (drawn - pictures).square().mean() < 10**-2.6


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "flux.safetensors"
    with pytest.raises(WeightsError, match="cannot be read: it is missing, cut off or no weights"):
        load_decoder(path)
    with pytest.raises(WeightsError, match="a latent map, cannot be read"):
        LatentMap.load(path)
    state = Decoder().state_dict()
    state["1.weight"] = state["1.weight"][:, :4].contiguous()
    save_file(state, path)
    with pytest.raises(
        WeightsError,
        match=r"is not a TAESD decoder of 16 channels: 1.weight is \(64, 4, 3, 3\), \(64, 16, 3, 3\) accepted",
    ):
        load_decoder(path)
    with pytest.raises(WeightsError, match="is no latent map of 16 channels"):
        LatentMap.load(path)


@pytest.mark.parametrize(("one", "model"), [(SHAPES, demo_model), (EMOJI, emoji_model)])
def test_a_model_of_another_channel_count_or_cut_off_is_named(one, model, tmp_path):
    path = tmp_path / "flux.safetensors"
    model.export("flux", model.DemoModel("flux").state_dict(), path, 0)
    tensors = load_file(path)
    small = {**tensors, "img_in.weight": tensors["img_in.weight"][:, :16].contiguous()}
    save_file(small, path)
    accepted = r"img_in.weight is \(256, 16\), \(256, 64\) accepted"
    with pytest.raises(WeightsError, match=f"is not a flux-like demo model: twin.{accepted}"):
        one.load_model(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="the weights of a flux-like demo model, cannot be read"):
        one.load_model(path)
    path.unlink()
    with pytest.raises(WeightsError, match="is missing, cut off or no weights file"):
        one.load_model(path)


def test_a_model_of_the_other_world_is_refused_with_the_way_to_take_the_right_one(tmp_path):
    path = tmp_path / "flux.safetensors"
    emoji_model.export("flux", emoji_model.DemoModel("flux").state_dict(), path, 0)
    with pytest.raises(
        WeightsError, match="of the world emoji, accepted is one of .* world shapes.*world_of"
    ):
        SHAPES.load_model(path)
