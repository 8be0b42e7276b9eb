"""The demo models' language: words, grammar and the phrase encoder. Pure torch, no ComfyUI."""

from __future__ import annotations

import re

import torch
from torch import Tensor

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
TEXTURES = ("plain", "striped", "checked", "dotted")
SIZES = ("small", "big", "huge")
BACKGROUNDS = ("flat", "gradient", "noise", "grid")
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
PLACE_WORDS = ("top", "bottom", "left", "right", "center")
VOCABULARY = COLOURS + SHAPES + TEXTURES + SIZES + BACKGROUNDS + PLACE_WORDS + ("background",)
FILLERS = frozenset(("a", "an", "the", "at", "in", "on", "of", "with", "and"))

MAX_OBJECTS = 6
TOKENS = MAX_OBJECTS + 2  # background, six objects, one spare: the fixed length of a prompt
PAD = len(VOCABULARY)  # row of the word table used for every empty token
WIDTH = 64  # width of CONDITIONING and of the pooled vector

_INDEX = {word: i for i, word in enumerate(VOCABULARY)}


class PromptError(ValueError):
    """A prompt that the demo models cannot read."""


def parse(prompt: str) -> list[list[int]]:
    """Word indices of each comma-separated phrase; an empty prompt gives no phrase.

    Raises PromptError for an unknown word or more phrases than tokens."""
    phrases = []
    for phrase in re.split(r"[,;.]", prompt.lower()):
        words = [w for w in re.findall(r"[^\s]+", phrase) if w not in FILLERS]
        unknown = [w for w in words if w not in _INDEX]
        if unknown:
            raise PromptError(
                f"Demo Prompt: unknown word {unknown[0]!r} in {phrase.strip()!r}. Known words: {', '.join(VOCABULARY)}."
            )
        if words:
            phrases.append([_INDEX[w] for w in words])
    if len(phrases) > TOKENS:
        raise PromptError(
            f"Demo Prompt: {len(phrases)} phrases given, at most {TOKENS} fit "
            f"(one background and up to {MAX_OBJECTS} objects): {prompt!r}"
        )
    return phrases


def bag(prompts: list[str], tokens: int = TOKENS) -> Tensor:
    """Word counts of each phrase of each prompt, (B, tokens, len(VOCABULARY) + 1); empty tokens
    count PAD once."""
    counts = torch.zeros(len(prompts), tokens, len(VOCABULARY) + 1)
    for row, prompt in enumerate(prompts):
        phrases = parse(prompt)
        for column in range(tokens):
            for word in phrases[column] if column < len(phrases) else [PAD]:
                counts[row, column, word] += 1
    return counts


def encode(counts: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """CONDITIONING (B, tokens, WIDTH) and pooled vector (B, WIDTH) of phrase word counts.

    A phrase is the sum of its words' vectors; the pooled vector is the mean over phrases."""
    context = counts.to(table) @ table
    return context, context.mean(dim=1)
