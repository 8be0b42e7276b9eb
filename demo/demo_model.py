"""A demo transformer with its word table: the module, its files, and a sampler to look at it. No
ComfyUI."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demo import weights
from demo.pack.language import SHAPES
from demo.pack.words import PAD, TOKENS, VOCABULARY, WIDTH, encode
from demo.twins import TWINS, LuminaConfig, initialise
from demo.twins.lumina_next import SIZE


class DemoModel(nn.Module):
    """A twin and its word table."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.twin = initialise(TWINS[kind]())
        self.words = nn.Parameter(torch.randn(len(VOCABULARY) + 1, WIDTH) * 0.5)

    def forward(self, x: Tensor, t: Tensor, counts: Tensor, guidance: Tensor) -> Tensor:
        """x (B, 16, h, w), t (B,), word counts (B, L, V), guidance (B,) -> velocity like x."""
        context, pooled = encode(counts, self.words)
        return self.twin(x, t, context, pooled, guidance)


def export(kind: str, state: dict[str, Tensor], path: Path, seen: int) -> None:
    """float16 weights under the host's keys, and the word table beside them
    (`<kind>_words.safetensors`)."""
    twin = {
        k.removeprefix("twin."): v.half().cpu().contiguous()
        for k, v in state.items()
        if k.startswith("twin.")
    }
    meta = {"format": "pt", "model": f"rapid demo {kind}-like", "pictures_seen": str(seen)}
    if kind == "lumina":
        meta["nextdit"] = json.dumps(LuminaConfig().host())
    if kind == "lumina_next":
        meta["lumina_next"] = json.dumps(asdict(SIZE))
    save_file(twin, path, metadata=meta)
    words = {"words": state["words"].float().cpu().contiguous()}
    meta = {"vocabulary": json.dumps(VOCABULARY), "tokens": str(TOKENS), "model": kind}
    save_file(words, path.with_name(f"{kind}_words.safetensors"), metadata=meta)


def load_weights(model: DemoModel, path: Path) -> None:
    """Start from exported weights: `path` is `<kind>.safetensors`, its word table lies beside
    it. Raises `weights.WeightsError`."""
    kind, state = weights.read_model(path, SHAPES, tuple(TWINS))
    weights.fill(model, state, path, f"a {kind}-like demo model")


def load(path: Path) -> DemoModel:
    """The model of exported weights. Raises `weights.WeightsError`."""
    kind, state = weights.read_model(path, SHAPES, tuple(TWINS))
    model = DemoModel(kind)
    weights.fill(model, state, path, f"a {kind}-like demo model")
    return model


@torch.no_grad()
def euler(
    model, noise: Tensor, counts: Tensor, steps: int = 28, cfg: float = 1.0, guidance: float = 1.0
) -> Tensor:
    """Latents by Euler's method on the shifted grid of both hosts' model families; a quick look at
    the training."""
    u = torch.linspace(1, 0, steps + 1)
    sigmas = (math.e**1.15 * u / (1 + (math.e**1.15 - 1) * u)).tolist()
    x = noise
    empty = torch.zeros_like(counts)
    empty[..., PAD] = 1
    g = torch.full((len(noise),), guidance, device=noise.device)
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        t = torch.full((len(noise),), now, device=noise.device)
        v = model(x, t, counts, g)
        if cfg != 1.0:
            v0 = model(x, t, empty, g)
            v = v0 + cfg * (v - v0)
        x = x + (then - now) * v
    return x
