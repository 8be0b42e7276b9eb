"""What the pictures of a demo model are of: its world. Everything that draws, describes, decodes or
judges them asks here.

A model's world is the one whose words its word table has, which lies beside its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from demo import critic, demo_model, judge, scenes, score
from demo.emoji import critic as emoji_critic
from demo.emoji import demo_model as emoji_model
from demo.emoji import judge as emoji_judge
from demo.emoji import scenes as emoji_scenes
from demo.emoji import score as emoji_score
from demo.latents import LatentMap
from demo.pack.language import EMOJI as EMOJI_LANGUAGE
from demo.pack.language import SHAPES as SHAPES_LANGUAGE
from demo.pack.language import Language
from demo.pack.word_table import file_name, language_of
from demo.taesd import DECODER, Decoder, load_decoder

MODELS = Path(__file__).parent / "models"
SPLITS = scenes.SPLITS
PART = 64  # prompts drawn by one seed


class Scenes(Protocol):
    """Descriptions of some pictures."""

    count: Tensor
    """(B,) objects of each."""

    def __len__(self) -> int: ...

    def take(self, rows: Any) -> Any:
        """The chosen rows."""
        ...

    def prompts(self) -> list[str]:
        """One prompt a scene."""
        ...


@dataclass(frozen=True)
class World:
    """Scenes, their words, who judges them, and how they are encoded. Of `Scenes` each function takes
    those of its own world."""

    language: Language
    folder: Path
    """With latent_map.safetensors, judge.safetensors and judge_training.safetensors."""
    decoder: Path
    """File with TAESD's decoder."""
    sample: Callable[[int, torch.Generator, str], Any]
    """So many scenes of a split."""
    joined: Callable[[Sequence[Any]], Any]
    """The rows of all parts."""
    draw: Callable[[Any, int, int, torch.Generator], Tensor]
    """True pictures (B, 3, height, width) in 0 .. 1."""
    read: Callable[[Sequence[str]], Any]
    """The scenes of prompts. Raises ValueError."""
    load_model: Callable[[Path], Any]
    """A model of exported weights, called with x, t, word counts and guidance. Raises `weights.WeightsError`."""
    load_judge: Callable[[Path], Any]
    """A judge's network."""
    right: Callable[[Any, Tensor, Any], tuple[Tensor, ...]]
    """Of a judge, pictures and scenes: masks of what is as the scenes say, each kind of thing by itself."""
    score: Callable[[Tensor, Any, Any], dict[str, Any]]
    """Figures of pictures, scenes and a judge."""
    features: Callable[[Any, Tensor], Tensor]
    """What a judge sees in pictures: (B, 9, width)."""
    confidence: Callable[[Any, Tensor, Any], Tensor]
    """How sure a judge is (B,) that pictures show what scenes say."""

    @property
    def name(self) -> str:
        """Its language's."""
        return self.language.name

    @property
    def judge(self) -> Path:
        """Of the judge that scores and trains nothing."""
        return self.folder / "judge.safetensors"

    @property
    def judge_training(self) -> Path:
        """Of the judge that trains policies and scores nothing."""
        return self.folder / "judge_training.safetensors"

    def prompts(self, number: int, split: str = "test", seed: int = 7) -> Any:
        """Scenes of a split; a longer list begins with the shorter one."""
        seeds = [seed + 1000 * part for part in range(math.ceil(number / PART))]
        parts = [self.sample(PART, torch.Generator().manual_seed(s), split) for s in seeds]
        return self.joined(parts).take(slice(0, number))

    def latents(self, device: torch.device | str = "cpu") -> LatentMap:
        """Its latent map."""
        return LatentMap.load(self.folder / "latent_map.safetensors", device)

    def load_decoder(self) -> Decoder:
        """TAESD's decoder, in float32."""
        return load_decoder(self.decoder)

    def bag(self, prompts: list[str]) -> Tensor:
        """Word counts (B, tokens, words + 1)."""
        return self.language.bag(prompts, self.language.tokens)


SHAPES = World(
    SHAPES_LANGUAGE,
    MODELS,
    DECODER,
    scenes.sample,
    scenes.Scenes.joined,
    scenes.draw,
    critic.read,
    demo_model.load,
    judge.load,
    score.right,
    score.score,
    judge.features,
    critic.confidence,
)
"""Five coloured shapes with textures."""
EMOJI = World(
    EMOJI_LANGUAGE,
    MODELS / "emoji",
    MODELS / "vae_approx" / "taef1_decoder.safetensors",
    emoji_scenes.sample,
    emoji_scenes.Scenes.joined,
    emoji_scenes.draw,
    emoji_critic.read,
    emoji_model.load,
    emoji_judge.load,
    emoji_score.right,
    emoji_score.score,
    emoji_judge.features,
    emoji_critic.confidence,
)
"""256 drawings of real things."""
WORLDS = (SHAPES, EMOJI)


def weights_of(kind: str) -> Path:
    """The weights of a demo model in the repository."""
    return MODELS / "diffusion_models" / f"{kind}.safetensors"


def world_of(weights: Path) -> World:
    """The world of exported weights, `<name>.safetensors` with its word table beside it. Raises
    `word_table.WordTableError`."""
    language = language_of(weights.with_name(file_name(weights.stem)))
    return next(world for world in WORLDS if world.language is language)


def world_of_prompts(prompts: Sequence[str]) -> World:
    """The world whose prompts these are. Raises ValueError with what each of them reads."""
    errors = []
    for world in WORLDS:
        try:
            world.read(prompts)
        except ValueError as error:
            errors.append(f"{world.name}: {error}")
        else:
            return world
    raise ValueError("; ".join(errors))
