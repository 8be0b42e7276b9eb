"""The emoji world's transformer with its word table: the module, its files, its start. No ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.emoji.latents import MAP_FILE, MODELS
from demo.emoji.sprites import appearance
from demo.emoji.words import OBJECT_ROWS, PAD, TOKENS, VOCABULARY, WIDTH, encode
from demo.latents import LatentMap
from demo.twins import FluxTwin, TwinConfig, initialise

OLD_WORDS = 64  # width of the words of the drawn shapes' world
CONFIG = TwinConfig(context=WIDTH, pooled=WIDTH)
WEIGHTS = MODELS / "diffusion_models" / "flux.safetensors"


class DemoModel(nn.Module):
    """A twin and its word table."""

    def __init__(self):
        super().__init__()
        self.twin = initialise(FluxTwin(CONFIG))
        self.words = nn.Parameter(torch.randn(len(VOCABULARY) + 1, WIDTH) * 0.5)
        # Objects are told apart, from the start, by what they look like, in a part of the table that is theirs.
        with torch.no_grad():
            self.words[:, OLD_WORDS:] = 0
            self.words[OBJECT_ROWS] = 0
            self.words[OBJECT_ROWS, OLD_WORDS:] = appearance(WIDTH - OLD_WORDS)

    def forward(self, x: Tensor, t: Tensor, counts: Tensor, guidance: Tensor) -> Tensor:
        """x (B, 16, h, w), t (B,), word counts (B, L, V), guidance (B,) -> velocity like x."""
        context, pooled = encode(counts, self.words)
        return self.twin(x, t, context, pooled, guidance)


def export(state: dict[str, Tensor], path: Path, seen: int) -> None:
    """float16 weights under the host's keys, and the word table beside them (`flux_words.safetensors`)."""
    twin = {k.removeprefix("twin."): v.half().cpu().contiguous() for k, v in state.items() if k.startswith("twin.")}
    save_file(twin, path, metadata={"format": "pt", "model": "rapid demo flux-like", "pictures_seen": str(seen)})
    words = {"words": state["words"].float().cpu().contiguous()}
    meta = {"vocabulary": json.dumps(VOCABULARY), "tokens": str(TOKENS), "model": "flux"}
    save_file(words, path.with_name(f"{path.stem}_words.safetensors"), metadata=meta)


def load_weights(model: DemoModel, path: Path) -> None:
    """Start from exported weights of this world: `path` is `flux.safetensors`, its word table lies beside it."""
    twin = {f"twin.{k}": v.float() for k, v in load_file(path).items()}
    words = load_file(path.with_name(f"{path.stem}_words.safetensors"))["words"]
    model.load_state_dict({**twin, "words": words})


@torch.no_grad()
def start_from_shapes(model: DemoModel, path: Path, old_map: Path) -> None:
    """Start from weights that were trained on drawn shapes: the blocks as they are, the words that both worlds know,
    input and output turned from the old latent map's channels to the new one's."""
    old = {f"twin.{k}": v.float() for k, v in load_file(path).items()}
    before, after = LatentMap.load(old_map), LatentMap.load(MAP_FILE)
    weight = old["twin.img_in.weight"].view(-1, 16, 4)
    turned = torch.einsum("ocp,cd->odp", weight, before.forward @ after.backward)
    old["twin.img_in.weight"] = turned.reshape(old["twin.img_in.weight"].shape)
    turn = after.forward @ before.backward
    for key in ("twin.final_layer.linear.weight", "twin.final_layer.linear.bias"):
        parts = old[key].view(16, 4, -1)
        old[key] = torch.einsum("cpo,dc->dpo", parts, turn).reshape(old[key].shape)
    own = model.state_dict()
    for key, value in old.items():
        if own[key].shape == value.shape:
            own[key].copy_(value)
        else:  # layers that read words: more columns now
            own[key][:, :OLD_WORDS].copy_(value)
    with safe_open(path.with_name(f"{path.stem}_words.safetensors"), framework="pt") as file:
        known = {word: row for row, word in enumerate(json.loads(file.metadata()["vocabulary"]))}
        table = file.get_tensor("words")
    for row, word in enumerate(VOCABULARY):
        if word in known:
            own["words"][row, :OLD_WORDS] = table[known[word]]
    own["words"][PAD, :OLD_WORDS] = table[-1]
