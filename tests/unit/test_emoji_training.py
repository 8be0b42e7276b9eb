"""The emoji model's start and training: what is taken from old weights, resuming, and a latent map that fits."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from demo.emoji import scenes, train
from demo.emoji.demo_model import (
    OLD_WORDS,
    DemoModel,
    export,
    load,
    start_from_shapes,
)
from demo.emoji.latents import MAP_FILE, psnr
from demo.emoji.sprites import appearance
from demo.latents import MAP_FILE as OLD_MAP
from demo.latents import LatentMap
from demo.pack.emoji_words import OBJECT_ROWS, VOCABULARY, WIDTH, bag
from demo.weights import WeightsError
from demo.world import SHAPES, weights_of, world_of
from evaluation.subjects import guidance_of

OF_SHAPES = [k for k in ("flux", "sd3", "lumina") if world_of(weights_of(k)) is SHAPES]


def run(monkeypatch, out, pictures: int, *more: str) -> Path:
    """Train to `pictures` of 128 px, one a step."""
    arguments = [
        "train",
        "--out",
        str(out),
        "--stages",
        f"{pictures}:128",
        "--batch",
        "1",
        "--dtype",
        "float32",
    ]
    monkeypatch.setattr(sys, "argv", [*arguments, "--device", "cpu", "--pool", "64", *more])
    train.main()
    return out / "state.pt"


def test_a_training_resumes_where_it_stopped_and_exports_what_can_be_loaded(monkeypatch, tmp_path):
    state = torch.load(run(monkeypatch, tmp_path, 1), weights_only=True)
    assert (state["seen"], state["step"]) == (1, 1)
    state = torch.load(run(monkeypatch, tmp_path, 3), weights_only=True)
    assert (state["seen"], state["step"]) == (3, 3)
    model = load(tmp_path / "flux.safetensors")
    assert (model.words - state["ema"]["words"]).abs().max() < 1e-6


class Told(torch.nn.Module):
    """Gives 3 where a prompt is and 1 where none is; remembers what strengths it was told."""

    def __init__(self):
        super().__init__()
        self.strengths: list[float] = []
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, counts, guidance):
        if torch.is_grad_enabled():
            self.strengths += guidance.tolist()
        said = counts[:, :, :-1].sum((1, 2)) > 0
        value = torch.where(said, 3.0, 1.0) + 2 * (guidance - 1) * said
        return value[:, None, None, None].expand_as(x) + self.nothing


def trainer_of(model: torch.nn.Module, **more) -> train.Trainer:
    """A trainer of 64 grey pictures with one prompt."""
    arguments = {"guidance": 1.0, "drop": 0.25, "batch": 64, "object_weight": 1.0, "tokens": 1.0}
    arguments |= more
    trainer = object.__new__(train.Trainer)
    trainer.args, trainer.device = SimpleNamespace(**arguments), torch.device("cpu")
    trainer.fast, trainer.dtype, trainer.seen = model, torch.float32, 0
    trainer.teacher = None
    trainer.generator = torch.Generator().manual_seed(0)
    data, counts = torch.zeros(64, 16, 16, 16), bag(["grid blue background, big lobster left"])
    batch = data, counts.repeat(64, 1, 1), torch.zeros(64, 16, 16, dtype=torch.bool)
    trainer.pool = lambda size: SimpleNamespace(batch=lambda number: batch)
    return trainer


def test_guidance_is_taught_as_what_a_prompt_changes_at_the_strength_that_is_told():
    trainer = trainer_of(Told(), guidance=3.0)
    loss, _ = trainer.loss(128)
    told = torch.tensor(trainer.fast.strengths)
    assert told.min() == 1 and 2 < told.max() <= 3
    assert 0.4 < (told == 1).float().mean() < 0.8
    # The target is noise and what the prompt changes, 2 for each unit of strength above 1: what is left
    # of the model's answer is 3 with a prompt and 1 without one. With the noise's variance 10 and 2, of
    # which three quarters have a prompt.
    assert 7 < loss < 9


def test_a_guided_model_names_the_strength_that_it_is_to_be_told(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, 1)
    assert guidance_of(tmp_path / "flux.safetensors") == 1
    run(monkeypatch, tmp_path, 2, "--guidance", "3")
    assert guidance_of(tmp_path / "flux.safetensors") == 2


def test_a_model_that_is_told_no_strength_is_taught_no_guidance(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="--guidance: 3 given for sd3; it is 1"):
        run(monkeypatch, tmp_path, 1, "--model", "sd3", "--guidance", "3")


def test_tokens_that_are_not_seen_change_nothing_and_have_no_velocity():
    model = DemoModel("sd3")
    torch.nn.init.normal_(model.twin.final_layer.linear.weight)
    x, t = torch.randn(2, 16, 16, 16), torch.tensor([0.3, 0.8])
    counts = bag(["grid blue background, big lobster left", "flat red background, small pizza top"])
    told = torch.ones(2)
    order = torch.randperm(64).expand(2, -1)
    whole = model(x, t, counts, told)
    torch.testing.assert_close(model(x, t, counts, told, keep=order), whole, atol=1e-4, rtol=1e-4)
    keep = torch.stack([torch.arange(20), torch.arange(40, 60)])
    seen = torch.zeros(2, 64).scatter(1, keep, 1.0).view(2, 1, 8, 8)
    seen = seen.repeat_interleave(2, 2).repeat_interleave(2, 3)
    part = model(x, t, counts, told, keep=keep)
    assert ((part != 0) == (seen > 0)).all()
    elsewhere = model(x + (1 - seen) * torch.randn_like(x), t, counts, told, keep=keep)
    torch.testing.assert_close(elsewhere, part)


class Unseen(torch.nn.Module):
    """Velocity 0; remembers what it was shown."""

    def forward(self, x, t, counts, guidance, keep):
        self.keep = keep
        return torch.zeros_like(x)


def test_a_part_of_the_tokens_holds_all_objects_and_more_pictures_fit_into_a_step():
    trainer = trainer_of(Unseen(), tokens=0.5, object_weight=3.0, batch=32)
    covered = torch.zeros(64, 16, 16, dtype=torch.bool)
    covered[:, 3:9, 5:11] = True  # 4 x 4 tokens, some in part
    batch = trainer.pool(128).batch(64)[:2]
    asked = []

    def asked_for(number):
        asked.append(number)
        return *batch, covered

    trainer.pool = lambda size: SimpleNamespace(batch=asked_for)
    loss, plain = trainer.loss(128)
    keep = trainer.fast.keep
    assert asked == [64] and keep.shape == (64, 32)
    inside = {8 * row + column for row in range(1, 5) for column in range(2, 6)}
    assert all(inside <= set(tokens) for tokens in keep.tolist())
    assert all(len(set(tokens)) == 32 for tokens in keep.tolist())
    assert len({frozenset(tokens) for tokens in keep.tolist()}) > 32  # the others are at random
    assert (
        0.9 < plain < 1.1 and 0.9 < loss < 1.1
    )  # of noise on grey; nothing counts that was not seen


def test_only_an_sd3_like_model_is_trained_on_part_of_the_tokens(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, 2, "--model", "sd3", "--tokens", "0.5")
    with pytest.raises(SystemExit, match="--tokens: 0.5 given for flux"):
        run(monkeypatch, tmp_path, 3, "--tokens", "0.5")
    with pytest.raises(SystemExit, match="--tokens: 0 given for sd3; it is more than 0"):
        run(monkeypatch, tmp_path, 3, "--model", "sd3", "--tokens", "0")
    with pytest.raises(SystemExit, match="--teacher and --tokens given"):
        run(monkeypatch, tmp_path, 3, "--model", "sd3", "--tokens", "0.5", "--teacher", "x")


def test_a_teacher_is_asked_the_same_and_without_chance():
    trainer = trainer_of(Told())
    by_data, _ = trainer.loss(128)
    trainer.teacher = Told()
    by_teacher, plain = trainer.loss(128)
    assert by_data > 1 and by_teacher == plain == 0
    assert not trainer.teacher.strengths  # asked without gradients


def test_a_teacher_can_be_of_another_kind_and_is_named_when_it_is_not_there(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path / "teacher", 1)
    teacher = str(tmp_path / "teacher" / "flux.safetensors")
    out = tmp_path / "student"
    run(monkeypatch, out, 2, "--model", "sd3", "--teacher", teacher)
    assert load(out / "sd3.safetensors").kind == "sd3"
    with pytest.raises(WeightsError, match="missing.safetensors"):
        run(
            monkeypatch,
            out,
            3,
            "--model",
            "sd3",
            "--teacher",
            str(tmp_path / "missing.safetensors"),
        )
    with pytest.raises(SystemExit, match="--teacher and --guidance given"):
        run(monkeypatch, tmp_path, 1, "--teacher", teacher, "--guidance", "3")


def test_like_objects_start_with_like_words():
    table = appearance(WIDTH - OLD_WORDS)
    index = [
        VOCABULARY.index(name) - VOCABULARY.index("accordion")
        for name in ("bus", "ambulance", "lemon")
    ]
    bus, ambulance, lemon = torch.nn.functional.normalize(table[index], dim=1)
    assert bus @ ambulance > bus @ lemon + 0.2
    assert torch.equal(DemoModel().words[OBJECT_ROWS, OLD_WORDS:], table)


@pytest.mark.parametrize("kind", OF_SHAPES)
def test_a_model_started_from_shapes_already_knows_backgrounds(kind):
    latents, generator = LatentMap.load(MAP_FILE), torch.Generator().manual_seed(0)
    chosen = scenes.sample(8, generator)
    data = latents.encode(scenes.draw(chosen, 128, 128, generator))
    noise = torch.randn(data.shape, generator=generator)
    errors = []
    for started in (False, True):
        model = DemoModel(kind)
        if started:
            start_from_shapes(model, weights_of(kind), OLD_MAP)
        with torch.no_grad():
            velocity = model(
                torch.lerp(data, noise, 0.7),
                torch.full((8,), 0.7),
                bag(chosen.prompts()),
                torch.ones(8),
            )
        errors.append(float((velocity - (noise - data)).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_exported_words_name_their_vocabulary(tmp_path):
    from safetensors import safe_open

    export("flux", DemoModel().state_dict(), tmp_path / "flux.safetensors", seen=7)
    with safe_open(tmp_path / "flux_words.safetensors", framework="pt") as file:
        assert tuple(json.loads(file.metadata()["vocabulary"])) == VOCABULARY


def test_the_latent_map_loses_little():
    mean, worst = psnr(LatentMap.load(MAP_FILE), 128, number=16)
    assert mean > 28 and worst > 23


def test_weights_that_are_missing_truncated_or_of_another_world_are_named(tmp_path):
    file = tmp_path / "flux.safetensors"
    with pytest.raises(
        WeightsError,
        match=r"flux.safetensors, a demo model: .*flux_words.safetensors is missing.*restore both",
    ):
        load(file)
    export("flux", DemoModel().state_dict(), file, seen=0)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        load(file)
    for kind in OF_SHAPES:
        with pytest.raises(
            WeightsError,
            match=rf"of a {kind} model of the world shapes, accepted is one of flux, sd3, lumina of the",
        ):
            load(weights_of(kind))
