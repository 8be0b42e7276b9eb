"""Where a model call stands, and how the tokens of its attentions lie: [text | image | extra]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..architectures import APART, IMAGE, IMAGE_FIRST, JOINT
from ..engine.sparse import KeyLayout
from .block_table import BlockInfo


class TokenLayout:
    """Tokens of one model call.

    image: image tokens of the latent; padding: tokens that the model itself appends. Text and extra
    tokens, which stand before and after the image, are counted at the first block. Text that stands
    after the image is among the extra ones."""

    def __init__(self, image: int, padding: int = 0):
        self.image = image
        self.padding = padding
        self.text = 0
        self.extra = 0
        self.length = 0  # of the whole attention
        self.block: BlockInfo | None = None  # that is running
        self._attentions = 0  # of it that have been
        self._own = 0  # tokens after the image in a block's own tensor

    def counted(self, block: BlockInfo, args: dict[str, Any]) -> tuple[int, int, int]:
        """At a stack's first block, whose arguments are `args`: text tokens before the image, tokens
        after it in the block's own tensor, and those in the attention. One of the first two is below
        zero where fewer tokens arrive than are expected."""
        length, layout = args["img"].shape[1], block.group.layout
        if layout == JOINT:
            return length - self.image - self.padding, self.padding, self.padding
        text = args["txt"].shape[1] if layout == APART else 0
        own = length - self.image
        return text, own, own + (args["txt"].shape[1] if layout == IMAGE_FIRST else 0)

    def enter(self, block: BlockInfo, args: dict[str, Any]) -> None:
        """A block begins, whose tokens fit; `args` are its arguments."""
        if block.first:
            self.text, self._own, self.extra = self.counted(block, args)
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

    def extra_in(self, block: BlockInfo) -> int:
        """Tokens after the image in a block's own tensor."""
        return self._own if block.group.layout == IMAGE_FIRST else self.extra
