"""Where a model call stands, and how the tokens of its attentions lie: [text | image | extra]."""

from __future__ import annotations

from torch import Tensor

from ..architectures import ALONE, APART, IMAGE, JOINT
from ..engine.sparse import KeyLayout
from .block_table import BlockInfo


class Sequence:
    """Tokens of one model call. number: image tokens of the latent; padding: tokens the model
    itself appends. text and extra, tokens before and after the image, and `length`, of the whole
    attention, are measured at the first block."""

    def __init__(self, number: int, padding: int = 0):
        self.number, self.padding = number, padding
        self.text = self.extra = self.length = 0
        self.place: BlockInfo | None = None  # the block that is running
        self.nth = 0  # attentions of it that have been

    def enter(self, place: BlockInfo, args: dict) -> None:
        """A block begins; `args` are its arguments."""
        if place.first:
            self._measure(place, args)
        self.place, self.nth = place, 0

    def leave(self) -> None:
        """The block has ended."""
        self.place = None

    def attention(self) -> tuple[tuple[int, int], str]:
        """(block, n-th attention in it) and kind of the attention that is being called."""
        assert self.place is not None
        nth, kinds = self.nth, self.place.group.attentions
        self.nth += 1
        return (self.place.number, nth), kinds[nth] if nth < len(
            kinds
        ) else IMAGE  # SD3.5 medium's second attention

    def lay(self, queries: int, tokens: Tensor | None = None) -> KeyLayout:
        """How the keys of an attention lie; `tokens` (rows, K) of the image are among its
        `queries`, all if None."""
        text = queries - (self.number if tokens is None else tokens.shape[1]) - self.extra
        return KeyLayout(text, self.extra, tokens)

    def before(self, place: BlockInfo) -> int:
        """Text tokens before the image in a block's own tensor."""
        return self.text if place.group.layout == JOINT else 0

    def _measure(self, place: BlockInfo, args: dict) -> None:
        length = args["img"].shape[1]
        if place.group.layout == APART:
            self.text, self.extra = args["txt"].shape[1], length - self.number
        elif place.group.layout == ALONE:
            self.text, self.extra = 0, length - self.number
        else:
            self.text, self.extra = length - self.number - self.padding, self.padding
        if self.text < 0 or self.extra < 0:
            raise RuntimeError(
                f"RAPID: {length} tokens arrived where {self.number} image tokens were expected"
            )
        self.length = self.text + self.number + self.extra
