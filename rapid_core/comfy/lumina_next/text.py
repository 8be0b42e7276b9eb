"""Gemma 2B (version 1), Lumina-Next's text encoder, from transformers' layout, as a CLIP of the host.

What text tokens give is the hidden state before the last block. Prompts are lower-cased, stripped and
cut after 256 tokens, as in the published pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import numpy
import torch
from comfy.ldm.common_dit import rms_norm
from comfy.model_management import cast_to
from comfy.ops import disable_weight_init
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.llama import BaseLlama, Gemma2_2B_Config, Llama2_, RMSNorm
from comfy.text_encoders.spiece_tokenizer import SPieceTokenizer
from comfy.utils import calculate_parameters
from torch import Tensor, nn

from .config import BLOCK
from .files import check_tensors, config_beside, inside, read, what_it_is

MAX_TOKENS = 256
MODEL_TYPE = "gemma"  # in a published config.json
NAME = "gemma_2b"
PREFIX = "model."  # of names in a file with the language model's head, and of the host's
SAVED = f"{NAME}.transformer."  # in front of names in a file that the host has saved
LAYOUT = "Gemma of version 1 in transformers' layout"
TOKENIZER = "tokenizer.model"
IN_FILE = "spiece_model"  # the host's name of a tokenizer inside a file of weights
# Tensors that Gemma has none of, and what they tell.
OTHERS = {
    "layers.0.self_attn.q_norm.weight": "Gemma 3, or a Qwen",
    "layers.0.pre_feedforward_layernorm.weight": "Gemma 2, as Lumina Image 2.0 takes it",
    "layers.0.self_attn.q_proj.bias": "a Qwen",
}
NEEDED = (
    "embed_tokens.weight",
    "norm.weight",
    "layers.0.self_attn.q_proj.weight",
    "layers.0.self_attn.k_proj.weight",
    "layers.0.mlp.gate_proj.weight",
    "layers.0.post_attention_layernorm.weight",
)


@dataclass
class GemmaConfig(Gemma2_2B_Config):
    """Gemma 2B where it is not like Gemma 2: blocks as Llama's, one head of keys and values."""

    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_key_value_heads: int = 1
    transformer_type: str = "llama"
    head_dim: int = 256


class Norm(RMSNorm):
    """Gemma's: one is added to weights at the precision of the calculation, not at theirs."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, cast_to(self.weight, dtype=x.dtype, device=x.device) + 1.0, self.eps)


class Gemma(BaseLlama, nn.Module):
    """The host's Llama with Gemma's norms, whose weights are around zero, and its scaled
    embeddings."""

    def __init__(self, config_dict: dict, dtype: Any, device: Any, operations: Any) -> None:
        super().__init__()
        config = GemmaConfig(**config_dict)
        self.num_layers = config.num_hidden_layers
        self.scale = config.hidden_size**0.5
        self.model = Llama2_(config, device=device, dtype=dtype, ops=operations)
        self.dtype = dtype
        for layer in self.model.layers:
            for name in ("input_layernorm", "post_attention_layernorm"):
                eps = config.rms_norm_eps
                setattr(layer, name, Norm(config.hidden_size, eps, device=device, dtype=dtype))

    def forward(
        self, input_ids: Tensor | None, *rest: Any, embeds: Any = None, **named: Any
    ) -> Any:
        """As the host calls it: `embeds` come from the input embeddings, unscaled."""
        if embeds is None:
            embeds = self.model.embed_tokens(input_ids, out_dtype=named.get("dtype"))
        return self.model(None, *rest, embeds=embeds * self.scale, **named)


class GemmaTokenizer(SDTokenizer):
    """A beginning, no end, no padding."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        data = tokenizer_data or {}
        kind: Any = SPieceTokenizer
        super().__init__(
            data[IN_FILE],
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=data["width"],
            embedding_key=NAME,
            tokenizer_class=kind,
            has_end_token=False,
            pad_to_max_length=False,
            max_length=10**8,  # one batch, which is cut below
            min_length=1,
            tokenizer_args={"add_bos": True, "add_eos": False},
            tokenizer_data=data,
        )

    def tokenize_with_weights(self, text: str, *args: Any, **named: Any) -> list:
        """Tokens of one prompt."""
        parts = re.split(rf"({self.embedding_identifier}\S+)", text)
        lowered = "".join(
            p if i % 2 else p.lower() for i, p in enumerate(parts)
        )  # no names of files
        batches = super().tokenize_with_weights(lowered.strip(), *args, **named)
        return [batch[:MAX_TOKENS] for batch in batches]

    def state_dict(self) -> dict[str, Tensor]:
        """What the host saves beside the weights."""
        return {IN_FILE: self.tokenizer.serialize_model()}


class Tokenizer(SD1Tokenizer):
    """What a CLIP has."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            name=NAME,
            tokenizer=GemmaTokenizer,
        )


def target(sizes: Mapping[str, int]) -> ClipTarget:
    """What the host builds a CLIP of. sizes: as in `GemmaConfig`."""

    network: Any = Gemma

    class Encoder(SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None):
            super().__init__(
                device=device,
                layer="hidden",
                layer_idx=-2,
                textmodel_json_config=dict(sizes),
                dtype=dtype,
                special_tokens={"start": 2, "pad": 0},
                layer_norm_hidden_state=False,
                model_class=network,
                model_options=model_options or {},
            )

    encoder: Any = Encoder

    class Text(SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None):
            super().__init__(
                device=device,
                dtype=dtype,
                name=NAME,
                clip_model=encoder,
                model_options=model_options or {},
            )

    return ClipTarget(Tokenizer, Text)


def load(path: Path, disable_dynamic: bool = False) -> Any:
    """CLIP of a file, or of all shards that belong to it. Raises ValueError where it is no Gemma of
    version 1, where shards or tensors are missing, or where there is no tokenizer that fits.
    disable_dynamic: the host asks for it when it loads an encoder once more."""
    weights = read(path)
    tokenizer = weights.pop(IN_FILE, None)
    weights = inside(weights, SAVED)
    weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    _check(weights, path.name)
    sizes = sizes_of(weights, config_beside(path))
    network = Gemma(sizes, torch.float16, "meta", disable_weight_init)  # only for its shapes
    expected = {n.removeprefix(PREFIX): value for n, value in network.state_dict().items()}
    check_tensors(expected, weights, path.name, LAYOUT)
    if tokenizer is None:
        tokenizer = _tokenizer_beside(path)
    _check_tokenizer(tokenizer, sizes["vocab_size"], path.name)
    clip = comfy.sd.CLIP(
        target(sizes),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=calculate_parameters(weights),
        tokenizer_data={IN_FILE: tokenizer, "width": sizes["hidden_size"]},
        state_dict=[{PREFIX + name: value for name, value in weights.items()}],
        **({"disable_dynamic": True} if disable_dynamic else {}),  # older hosts have one kind
    )
    clip.patcher.cached_patcher_init = (load_patcher, (path,))
    return clip


def load_patcher(path: Path, disable_dynamic: bool = False) -> Any:
    """What the host loads where it needs an encoder's weights once more: for hooks on a CLIP, and for
    another device. Raises ValueError as `load`."""
    return load(path, disable_dynamic).patcher


def sizes_of(weights: Mapping[str, Tensor], beside: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of an encoder by its weights, as in `GemmaConfig`. beside: the config.json in its folder,
    or nothing; without one of a Gemma the one head of keys and values of Gemma 2B is taken."""
    vocabulary, hidden = weights["embed_tokens.weight"].shape
    queries = weights["layers.0.self_attn.q_proj.weight"].shape[0]
    keys = weights["layers.0.self_attn.k_proj.weight"].shape[0]
    own = beside.get("model_type") == MODEL_TYPE
    kv_heads = int((own and beside.get("num_key_value_heads")) or 1)
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": weights["layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(m[1]) for n in weights if (m := BLOCK.match(n))),
        "num_attention_heads": queries * kv_heads // keys,
        "num_key_value_heads": kv_heads,
        "head_dim": keys // kv_heads,
    }


def _check(weights: Mapping[str, Tensor], name: str) -> None:
    other = next((what for tensor, what in OTHERS.items() if tensor in weights), None)
    lacking = [tensor for tensor in NEEDED if tensor not in weights]
    if other is None and lacking:
        # A text encoder that has embeddings but is not built so is none that is known here.
        known = what_it_is(weights)
        other = "a text encoder of another family" if "text encoder" in known else known
    if other is not None:
        raise ValueError(
            f"{name} is {other}. RAPID Load Lumina-Next Text Encoder takes Gemma 2B of version 1 in "
            f"transformers' layout: google/gemma-2b, or the folder text_encoder of "
            f"Alpha-VLLM/Lumina-Next-SFT-diffusers."
        )


def _check_tokenizer(data: Tensor, vocabulary: int, name: str) -> None:
    """Raise ValueError for the tokenizer of another encoder. vocabulary: tokens that have embeddings,
    some of which may be reserved."""
    pieces = SPieceTokenizer(data).tokenizer.get_piece_size()
    if not vocabulary // 2 < pieces <= vocabulary:
        raise ValueError(
            f"The {TOKENIZER} for {name} has {pieces} tokens, the encoder {vocabulary}: it is of another "
            f"encoder. Put Gemma's {TOKENIZER} and the encoder into a folder of their own."
        )


def _tokenizer_beside(path: Path) -> Tensor:
    """Bytes of the tokenizer's file, in the encoder's folder or where diffusers keeps it."""
    folder = path.parent
    places = [folder, folder / "tokenizer", folder.parent / "tokenizer"]
    for place in places:
        if (place / TOKENIZER).is_file():
            data = (place / TOKENIZER).read_bytes()
            return torch.from_numpy(numpy.frombuffer(data, dtype=numpy.uint8).copy())
    raise ValueError(
        f"There is no {TOKENIZER} for {path.name}. Put Gemma's {TOKENIZER} into the same folder, or "
        f"into a folder tokenizer beside it."
    )
