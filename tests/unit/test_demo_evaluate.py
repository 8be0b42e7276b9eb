"""Evaluation of a demo model takes everything from the model's world."""

import json
import sys

import pytest

from demo import evaluate
from demo.world import EMOJI, SHAPES, weights_of, world_of

CASES = {}
for kind in ("flux", "sd3", "lumina"):
    world = world_of(weights_of(kind))
    CASES.setdefault(world.name, (world, kind, weights_of(kind)))


def run(monkeypatch, out, *flags):
    """The figures of two prompts of 64 px in two steps."""
    small = ["--prompts", "2", "--size", "64", "--steps", "2", "--ode", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *small, "--json", str(out), *flags])
    evaluate.main()
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", CASES)
def test_it_says_which_world_was_judged_and_by_which_judges(name, monkeypatch, tmp_path):
    monkeypatch.setattr(
        evaluate, "heun", lambda velocity, x, steps: evaluate.euler(velocity, x, velocity.counts, 2)
    )
    world, kind, weights = CASES[name]
    flags = ("--weights", str(weights), "--fid", str(world.judge_training))
    found = run(monkeypatch, tmp_path / "out.json", *flags)
    assert (found["settings"]["world"], found["settings"]["model"]) == (name, kind)
    assert found["settings"]["judge"] == "judge.safetensors"
    assert found["model"]["pictures"] == found["true_scenes"]["pictures"] == 2
    assert found["fid"] > 0 and len(found["velocity_change"]) == 1
    assert found["psnr_to_ode"]["worst"] > 60  # of the same steps here
    linear = run(monkeypatch, tmp_path / "linear.json", *flags[:2], "--decoder", "linear")
    assert linear["velocity_change"] == found["velocity_change"] and "fid" not in linear


def test_weights_of_another_kind_than_named_are_refused(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="--model sd3: .*flux.safetensors is a flux-like model"):
        run(
            monkeypatch,
            tmp_path / "out.json",
            "--weights",
            str(weights_of("flux")),
            "--model",
            "sd3",
        )


@pytest.mark.parametrize("world", [SHAPES, EMOJI], ids=lambda world: world.name)
def test_the_judge_that_trains_is_another_network_than_the_judge_that_scores(world):
    scoring, training = (world.load_judge(p) for p in (world.judge, world.judge_training))
    assert world.judge != world.judge_training
    assert training.head.in_features != scoring.head.in_features
