"""The languages of the demo models: words and grammar of the prompts that each world has. Pure torch,
no ComfyUI. Which one a model reads is told by the vocabulary in its word table's file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from . import emoji_words, words


@dataclass(frozen=True)
class Language:
    """Words and grammar of the prompts of a world."""

    name: str
    vocabulary: tuple[str, ...]
    """In the order of the word table's rows; one more row is that of the empty token."""
    tokens: int
    """Phrases of a prompt, empty ones included: the length of its context."""
    width: int
    """Of CONDITIONING and of the pooled vector."""
    bag: Callable[[list[str], int], Tensor]
    """Word counts (B, tokens, words + 1) of prompts. Raises `words.PromptError`."""
    example: str
    about: str
    """What a prompt is made of, for people."""


SHAPES = Language(
    "shapes",
    words.VOCABULARY,
    words.TOKENS,
    words.WIDTH,
    words.bag,
    "flat blue background, big red striped circle center",
    f"Background: {', '.join(words.BACKGROUNDS)} with a colour. Object: "
    + "; ".join(
        ", ".join(group)
        for group in (words.SIZES, words.COLOURS, words.TEXTURES, words.SHAPES, words.PLACES)
    ),
)
EMOJI = Language(
    "emoji",
    emoji_words.VOCABULARY,
    emoji_words.TOKENS,
    emoji_words.WIDTH,
    emoji_words.bag,
    "grid blue background, big lobster left, small guitar top right",
    f"Background: {', '.join(words.BACKGROUNDS)} with a colour. Object: a size, one of "
    f"{len(emoji_words.OBJECTS)} names (as lobster, guitar, hot dog), and a place",
)
LANGUAGES = (SHAPES, EMOJI)


def of_vocabulary(vocabulary: Sequence[str]) -> Language | None:
    """The language that has exactly these words in this order."""
    for language in LANGUAGES:
        if tuple(vocabulary) == language.vocabulary:
            return language
    return None
