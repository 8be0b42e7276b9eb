"""Reading a demo model's word table, with errors that say what to do. No ComfyUI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .language import LANGUAGES, Language, of_vocabulary
from .words import encode

MODELS = ("flux", "sd3", "lumina", "lumina_next")
MAX_TOKENS = 64


class WordTableError(RuntimeError):
    """A word table that is missing, damaged, or made for other words."""


@dataclass(frozen=True)
class WordTable:
    """The words that a model was trained with."""

    language: Language
    rows: Tensor
    """(words + 1, width), the empty token's last."""


def file_name(model: str) -> str:
    """Name of a model's word table, beside its weights in `diffusion_models`."""
    return f"{model}_words.safetensors"


def load(path: Path) -> WordTable:
    """The table in a file. Raises WordTableError."""
    meta, rows = _read(path, whole=True)
    language = _language(path, meta)
    assert rows is not None
    accepted = (len(language.vocabulary) + 1, language.width)
    if tuple(rows.shape) != accepted:
        raise WordTableError(
            f"Demo Prompt: the word table {path} has shape {tuple(rows.shape)}, accepted is {accepted}. "
            "Use weights and code of the same version of the demo."
        )
    return WordTable(language, rows.float())


def language_of(path: Path) -> Language:
    """The language of the table in a file, by its header alone. Raises WordTableError."""
    return _language(path, _read(path, whole=False)[0])


def _read(path: Path, whole: bool) -> tuple[dict[str, str], Tensor | None]:
    """Metadata of a file, and its table where `whole`."""
    if not path.is_file():
        raise WordTableError(
            f"Demo Prompt: the word table {path} is missing. It belongs beside the demo model's weights; "
            "restore both from the repository (demo/models/diffusion_models), or train the model again."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, file.get_tensor("words") if whole else None
    except (SafetensorError, OSError) as error:
        raise WordTableError(
            f"Demo Prompt: the word table {path} cannot be read ({error}). It is truncated or no word table; "
            "restore it from the repository (demo/models/diffusion_models)."
        ) from error


def _language(path: Path, meta: dict[str, str]) -> Language:
    """The language whose words, in their order, a table was made for."""
    try:
        words = tuple(map(str, json.loads(meta.get("vocabulary", "[]"))))
    except ValueError:
        words = ()
    found = of_vocabulary(words)
    if found is not None:
        return found
    # Of the languages that which has most of its words is meant.
    near = max(LANGUAGES, key=lambda language: len({*language.vocabulary} & {*words}))
    odd = sorted({*words} ^ {*near.vocabulary}) or ["their order"]
    accepted = " or ".join(f"{len(one.vocabulary)} ({one.name})" for one in LANGUAGES)
    raise WordTableError(
        f"Demo Prompt: the word table {path} was made for other words: {len(words)} given, "
        f"{accepted} accepted, difference: {', '.join(odd[:8])}. "
        "Use weights and code of the same version of the demo."
    )


def conditioning(text: str, table: WordTable, tokens: int = 0) -> list:
    """CONDITIONING of a text with one prompt a line: context (B, tokens, width) and pooled vector (B,
    width).

    An empty text is the unconditional prompt, and so is an empty line between others. tokens: 0 for as
    many as in training; more add empty ones to the context, and the pooled vector stays."""
    language = table.language
    if tokens and not language.tokens <= tokens <= MAX_TOKENS:
        raise ValueError(
            f"Demo Prompt: tokens {tokens} given, {language.tokens} to {MAX_TOKENS} accepted, or 0 "
            "for as many as the model was trained with."
        )
    lines = text.strip().splitlines() or [""]
    context, pooled = encode(language.bag(lines, language.tokens), table.rows)
    if tokens > language.tokens:
        context, _ = encode(language.bag(lines, tokens), table.rows)
    return [[context, {"pooled_output": pooled}]]
