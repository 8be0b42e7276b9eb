"""Flags and prompts file of `training/train_policy.py`: what makes no sense is refused before
ComfyUI starts."""

import json
import math
import shlex
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from rapid_core.calibration.search import clearly_better
from training.config import TrainConfig, field_docs, parse, parser
from training.graph import Graph
from training.job import Job
from training.references import reference
from training.state import open_state
from training.train_policy import host_flags, read_prompts

BASE = ["--workflow", "a.json", "--prompts", "p.txt", "--out", "name"]
# Command lines in cards, docs and scripts have these: none may go.
FLAGS = """
    --workflow --prompts --out --policies --state --comfyui --host-arguments --sampler --text --kind
    --speedups --calibration --held-out --longest-gap --plans --start --oracle --target --heads
    --sparse-backend --mode --advantages --train-prompts --iterations --prompts-per-update --group --lr --kl --reward
    --omega --discriminator-warm-up --features --discount --width --seed --patience --licence
    --quick
""".split()


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has 0 prompts; 3 are needed"),
        ("\n  \n", "has 0 prompts"),
        ("a\n\nb\n", "has 2 prompts; 3 are needed"),
    ],
)
def test_too_few_prompts_are_counted(tmp_path, text, said):
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(SystemExit, match=said):
        read_prompts(tmp_path / "prompts.txt", 3)


def test_prompts_are_lines_whatever_the_editor_put_before_them(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\r\n\r\n  a dog \n".encode())
    assert read_prompts(tmp_path / "prompts.txt", 2) == ["a cat", "a dog"]


def test_prompts_that_are_not_there_or_no_text_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"prompts\.txt: No such file"):
        read_prompts(tmp_path / "prompts.txt", 1)
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(SystemExit, match="is not UTF-8 text"):
        read_prompts(tmp_path / "prompts.txt", 1)


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--speedups 3 2", "give rising numbers above 1"),
        ("--speedups 2 2", "give rising numbers above 1"),
        ("--speedups 1", "give rising numbers above 1"),
        ("--calibration 0", "--calibration 0: give 1 or more"),
        ("--longest-gap 0", "--longest-gap 0: give 1 or more"),
        ("--plans -1", "--plans 0 or more"),
        ("--start a.safetensors", "--start is what rapid. begins with; --kind schedule needs none"),
        ("--kind rapid3 --start a.safetensors", "begins with; --kind rapid3 needs none"),
        (
            "--kind rapid3 --mode average",
            "--mode average is of rapid.; --kind rapid3 has no budgets",
        ),
        ("--kind rapid3 --heads pace", "rapid3 has step, cache and sparse"),
        ("--kind rapid+ --heads cache", "name pace, too"),
        (
            "--kind rapid+ --speedups 3",
            "the pace head chooses among the schedules of several speed-ups; give --speedups",
        ),
        ("--kind rapid3 --group 1", "--group must be 2 or more"),
        ("--kind rapid3 --discount 1", "--discount between 0 and 1"),
        ("--reward beauty", "--reward: "),
        ("--kind rapid3 --omega -1", "--omega and --discriminator-warm-up must be 0 or more"),
        ("--train-prompts 0", "--train-prompts 0: give 1 or more"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, said):
    with pytest.raises(SystemExit, match=said):
        parse([*BASE, *flags.split()])


@pytest.mark.parametrize(
    "flags, needed",
    [
        ("--kind rapid3 --held-out 8", 9),
        ("--kind rapid3 --held-out 8 --train-prompts 24", 32),
        ("--kind rapid+ --held-out 8 --calibration 16", 32),
        ("--kind rapid+ --held-out 8 --calibration 16 --train-prompts 30", 38),
        ("--kind rapid+ --held-out 8 --train-prompts 30 --start a.safetensors", 38),
        ("--kind schedule --held-out 8 --calibration 16 --train-prompts 30", 24),
    ],
)
def test_as_many_prompts_are_needed_as_are_learned_and_measured_on(flags, needed):
    assert parse([*BASE, *flags.split()]).prompts_needed == needed


def test_quick_is_a_few_of_everything():
    config = parse([*BASE, "--kind", "rapid3", "--quick"])
    assert config.train_prompts == 2 and config.iterations == 2
    assert config.heads == ("step", "cache", "sparse")


def test_all_flags_are_there_and_each_says_what_it_is():
    """A flag is a field, and what is written below the field is its help."""
    actions = {a.option_strings[-1]: a for a in parser()._actions if a.dest != "help"}
    assert sorted(actions) == sorted(FLAGS)
    assert all(action.help for action in actions.values())
    assert sorted(field_docs(TrainConfig)) == sorted(f.name for f in fields(TrainConfig))
    assert "--held-out HELD_OUT" in parser().format_help()


def test_settings_stay_as_they_were_given():
    config = parse(BASE)
    with pytest.raises(FrozenInstanceError):
        config.seed = 1
    assert config.resolved() == config
    assert parse([*BASE, "--quick"]).resolved().speedups == (2.0,)


@pytest.mark.parametrize("kind", ["schedule", "threshold", "rapid3", "rapid+"])
def test_the_command_on_a_card_says_all_that_decides_the_result(kind):
    """Given again, it is the same training; folders and what is about this machine are not in
    it."""
    flags = "--speedups 2 3 --seed 7 --calibration 5".split()
    given = parse(
        [*BASE, "--kind", kind, *flags, "--comfyui", "/here", "--text", "1.text", "2.text"]
    )
    script, *words = shlex.split(given.command)
    assert script == "training/train_policy.py" and "/here" not in words
    again = parse(["--prompts", "p.txt", "--out", "name", *words])
    assert again.command == given.command and again.state_settings == given.state_settings
    assert again.text == ("1.text", "2.text") and again.seed == 7
    assert ("--plans" in words) == (kind in ("schedule", "rapid+"))
    assert ("--lr" in words) == (kind in ("rapid3", "rapid+"))


def test_an_older_word_for_the_full_run_is_understood():
    assert parse([*BASE, "--target", "dense"]) == parse([*BASE, "--target", "full"])


def test_the_state_of_an_older_script_is_not_gone_on_with(tmp_path):
    open_state(tmp_path, {}, [], {"seed": 0})
    open_state(tmp_path, {}, [], {"seed": 0})
    with pytest.raises(ValueError, match="training with other seed"):
        open_state(tmp_path, {}, [], {"seed": 1})
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text())
    del settings["version"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="by another version of this script.*delete it"):
        open_state(tmp_path, {}, [], {"seed": 0})


class OneModel:
    """A workflow of which nothing is looked at but its model."""

    model = "flux"

    def own_nodes(self, pictures):
        return {}


def test_the_state_of_other_weights_in_the_same_file_is_not_gone_on_with(tmp_path, monkeypatch):
    """A model that was trained further and saved again draws other pictures."""
    job = Job(OneModel(), ["a"], parse(BASE), tmp_path, tmp_path / "a.safetensors")
    weights = {"weights": "0" * 16}
    monkeypatch.setattr("training.job.weights_of", lambda model: weights)
    job.open_state(["a"])
    job.open_state(["a"])
    weights = {"weights": "f" * 16}
    with pytest.raises(ValueError, match="training with other weights; give another --state"):
        job.open_state(["a"])


class Overflowing:
    """A workflow whose model gives no numbers."""

    def sample(self, prompt, seed, patch):
        return torch.full((1, 4, 2, 2), math.nan)


def test_a_reference_that_overflowed_is_named_and_nothing_is_compared_with_it(tmp_path):
    with pytest.raises(ValueError, match="'a cat' .* not finite"):
        reference(Overflowing(), "a cat", 5, tmp_path, euler=False)
    assert list(tmp_path.iterdir()) == []


def lumina_next(folder):
    """A workflow whose model is loaded by a node of this pack, in API form."""
    return {
        "load": {"class_type": "RAPID_LoadLuminaNext", "inputs": {"model": folder}},
        "speed": {"class_type": "RAPID_Accelerate", "inputs": {"model": ["load", 0], "speedup": 2}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["clip", 0]}},
        "clip": {"class_type": "CLIPLoader", "inputs": {}},
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 512}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["speed", 0],
                "positive": ["text", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
            },
        },
    }


def test_a_node_of_this_pack_that_loads_a_model_decides_what_is_drawn():
    one, other = (Graph(lumina_next(folder)).own_nodes() for folder in ("2b", "tuned"))
    assert one != other and "load" in one and "speed" not in one


def test_prompts_that_are_there_twice_count_once(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a\nb\na\u2028c\na\n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt", 3) == ["a", "b", "a\u2028c"]
    assert "1 of 4 prompts are there twice" in capsys.readouterr().out


def test_flags_that_comfyui_obeys_only_as_a_server_are_refused():
    assert host_flags('--lowvram --base-directory "/a b"') == [
        "--lowvram",
        "--base-directory",
        "/a b",
    ]
    with pytest.raises(
        SystemExit, match="--cuda-device would do nothing here.*CUDA_VISIBLE_DEVICES"
    ):
        host_flags("--cuda-device 1")


def test_a_schedule_is_better_than_another_where_that_is_no_chance():
    assert clearly_better([51.0, 42.0, 46.1], [50.0, 41.0, 45.0])
    assert not clearly_better([55.0, 41.0, 45.0], [50.0, 41.0, 45.0])
    assert not clearly_better([50.0, 41.0], [50.0, 41.0])
    assert not clearly_better([50.0], [40.0])
