"""Cost of an evaluation in FLOPs, as torch's counter counts them: a multiply-add is two, only
matrix products.

Pure functions of a model's matrices and of token counts, never of the clock, so that plans and
pictures are deterministic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from .architectures import (
    APPROXIMATOR,
    AUDIO,
    BOTH,
    IMAGE,
    LAYERS,
    NOT_COUNTED,
    ONCE,
    PIXELS,
    TEXT,
    Architecture,
    Group,
)
from .attention_cost import PAIR, SparseShape, attention_flops, tiles_kept
from .types import Sparsity

CHROMA_MODULATIONS = 344  # vectors that Chroma's approximator makes, a constant in the host's code


@dataclass(frozen=True)
class Flops:
    """FLOPs of one image in one conditioning stream: everything, and what remains when the blocks
    are passed over."""

    full: int
    reuse: int


class CostModel:
    """FLOPs of a model's evaluations; `model` is the host's, or anything with its modules and
    attributes."""

    def __init__(self, model: Any, architecture: Architecture):
        self.architecture = architecture
        self.hidden = architecture.width(model)
        self.kept_width = self.hidden // architecture.sharing(
            model
        )  # of a key, without repetitions
        by_pixel = any(role == PIXELS for _, role in architecture.weights)
        self.pixels = architecture.patch(model) ** 2 if by_pixel else 1  # of a token
        self.text_layers = int(getattr(model, "txtlayers", 1))
        self.multiple = (
            getattr(model, "pad_tokens_multiple", None) or 1
        )  # Z-Image pads text and image to it
        self.groups = [
            (group, list(getattr(model, group.attribute))) for group in architecture.groups
        ]
        self.inside: dict[str, Counter] = {
            group.attribute: Counter() for group in architecture.groups
        }
        self.outside: Counter = Counter()
        self.beside: Counter = Counter()  # of blocks that a reuse passes over, too
        places = {**self.inside, architecture.beside: self.beside}
        for name, module in model.named_modules():
            size = _matrix(module)
            if size:
                places.get(name.split(".")[0], self.outside)[self._role(name)] += 2 * size
        self.beside_blocks = len(getattr(model, architecture.beside or "-", ()))
        self.around = [(kind, len(getattr(model, name, ()))) for name, kind in architecture.around]

    def image_attentions(self, first: int = 0, last: int = 0) -> int:
        """Attentions over image tokens, without those of the `first` and `last` blocks: whose keys
        and values a run on some tokens needs, whose differences sparse attention keeps."""
        kinds = [self._kinds(group, block) for group, blocks in self.groups for block in blocks]
        chosen = [kind for some in kinds[first : len(kinds) - last] for kind in some]
        return chosen.count(IMAGE) + chosen.count(BOTH)

    def kept_tokens(self, image: int, around: int) -> int:
        """Rows of keys that all attentions over `image` tokens have together, with `around` tokens
        of text and references where these are in the same attention."""
        kinds = [
            kind
            for group, blocks in self.groups
            for block in blocks
            for kind in self._kinds(group, block)
        ]
        both = kinds.count(BOTH)
        return image * (kinds.count(IMAGE) + both) + around * both

    def _kinds(self, group: Group, block: Any) -> tuple[str, ...]:
        twice = getattr(getattr(block, "x_block", None), "x_block_self_attn", False)  # SD3.5 medium
        return (*group.attentions, IMAGE) if twice else group.attentions

    def _role(self, name: str) -> str:
        return next((role for part, role in self.architecture.weights if part in name), ONCE)

    def flops(
        self,
        image: int,
        text: int,
        active: int | None = None,
        density: float = 1.0,
        sparsity: Sparsity | None = None,
        measures: float | None = None,
        seen: int | None = None,
        audio: int = 0,
    ) -> Flops:
        """`active` of `image` tokens pass the blocks (all, if None), beside `text` tokens and those
        of the sound, and attend to the keys of `seen` (all, if None); density of attention between
        image tokens, or the one that is measured beside dense attention, where `sparsity` says
        how. Attentions of the sound's own tokens are not counted: they are short."""
        text += self.architecture.more_text
        found = self._flops(image, text, active, seen, audio)
        if sparsity is None or density == 1.0 == (measures or 1.0):
            return found
        ran = image if active is None else active
        saved, sparse = self._sparse(
            image, text + audio, ran, measures or density, sparsity, measures is None
        )
        return Flops(found.full + sparse if measures else found.full - saved, found.reuse)

    def _sparse(
        self, image: int, text: int, ran: int, density: float, sparsity: Sparsity, later: bool
    ) -> tuple[int, int]:
        """FLOPs that sparse attention leaves out of an evaluation, and those it takes; see
        `engine.sparse.attention`. later: after a measurement, whose choice of tiles still holds
        where it is remembered."""
        text, padding = text + -text % self.multiple, -image % self.multiple
        size, tiles = sparsity.tile, image // sparsity.tile
        kept, queries = tiles_kept(density, tiles), ran // (PAIR * size) * PAIR * size
        if tiles < 2 or kept >= tiles or not queries:
            return 0, 0
        choosing = not (later and sparsity.keeps_residual and ran == image)
        blocks = [(group, block) for group, some in self.groups for block in some]
        saved = taken = 0
        for group, block in blocks[sparsity.dense_first : len(blocks) - sparsity.dense_last]:
            for kind in self._kinds(group, block):
                if kind not in (IMAGE, BOTH):
                    continue
                always = image - tiles * size + padding + (text if kind == BOTH else 0)
                one = SparseShape(
                    self.hidden, queries, tiles, kept, size, always, sparsity.uses_means
                )
                if one.saving() > 0:
                    saved += one.saving(choosing)
                    taken += one.flops(choosing)
        return saved, taken

    def _flops(
        self, image: int, text: int, active: int | None, seen: int | None, audio: int
    ) -> Flops:
        text, padding = text + -text % self.multiple, -image % self.multiple
        outside = self._matrices(self.outside, image, text, audio)
        for kind, number in self.around:
            length = text if kind == TEXT else image
            outside += number * attention_flops(length, length, self.hidden)
        beside = self._matrices(self.beside, image, text, audio)
        beside += self.beside_blocks * attention_flops(image, image + text, self.hidden)
        ran = (image if active is None else active) + padding
        keys = (image if seen is None else seen) + padding
        parts = [
            self._group(group, blocks, ran, keys, text, audio) for group, blocks in self.groups
        ]
        main = {group.attribute for group in self.architecture.stacks[-1]}
        before = sum(
            p for p, (g, _) in zip(parts, self.groups, strict=True) if g.attribute not in main
        )
        return Flops(outside + beside + sum(parts), outside + before)

    def _group(self, group: Group, blocks: list, ran: int, keys: int, text: int, audio: int) -> int:
        total = self._matrices(self.inside[group.attribute], ran, text, audio)
        around = text + audio
        sides = {BOTH: (ran + around, keys + around), IMAGE: (ran, keys), TEXT: (ran, text)}
        for block in blocks:
            total += sum(
                attention_flops(*sides.get(kind, (0, 0)), self.hidden)
                for kind in self._kinds(group, block)
            )
        return total

    def _matrices(self, sizes: Counter, image: int, text: int, audio: int) -> int:
        tokens = {
            IMAGE: image,
            TEXT: text,
            BOTH: image + text + audio,
            ONCE: 1,
            APPROXIMATOR: CHROMA_MODULATIONS,
            PIXELS: image * self.pixels,
            AUDIO: audio,
            LAYERS: text * self.text_layers,
            NOT_COUNTED: 0,
        }
        return sum(tokens[role] * size for role, size in sizes.items())


def _matrix(module: Any) -> int:
    """Multiply-adds a token in this module itself; 0 for anything but a linear layer or a patch
    convolution."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features * module.out_features
    if type(module).__name__ in ("Conv2d", "Conv3d"):
        return prod(module.weight.shape)
    return 0
