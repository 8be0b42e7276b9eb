"""A demo model changes its world."""

import json
from dataclasses import replace

import pytest

from demo.demo_model import DemoModel, export
from demo.switch import ask_for, switch
from demo.weights import WeightsError
from demo.world import EMOJI, SHAPES, world_of
from rapid_testing.worlds import emoji_world


@pytest.fixture
def models(tmp_path):
    """A folder of models of drawn shapes, without VAEs."""
    folder = tmp_path / "models"
    for name in ("diffusion_models", "vae_approx"):
        (folder / name).mkdir(parents=True)
    for kind in ("flux", "sd3", "lumina"):
        path = folder / "diffusion_models" / f"{kind}.safetensors"
        export(kind, DemoModel(kind).state_dict(), path, 0)
    return folder


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_it_brings_weights_words_and_vae_and_leaves_the_others_theirs(models, tmp_path):
    before = bytes_of(models)
    weights = switch("flux", emoji_world(tmp_path / "emoji"), models)
    assert world_of(weights) is EMOJI and EMOJI.load_model(weights).kind == "flux"
    assert {name for name, data in bytes_of(models).items() if before.get(name) != data} == {
        "diffusion_models/flux.safetensors",
        "diffusion_models/flux_words.safetensors",
        "vae_approx/taef1_decoder.safetensors",
        "vae_approx/taef1_encoder.safetensors",
    }
    decoder = models / "vae_approx" / "taef1_decoder.safetensors"
    assert decoder.read_bytes() == EMOJI.decoder.read_bytes()


def test_a_model_that_the_world_has_not_got_changes_nothing(models, tmp_path):
    before = bytes_of(models)
    with pytest.raises(WeightsError, match="is missing"):
        switch("flux", replace(EMOJI, folder=tmp_path / "none"), models)
    world = emoji_world(tmp_path / "emoji")
    world = replace(world, decoder=tmp_path / "some_decoder.safetensors")
    with pytest.raises(FileNotFoundError, match="some_decoder.safetensors.*not there"):
        switch("flux", world, models)
    assert bytes_of(models) == before


def test_the_examples_of_the_model_and_no_other_ask_for_what_it_knows(tmp_path):
    nodes = {
        "positive": {
            "class_type": "RAPIDDemoPrompt",
            "inputs": {"text": SHAPES.language.example, "model": "flux"},
        },
        "negative": {"class_type": "RAPIDDemoPrompt", "inputs": {"text": "", "model": "flux"}},
        "guidance": {"class_type": "FluxGuidance", "inputs": {"guidance": 1.0}},
    }
    other = json.loads(json.dumps(nodes).replace("flux", "sd3"))
    (tmp_path / "demo_flux.json").write_text(json.dumps(nodes))
    (tmp_path / "demo_sd3.json").write_text(json.dumps(other))
    assert ask_for("flux", EMOJI, 2.0, tmp_path) == ["demo_flux.json"]
    found = json.loads((tmp_path / "demo_flux.json").read_text())
    assert found["positive"]["inputs"]["text"] == EMOJI.language.example
    assert found["negative"]["inputs"]["text"] == ""
    assert json.loads((tmp_path / "demo_sd3.json").read_text()) == other
    assert found["guidance"]["inputs"]["guidance"] == 2
    kept = json.loads((tmp_path / "demo_sd3.json").read_text())
    assert kept["guidance"]["inputs"]["guidance"] == 1
