"""The emoji world's transformer with its word table: the module, its files, its start. No ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo import weights
from demo.emoji.latents import MAP_FILE, MODELS
from demo.emoji.sprites import appearance
from demo.latents import LatentMap
from demo.pack.emoji_words import OBJECT_ROWS, PAD, TOKENS, VOCABULARY, WIDTH
from demo.pack.language import EMOJI
from demo.pack.words import encode
from demo.twins import TWINS, LuminaConfig, TwinConfig, initialise

OLD_WORDS = 64  # width of the words of the drawn shapes' world
CONFIGS = {
    "flux": TwinConfig(context=WIDTH, pooled=WIDTH),
    "sd3": TwinConfig(context=WIDTH, pooled=WIDTH, double_blocks=4),
    "lumina": LuminaConfig(context=WIDTH),
}
# Name of the layer that reads patches; order of channel and pixel in what it reads and in what the last layer gives.
PATCHES = {
    "flux": ("twin.img_in.weight", "(c p)", "(c p)"),
    "sd3": ("twin.x_embedder.proj.weight", "(c p)", "(p c)"),
    "lumina": ("twin.x_embedder.weight", "(p c)", "(p c)"),
}
WEIGHTS = MODELS / "diffusion_models" / "flux.safetensors"


class DemoModel(nn.Module):
    """A twin (`flux`, `sd3` or `lumina`) and its word table."""

    def __init__(self, kind: str = "flux"):
        super().__init__()
        self.kind = kind
        self.twin = initialise(TWINS[kind](CONFIGS[kind]))
        self.words = nn.Parameter(torch.randn(len(VOCABULARY) + 1, WIDTH) * 0.5)
        # Objects are told apart, from the start, by what they look like, in a part of the table that is theirs.
        with torch.no_grad():
            self.words[:, OLD_WORDS:] = 0
            self.words[OBJECT_ROWS] = 0
            self.words[OBJECT_ROWS, OLD_WORDS:] = appearance(WIDTH - OLD_WORDS)

    def forward(self, x: Tensor, t: Tensor, counts: Tensor, guidance: Tensor, **more) -> Tensor:
        """x (B, 16, h, w), t (B,), word counts (B, L, V), guidance (B,) -> velocity like x."""
        context, pooled = encode(counts, self.words)
        return self.twin(x, t, context, pooled, guidance, **more)


def export(
    kind: str, state: dict[str, Tensor], path: Path, seen: int, guidance: float = 1.0
) -> None:
    """float16 weights under the host's keys, and the word table beside them (`<kind>_words.safetensors`).
    guidance: strength that a FLUX-like model is to be told."""
    twin = {
        k.removeprefix("twin."): v.half().cpu().contiguous()
        for k, v in state.items()
        if k.startswith("twin.")
    }
    meta = {"format": "pt", "model": f"rapid demo {kind}-like", "pictures_seen": str(seen)}
    if guidance > 1:
        meta["guidance"] = f"{guidance:g}"
    if kind == "lumina":
        meta["nextdit"] = json.dumps(CONFIGS[kind].host())
    save_file(twin, path, metadata=meta)
    words = {"words": state["words"].float().cpu().contiguous()}
    meta = {"vocabulary": json.dumps(VOCABULARY), "tokens": str(TOKENS), "model": kind}
    save_file(words, path.with_name(f"{path.stem}_words.safetensors"), metadata=meta)


def load(path: Path) -> DemoModel:
    """The model of exported weights: `path` is `<kind>.safetensors`, its word table lies beside it.

    Raises `weights.WeightsError`."""
    kind, state = weights.read_model(path, EMOJI, tuple(CONFIGS))
    model = DemoModel(kind)
    weights.fill(model, state, path, f"a {kind}-like demo model")
    return model


@torch.no_grad()
def start_from_shapes(model: DemoModel, path: Path, old_map: Path) -> None:
    """Start from weights that were trained on drawn shapes: the blocks as they are, the words that both worlds know,
    input and output turned from the old latent map's channels to the new one's."""
    old = {f"twin.{k}": v.float() for k, v in load_file(path).items()}
    before, after = LatentMap.load(old_map), LatentMap.load(MAP_FILE)
    entry, entry_order, exit_order = PATCHES[model.kind]
    turn = before.forward @ after.backward
    old[entry] = rearrange(old[entry].flatten(1), f"o {entry_order} -> o c p", c=16, p=4)
    old[entry] = rearrange(
        torch.einsum("ocp,cd->odp", old[entry], turn), f"o c p -> o {entry_order}"
    )
    old[entry] = old[entry].view_as(model.state_dict()[entry])
    turn = after.forward @ before.backward
    for key in ("twin.final_layer.linear.weight", "twin.final_layer.linear.bias"):
        parts = rearrange(old[key].view(64, -1), f"{exit_order} o -> c p o", c=16, p=4)
        turned = rearrange(torch.einsum("cpo,dc->dpo", parts, turn), f"c p o -> {exit_order} o")
        old[key] = turned.view_as(old[key])
    own = model.state_dict()
    for key, value in old.items():
        if own[key].shape == value.shape:
            own[key].copy_(value)
        else:  # layers that read words: more columns now
            own[key][..., :OLD_WORDS].copy_(value)
    with safe_open(path.with_name(f"{path.stem}_words.safetensors"), framework="pt") as file:
        known = {word: row for row, word in enumerate(json.loads(file.metadata()["vocabulary"]))}
        table = file.get_tensor("words")
    for row, word in enumerate(VOCABULARY):
        if word in known:
            own["words"][row, :OLD_WORDS] = table[known[word]]
    own["words"][PAD, :OLD_WORDS] = table[-1]
