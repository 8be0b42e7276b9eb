"""The Lumina-Next-like demo model's start and training."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from demo import from_lumina, scenes, train
from demo.demo_model import DemoModel, load_weights
from demo.latents import LatentMap
from demo.pack.words import bag
from demo.twins.lumina_next import SIZE
from rapid_core.comfy.lumina_next.config import LuminaNextConfig, config_of


def start(monkeypatch, out: Path, *flags: str) -> DemoModel:
    """The model that `demo.from_lumina` writes."""
    monkeypatch.setattr(sys, "argv", ["from_lumina", "--out", str(out), *flags])
    from_lumina.main()
    model = DemoModel("lumina_next")
    load_weights(model, out / "lumina_next.safetensors")
    return model


def run(monkeypatch, out: Path, pictures: int) -> dict:
    """The state of a training of so many pictures of 128 px, one a step."""
    arguments = ["train", "--model", "lumina_next", "--out", str(out), "--batch", "1"]
    arguments += ["--stages", f"{pictures}:128", "--dtype", "float32", "--pool", "64"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--device", "cpu"])
    train.main()
    return torch.load(out / "state.pt", weights_only=True)


def error(model: DemoModel) -> float:
    """Mean square of the velocity's error on scenes of 256 px that are half noise."""
    generator = torch.Generator().manual_seed(0)
    chosen = scenes.sample(4, generator)
    data = LatentMap.load().encode(scenes.draw(chosen, 256, 256, generator))
    noise = torch.randn(data.shape, generator=generator)
    with torch.no_grad():
        velocity = model(
            torch.lerp(data, noise, 0.5),
            torch.full((4,), 0.5),
            bag(chosen.prompts()),
            torch.ones(4),
        )
    return float((velocity - (noise - data)).square().mean())


def test_a_model_started_from_luminas_already_knows_pictures(monkeypatch, tmp_path):
    model = start(monkeypatch, tmp_path)
    assert error(model) < 0.2 * error(DemoModel("lumina_next"))


def test_every_channel_of_a_head_comes_from_another_one():
    assert sorted(from_lumina.order().tolist()) == list(range(SIZE.head_size))


def test_a_start_from_other_weights_than_luminas_is_refused(monkeypatch, tmp_path):
    flux = from_lumina.LUMINA.with_name("flux.safetensors")
    with pytest.raises(SystemExit, match=r"flux.safetensors.*not the Lumina-like.*lumina.safeten"):
        start(monkeypatch, tmp_path, "--lumina", str(flux))


def test_a_training_resumes_where_it_stopped_and_exports_what_can_be_loaded(monkeypatch, tmp_path):
    state = run(monkeypatch, tmp_path, 1)
    assert (state["seen"], state["step"]) == (1, 1)
    first = state["model"]["twin.layers.3.attn1.to_q.weight"]
    state = run(monkeypatch, tmp_path, 3)
    assert (state["seen"], state["step"]) == (3, 3)
    assert not torch.equal(first, state["model"]["twin.layers.3.attn1.to_q.weight"])
    model = DemoModel("lumina_next")
    load_weights(model, tmp_path / "lumina_next.safetensors")
    assert (model.words - state["ema"]["words"]).abs().max() < 1e-6


def test_scales_and_gates_are_not_trained_as_matrices_of_blocks():
    model = DemoModel("lumina_next")
    muon, adam = train.optimisers(model, 1e-3)
    sizes = {tuple(p.shape) for p in muon.param_groups[0]["params"]}
    assert (SIZE.hidden_size, SIZE.hidden_size) in sizes
    assert (4 * SIZE.hidden_size, SIZE.hidden_size) not in sizes
    both = sum(len(o.param_groups[0]["params"]) for o in (muon, adam))
    assert both == len(list(model.parameters()))


def test_a_file_says_what_its_weights_do_not_show(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, 1)
    with safe_open(tmp_path / "lumina_next.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["lumina_next"])
        shown = config_of({name: file.get_tensor(name) for name in file.keys()}, {})  # noqa: SIM118
    assert LuminaNextConfig(**told) == SIZE
    assert {**told, "sample_size": 128} == vars(shown)
