"""Where a model call stands, and how the tokens of its attentions lie: [text | image | extra]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..architectures import ALONE, APART, IMAGE, JOINT
from ..engine.sparse import KeyLayout
from .block_table import BlockInfo


class TokenLayout:
    """Tokens of one model call.

    image: image tokens of the latent; padding: tokens that the model itself appends. Text and extra
    tokens, which stand before and after the image, are counted at the first block."""

    def __init__(self, image: int, padding: int = 0):
        self.image = image
        self.padding = padding
        self.text = 0
        self.extra = 0
        self.length = 0  # of the whole attention
        self.block: BlockInfo | None = None  # that is running
        self._attentions = 0  # of it that have been

    def counted(self, block: BlockInfo, args: dict[str, Any]) -> tuple[int, int]:
        """Text and extra tokens in the attention of a stack's first block; `args` are its arguments. One is
        below zero where fewer tokens arrive than are expected."""
        length = args["img"].shape[1]
        if block.group.layout == APART:
            return args["txt"].shape[1], length - self.image
        if block.group.layout == ALONE:
            return 0, length - self.image
        return length - self.image - self.padding, self.padding

    def enter(self, block: BlockInfo, args: dict[str, Any]) -> None:
        """A block begins, whose tokens fit; `args` are its arguments."""
        if block.first:
            self.text, self.extra = self.counted(block, args)
            self.length = self.text + self.image + self.extra
        self.block = block
        self._attentions = 0

    def leave(self) -> None:
        """The block has ended."""
        self.block = None

    def attention(self) -> tuple[tuple[int, int], str]:
        """(block, n-th attention in it) and kind of the attention that is being called."""
        assert self.block is not None
        nth = self._attentions
        kinds = self.block.group.attentions
        self._attentions += 1
        # SD3.5 medium has a second attention over the image.
        return (self.block.number, nth), kinds[nth] if nth < len(kinds) else IMAGE

    def keys(self, queries: int, tokens: Tensor | None = None) -> KeyLayout:
        """How the keys of an attention lie; `tokens` (rows, K) of the image are among its
        `queries`, all if None."""
        image = self.image if tokens is None else tokens.shape[1]
        return KeyLayout(queries - image - self.extra, self.extra, tokens)

    def text_in(self, block: BlockInfo) -> int:
        """Text tokens before the image in a block's own tensor."""
        return self.text if block.group.layout == JOINT else 0
