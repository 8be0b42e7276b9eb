"""A demo model changes its world."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from demo.demo_model import DemoModel, export
from demo.emoji import demo_model as emoji_model
from demo.switch import ask_for, switch
from demo.taesd import SCALES
from demo.weights import WeightsError
from demo.world import EMOJI, SHAPES, world_of


@pytest.fixture
def models(tmp_path):
    """A folder of models of drawn shapes."""
    (tmp_path / "vae_approx").mkdir()
    for family in SCALES:
        for part in ("decoder", "encoder"):
            source = SHAPES.decoder.with_name(SHAPES.decoder.name.replace("decoder", part))
            shutil.copyfile(source, tmp_path / "vae_approx" / f"{family}_{part}.safetensors")
    (tmp_path / "diffusion_models").mkdir()
    for kind in ("flux", "sd3", "lumina"):
        path = tmp_path / "diffusion_models" / f"{kind}.safetensors"
        export(kind, DemoModel(kind).state_dict(), path, 0)
    return tmp_path


def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_it_brings_weights_words_and_vae_and_leaves_the_others_theirs(models):
    before = bytes_of(models)
    weights = switch("flux", EMOJI, models)
    assert world_of(weights) is EMOJI and EMOJI.load_model(weights).kind == "flux"
    changed = {str(p) for p, b in bytes_of(models).items() if before.get(p) != b}
    assert changed == {
        "diffusion_models/flux.safetensors",
        "diffusion_models/flux_words.safetensors",
        "vae_approx/taef1_decoder.safetensors",
        "vae_approx/taef1_encoder.safetensors",
        "vae/lumina.safetensors",
    }
    kept = load_file(models / "vae" / "lumina.safetensors")
    for key, value in load_file(SHAPES.decoder).items():
        assert torch.equal(kept[f"taesd_decoder.{key}"], value)
    assert (float(kept["vae_scale"]), float(kept["vae_shift"])) == pytest.approx(SCALES["taef1"])


def test_a_model_that_the_world_has_not_got_changes_nothing(models, tmp_path):
    before = bytes_of(models)
    empty = replace(EMOJI, folder=tmp_path / "none")
    with pytest.raises(WeightsError, match="is missing"):
        switch("flux", empty, models)
    (tmp_path / "none" / "diffusion_models").mkdir(parents=True)
    path = tmp_path / "none" / "diffusion_models" / "flux.safetensors"
    emoji_model.export("flux", emoji_model.DemoModel("flux").state_dict(), path, 0)
    with pytest.raises(FileNotFoundError, match="taef1_decoder.safetensors.*not there"):
        switch("flux", empty, models)
    own = {p: b for p, b in bytes_of(models).items() if p.parts[0] != "none"}
    assert own == before


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
