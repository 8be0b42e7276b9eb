"""Weights in the published layouts: one safetensors file, or shards with or without their index; and
what a file is that is no such model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_detection
from comfy.utils import load_torch_file
from torch import Tensor

from .config import CLASS

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})(?P<end>\.safetensors)")
OURS = (
    "patch_embedder.proj.weight",
    "time_caption_embed.caption_embedder.1.weight",
    "norm_out.linear_2.weight",
    "layers.0.gate",
    "layers.0.attn2.to_k.weight",
    "layers.0.feed_forward.linear_1.weight",
)
# Tensors that tell what else a file may be.
OTHERS = {
    "layers.0.attention.wk_y.weight": "Lumina-Next in its authors' own layout",
    "context_refiner.0.attn.to_q.weight": "Lumina Image 2.0 in diffusers' layout",
    "model.embed_tokens.weight": "a text encoder",
    "embed_tokens.weight": "a text encoder",
    "decoder.conv_in.weight": "a VAE",
    "first_stage_model.decoder.conv_in.weight": "a checkpoint of another model",
}
SAVED = "model.diffusion_model."  # in front of names in a file that the host has saved
HOSTS_NAMES = {"Lumina2": "Lumina Image 2.0", "ZImage": "Z-Image"}


def shards_of(path: Path) -> list[Path]:
    """All files of the model that `path` is a part of. Raises ValueError where some are missing."""
    found = SHARD.fullmatch(path.name)
    if found is None:
        return [path]
    index = path.with_name(f"{found['stem']}{found['end']}.index.json")
    count = int(found["of"])
    names = {f"{found['stem']}-{n:05}-of-{count:05}{found['end']}" for n in range(1, count + 1)}
    if index.is_file():
        names = set(_json(index).get("weight_map", {}).values()) or names
    missing = sorted(name for name in names if not path.with_name(name).is_file())
    if missing:
        raise ValueError(
            f"{path.name} is one of {len(names)} shards of a model; there is no "
            f"{', '.join(missing)} beside it. Download the missing ones into the same folder."
        )
    return [path.with_name(name) for name in sorted(names)]


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of all shards that belong to it. Raises ValueError where some are
    missing."""
    weights: dict[str, Tensor] = {}
    for shard in shards_of(path):
        tensors: Any = load_torch_file(str(shard), safe_load=True)
        weights |= tensors
    return weights


def inside(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that; all where none does."""
    found = {n.removeprefix(prefix): value for n, value in weights.items() if n.startswith(prefix)}
    return found or dict(weights)


def read_network(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a Lumina-Next network and its config.json, empty where there is none beside it.
    Raises ValueError for another model, and where shards are missing."""
    whole = read(path)
    weights = inside(whole, SAVED)
    if any(name not in weights for name in OURS):
        what = what_it_is(whole)
        raise ValueError(
            f"{path.name} is {what}. RAPID Load Lumina-Next takes Lumina-Next-T2I or "
            f"Lumina-Next-SFT in diffusers' layout: the files in the folder transformer of "
            f"Alpha-VLLM/Lumina-Next-SFT-diffusers."
        )
    beside = config_beside(path)
    return weights, beside if beside.get("_class_name") == CLASS else {}


def config_beside(path: Path) -> dict[str, Any]:
    """The config.json in a file's folder; empty where there is none, or none that can be read."""
    file = path.with_name("config.json")
    try:
        return _json(file) if file.is_file() else {}
    except ValueError:
        return {}


def check_tensors(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], name: str, what: str
) -> None:
    """Raise ValueError for a file whose tensors are not those of its model. expected: the model's, by
    name; name: of the file; what: the model, with its layout."""
    missing = [key for key in expected if key not in weights]
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} of the {len(expected)} tensors of a {what}, {missing[0]} "
            f"among them: the file is incomplete. Download it again, with all its parts."
        )
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            raise ValueError(
                f"{name} has {key} of shape {tuple(weights[key].shape)}, where {tuple(value.shape)} "
                f"fits its other tensors: this is no {what}."
            )
    # Without its scales, say, a layer would compute something else.
    layers = {key.rpartition(".")[0] for key in expected} - {""}
    more = [key for key in weights if key not in expected and key.rpartition(".")[0] in layers]
    if more:
        raise ValueError(
            f"{name} has {more[0]}, which a {what} does not have: its weights are kept in a way that "
            f"is not read here, as in 8 bits with scales. Take the file in 16 bits, or in 8 bits "
            f"without scales."
        )


def what_it_is(weights: Mapping[str, Tensor]) -> str:
    """What these tensors are, in words."""
    known = next((what for name, what in OTHERS.items() if name in weights), None)
    if known is None:
        known = _hosts_name(weights)
    return known or "no model that ComfyUI knows"


def _hosts_name(weights: Mapping[str, Tensor]) -> str | None:
    """The host's name of a diffusion model; None where it knows none."""
    try:
        prefix = comfy.model_detection.unet_prefix_from_state_dict(weights)
        if not any(name.startswith(prefix) for name in weights):
            prefix = ""
        found = comfy.model_detection.model_config_from_unet(dict(weights), prefix)
    except Exception:  # it is made for files of models, and this may be anything
        return None
    if found is None:
        return None
    name = type(found).__name__
    return HOSTS_NAMES.get(name, f"a model of the family {name}")


def _json(path: Path) -> dict[str, Any]:
    """Raises ValueError where this is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read ({error}). Download it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object. Download it again.")
    return found
