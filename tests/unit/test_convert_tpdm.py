"""TPDM's published weights become a policy file that decides as TPDM does."""

import hashlib
import json
import sys
from functools import cache

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from rapid_core.engine.tap import FeatureStore
from rapid_core.policy_file.format import read
from rapid_core.policy_file.heads import tpdm_of
from rapid_core.policy_file.policies import policy_of
from rapid_core.techniques.heads.tpdm import TPDMPolicy
from rapid_core.types import HeadInput, Window
from training.convert_tpdm import ConversionError, convert, main

# The published layout: names below the prefix, and shapes.
LAYOUT = {
    "conv1.weight": (128, 3072, 3, 3),
    "conv1.bias": (128,),
    "conv2.weight": (128, 128, 3, 3),
    "conv2.bias": (128,),
    "fc1.weight": (128, 128),
    "fc1.bias": (128,),
    "fc2.weight": (2, 128),
    "fc2.bias": (2,),
    "norm1.linear.weight": (256, 1536),
    "norm1.linear.bias": (256,),
    "norm1.norm.weight": (128,),
    "norm1.norm.bias": (128,),
}
PREFIX = "time_predictor."


@cache
def weights():
    """Random ones in the published layout; the first convolution's are so small that the norm's
    epsilon counts."""
    make = torch.Generator().manual_seed(5)
    found = {name: 0.05 * torch.randn(shape, generator=make) for name, shape in LAYOUT.items()}
    found["norm1.norm.weight"] += 1
    found["conv1.weight"] *= 1e-4
    found["conv1.bias"] *= 1e-3
    return {name: value.half() for name, value in found.items()}


def checkpoint(prefix=PREFIX, dtype=torch.float16, **changes):
    """The weights among those of a model; changes: name = tensor, None to leave it out."""
    found = {name: value.to(dtype) for name, value in weights().items()}
    found |= {name.replace("__", "."): value for name, value in changes.items()}
    others = {"transformer.pos_embed.proj.weight": torch.zeros(4, 4)}
    return {prefix + name: value for name, value in found.items() if value is not None} | others


@pytest.fixture
def source(tmp_path):
    """source(tensors, name): path of a safetensors file."""

    def save(tensors, name="model.safetensors"):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def converted(tmp_path):
    return lambda path: convert(path, tmp_path / "out" / "tpdm.safetensors", "unspecified", "sd3")


def by_description(w, before, after, temb, scale):
    """Alpha and beta as the public code computes them, from what the model shows of (unconditional,
    conditional)."""

    def mixed(pair):
        return pair[0] + scale * (pair[1] - pair[0])

    def picture(
        tokens,
    ):  # reshaped to (32, 32, 2, 2) and swapped to (32, 2, 32, 2): not where the tokens belong
        out = torch.empty(tokens.shape[1], 64, 64)
        for t in range(4096):
            row, column, p, q = t // 128, t // 4 % 32, t // 2 % 2, t % 2
            out[:, 2 * row + p, 2 * column + q] = tokens[t]
        return out

    x = torch.cat((picture(mixed(before)), picture(mixed(after))))[None]
    x = functional.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1)
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()
    x = x * w["norm1.norm.weight"][:, None, None] + w["norm1.norm.bias"][:, None, None]
    vec = mixed(temb)
    vec = w["norm1.linear.weight"] @ (vec * vec.sigmoid()) + w["norm1.linear.bias"]
    shift, scaling = vec[:128, None, None], vec[128:, None, None]
    x = x * (1 + scaling) + shift
    x = functional.conv2d(x * x.sigmoid(), w["conv2.weight"], w["conv2.bias"], stride=2, padding=1)
    x = x[0].unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4)).amax((1, 2))
    x = w["fc1.weight"] @ x + w["fc1.bias"]
    x = w["fc2.weight"] @ (x * x.sigmoid()) + w["fc2.bias"]
    return 1 + x.exp()


def test_a_converted_policy_decides_as_the_published_head_does(source, converted):
    tensors = checkpoint()
    policy = policy_of(converted(source(tensors)), 1.5)
    assert isinstance(policy, TPDMPolicy) and policy.source == "tpdm.safetensors"
    make = torch.Generator().manual_seed(1)
    before, after = (scale * torch.randn(2, 4096, 1536, generator=make) for scale in (1, 2))
    after, temb = after + 0.3, 0.5 * torch.randn(2, 1536, generator=make)
    wide = {name.removeprefix(PREFIX): value.float() for name, value in tensors.items()}
    alpha, beta = by_description(wide, before, after, temb, 7.0).tolist()

    store = FeatureStore("tpdm-sd3", (16, 128, 128), ["positive"], ["negative"])
    for i, uuid in enumerate(("negative", "positive")):
        store.add(0, uuid, torch.cat((before[i], after[i]), 1), temb[i])
    assert store.end(0, [0], 7.0) is None
    actor, latent = policy.start(Window(1.0, 0.0)), torch.zeros(16, 128, 128)
    seen = HeadInput(latent, latent, latent, None, store.latest[0])
    logits = actor.logits(seen, torch.tensor(1.0))
    assert (1 + logits.exp()).tolist() == pytest.approx([alpha, beta], rel=1e-5)
    assert 0.01 < actor._jump(logits) < 0.99  # not at the limits, where all heads are alike
    assert actor._jump(logits) == pytest.approx((alpha - 1) / (alpha + beta - 2), rel=1e-5)


def test_the_head_has_the_published_number_of_parameters_and_the_file_says_where_it_is_from(
    source, converted
):
    path = source(checkpoint())
    file = converted(path)
    assert sum(p.numel() for p in tpdm_of(file).parameters()) == 4_097_154
    said = read(file.path).metadata
    assert (
        said["method"] == "tpdm"
        and said["structure"] == "tpdm-sd3"
        and said["architecture"] == "sd3"
    )
    assert said["base_model"] == "sd3" and said["licence"] == "unspecified"
    assert json.loads(said["max_steps"]) == 35 and json.loads(said["min_sigma"]) == 0.001
    assert json.loads(said["source_sha256"]) == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    }


def test_weights_of_their_training_and_in_other_precisions_are_read(source, converted):
    plain = tpdm_of(converted(source(checkpoint(dtype=torch.float32)))).state_dict()
    other = tpdm_of(
        converted(source(checkpoint("agent_model." + PREFIX, torch.float64), "b.safetensors"))
    )
    for name, value in other.state_dict().items():
        assert torch.equal(value, plain[name])


def test_of_a_model_in_several_files_only_those_with_the_head_are_read(source, converted, tmp_path):
    tensors = checkpoint()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:12]}
    for file, some in parts.items():
        source({name: tensors[name] for name in some}, file)
    (tmp_path / "c.safetensors").write_bytes(b"never fetched")
    parts["c.safetensors"] = names[12:]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {name: file for file, some in parts.items() for name in some}})
    )
    assert names[12:] == ["transformer.pos_embed.proj.weight"]
    whole = tpdm_of(converted(source(tensors))).state_dict()
    file = converted(index)
    assert all(
        torch.equal(value, whole[name]) for name, value in tpdm_of(file).state_dict().items()
    )
    assert set(json.loads(file.metadata["source_sha256"])) == {"a.safetensors", "b.safetensors"}
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ConversionError, match="b.safetensors: no such file"):
        converted(index)
    index.write_text('{"weights": 3}')
    with pytest.raises(ConversionError, match="model.safetensors.index.json: not the index"):
        converted(index)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"fc1__bias": None}, "model.safetensors: time_predictor.fc1.bias is missing"),
        (
            {"fc1__lora_A": torch.zeros(2)},
            "model.safetensors: time_predictor.fc1.lora_A is not a tensor of TPDM's head",
        ),
        (
            {"conv1__weight": torch.zeros(128, 128, 3, 3)},
            "time_predictor.conv1.weight has shape (128, 128, 3, 3); the head for Stable "
            "Diffusion 3 medium has (128, 3072,",
        ),
        (
            {"fc2__bias": torch.tensor([1.0, float("nan")])},
            "model.safetensors: time_predictor.fc2.bias holds NaN",
        ),
        (
            {"fc2__bias": torch.tensor([1, 2])},
            "model.safetensors: time_predictor.fc2.bias has type torch.int64",
        ),
    ],
)
def test_wrong_tensors_are_named(source, converted, tmp_path, changes, said):
    with pytest.raises(ConversionError) as error:
        converted(source(checkpoint(**changes)))
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_truncated_missing_and_foreign_files_are_named(source, converted, tmp_path):
    path = source(checkpoint())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConversionError, match="model.safetensors: not a whole safetensors file"):
        converted(path)
    with pytest.raises(
        ConversionError, match="nothing.safetensors: no such file in .*give the path"
    ):
        converted(tmp_path / "nothing.safetensors")
    with pytest.raises(ConversionError, match=r"nothing.json: cannot be read \(No such file"):
        converted(tmp_path / "nothing.json")
    with pytest.raises(
        ConversionError, match=r"other.safetensors: has no tensor time_predictor.\*"
    ):
        converted(source({"weight": torch.zeros(2)}, "other.safetensors"))


def test_the_command_writes_the_policy_and_names_what_is_wrong(
    source, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "policies"
    command = [
        "convert_tpdm.py",
        str(source(checkpoint())),
        "--out",
        "mine",
        "--policies",
        str(folder),
        "--licence",
        "Apache-2.0",
    ]
    monkeypatch.setattr(sys, "argv", command)
    main()
    path = folder / "mine.safetensors"
    assert capsys.readouterr().out == f"policy: {path}\n"
    said = read(path).metadata
    assert said["licence"] == "Apache-2.0" and said["base_model"] == "stable-diffusion-3-medium"
    assert said["training_command"] == (
        "training/convert_tpdm.py model.safetensors --out mine --licence Apache-2.0 "
        "--base-model stable-diffusion-3-medium"
    )
    command[1] = str(source({"weight": torch.zeros(2)}, "other.safetensors"))
    with pytest.raises(
        SystemExit, match=r"error: other.safetensors: has no tensor time_predictor.\*"
    ):
        main()
