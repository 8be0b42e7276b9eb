"""Cost of an evaluation in FLOPs, as torch's counter counts them: a multiply-add is two, only matrix products.

Pure functions of a model's matrices and of token counts, never of the clock, so that plans and pictures are
deterministic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from .architectures import APPROXIMATOR, BOTH, IMAGE, ONCE, TEXT, Architecture, Group

CHROMA_MODULATIONS = 344  # vectors that Chroma's approximator makes, a constant in the host's code


@dataclass(frozen=True)
class Flops:
    """FLOPs of one image in one conditioning stream: everything, and what remains when the blocks are passed over."""

    dense: int
    reuse: int


def attention_flops(queries: int, keys: int, hidden: int) -> int:
    """Scores and weighted values of one attention."""
    return 4 * queries * keys * hidden


class CostModel:
    """FLOPs of a model's evaluations; `model` is the host's, or anything with its modules and attributes."""

    def __init__(self, model: Any, architecture: Architecture):
        self.architecture = architecture
        self.hidden = int(getattr(model, architecture.hidden))
        self.multiple = getattr(model, "pad_tokens_multiple", None) or 1  # Z-Image pads text and image to it
        self.groups = [(group, list(getattr(model, group.attribute))) for group in architecture.groups]
        self.inside: dict[str, Counter] = {group.attribute: Counter() for group in architecture.groups}
        self.outside: Counter = Counter()
        for name, module in model.named_modules():
            size = _matrix(module)
            if size:
                place = self.inside.get(name.split(".")[0], self.outside)
                place[self._role(name)] += 2 * size
        self.context_attentions = sum(len(getattr(model, a, ())) for a in ("context_refiner",))

    @property
    def cached_attentions(self) -> int:
        """Attentions over image tokens, whose keys and values a run on some tokens needs."""
        return sum(sum(kind != TEXT for kind in self._kinds(group, block)) for group, blocks in self.groups
                   for block in blocks)  # fmt: skip

    def _kinds(self, group: Group, block: Any) -> tuple[str, ...]:
        twice = getattr(getattr(block, "x_block", None), "x_block_self_attn", False)  # SD3.5 medium
        return (*group.attentions, IMAGE) if twice else group.attentions

    def _role(self, name: str) -> str:
        return next((role for part, role in self.architecture.weights if part in name), ONCE)

    def flops(self, image: int, text: int, active: int | None = None) -> Flops:
        """`active` of `image` tokens pass the blocks (all, if None), beside `text` tokens."""
        text, padding = text + -text % self.multiple, -image % self.multiple
        outside = self._matrices(self.outside, image, text)
        outside += self.context_attentions * attention_flops(text, text, self.hidden)
        ran = (image if active is None else active) + padding
        image += padding
        parts = [self._group(group, blocks, ran, image, text) for group, blocks in self.groups]
        main = {group.attribute for group in self.architecture.stacks[-1]}
        before = sum(p for p, (g, _) in zip(parts, self.groups, strict=True) if g.attribute not in main)
        return Flops(outside + sum(parts), outside + before)

    def _group(self, group: Group, blocks: list, ran: int, image: int, text: int) -> int:
        total = self._matrices(self.inside[group.attribute], ran, text)
        sides = {BOTH: (ran + text, image + text), IMAGE: (ran, image), TEXT: (ran, text)}
        for block in blocks:
            total += sum(attention_flops(*sides[kind], self.hidden) for kind in self._kinds(group, block))
        return total

    def _matrices(self, sizes: Counter, image: int, text: int) -> int:
        tokens = {IMAGE: image, TEXT: text, BOTH: image + text, ONCE: 1, APPROXIMATOR: CHROMA_MODULATIONS}
        return sum(tokens[role] * size for role, size in sizes.items())


def _matrix(module: Any) -> int:
    """Multiply-adds a token in this module itself; 0 for anything but a linear layer or a patch convolution."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features * module.out_features
    if type(module).__name__ in ("Conv2d", "Conv3d"):
        return prod(module.weight.shape)
    return 0
