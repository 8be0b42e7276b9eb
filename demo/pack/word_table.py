"""Reading a demo model's word table, with errors that say what to do. No ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .words import TOKENS, VOCABULARY, WIDTH, bag, encode

MODELS = ("flux", "sd3", "lumina", "lumina_next")
MAX_TOKENS = 64


class WordTableError(RuntimeError):
    """A word table that is missing, damaged, or made for other words."""


def file_name(model: str) -> str:
    """Name of a model's word table, beside its weights in `diffusion_models`."""
    return f"{model}_words.safetensors"


def load(path: Path) -> Tensor:
    """Word vectors (words + 1, 64), the empty token's last. Raises WordTableError."""
    if not path.is_file():
        raise WordTableError(
            f"Demo Prompt: the word table {path} is missing. It belongs beside the demo model's weights; "
            "restore both from the repository (demo/models/diffusion_models), or train the model again."
        )
    try:
        with safe_open(path, framework="pt") as file:
            meta, table = file.metadata() or {}, file.get_tensor("words")
    except (SafetensorError, OSError) as error:
        raise WordTableError(
            f"Demo Prompt: the word table {path} cannot be read ({error}). It is truncated or no word table; "
            "restore it from the repository (demo/models/diffusion_models)."
        ) from error
    _check(path, meta, table)
    return table.float()


def _check(path: Path, meta: dict[str, str], table: Tensor) -> None:
    """Raise WordTableError unless the table was made for the words of `words.VOCABULARY`, in their
    order."""
    try:
        words = tuple(json.loads(meta.get("vocabulary", "[]")))
    except ValueError:
        words = ()
    if words != VOCABULARY:
        odd = sorted(set(map(str, words)) ^ set(VOCABULARY)) or ["their order"]
        raise WordTableError(
            f"Demo Prompt: the word table {path} was made for other words: {len(words)} given, "
            f"{len(VOCABULARY)} accepted, difference: {', '.join(odd[:8])}. "
            "Use weights and code of the same version of the demo."
        )
    if tuple(table.shape) != (len(VOCABULARY) + 1, WIDTH):
        raise WordTableError(
            f"Demo Prompt: the word table {path} has shape {tuple(table.shape)}, accepted is "
            f"({len(VOCABULARY) + 1}, {WIDTH}). Use weights and code of the same version of the demo."
        )


def conditioning(text: str, table: Tensor, tokens: int = TOKENS) -> list:
    """CONDITIONING of a text with one prompt a line: context (B, tokens, 64) and pooled vector (B,
    64).

    An empty text is the unconditional prompt, and so is an empty line between others. More tokens
    than TOKENS add empty ones to the context; the pooled vector stays that of TOKENS, as in
    training."""
    if not TOKENS <= tokens <= MAX_TOKENS:
        raise ValueError(f"Demo Prompt: tokens {tokens} given, {TOKENS} to {MAX_TOKENS} accepted.")
    lines = text.strip().splitlines() or [""]
    _, pooled = encode(bag(lines), table)
    context, _ = encode(bag(lines, tokens), table)
    return [[context, {"pooled_output": pooled}]]
