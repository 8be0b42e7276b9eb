"""What the host shows of a model's insides to learned heads: the modulation vector of the first
block and, for heads that look at tokens (TPDM, Ye et al. 2024), the image tokens as they enter the
blocks and as the final layer's matrix sees them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..architectures import SD3, Architecture
from ..engine.tap import FeatureStore, Tap
from ..reasons import ReasonCode
from ..token_grid import TokenGrid
from ..types import FeatureSpec, Reason
from .block_table import BlockInfo

FAMILIES = (SD3.family,)  # whose final layer is known
PIXELS = 8  # of a picture to a pixel of its latent


class FeatureTap:
    """What the tap of a run sees of one model call, whose rows are chunk * len(images) + position.

    uuids: of the conditions, one a chunk. tokens: whether tokens are kept."""

    def __init__(
        self,
        tap: Tap,
        model: Any,
        uuids: Sequence[Hashable],
        images: Sequence[int],
        tokens: bool,
    ) -> None:
        self.tap = tap
        self.model = model
        self.uuids = uuids
        self.images = images
        self.tokens = tokens
        self.before: Tensor | None = None  # (rows, N, C) into the first block
        self.after: Tensor | None = None  # (rows, N, C) out of the last block
        self.modulation: Tensor | None = None  # (rows, C)

    def enter(self, block: BlockInfo, args: dict) -> None:
        """A block begins; `args` are its arguments."""
        if not (block.main and block.first):
            return
        vector = args.get("vec")
        if isinstance(vector, Tensor):
            self._see_modulation(vector)
        if self.tokens:
            self.before = args["img"].clone()  # blocks may add to their input in place
            self.modulation = args["vec"]

    def leave(self, block: BlockInfo, out: dict) -> None:
        """A block has ended. Not cloned: what a ControlNet adds to the last block's tokens is added
        in place, and the final layer sees it."""
        if self.tokens and block.main and block.last:
            self.after = out["img"]

    def end(self) -> None:
        """The call is over: keep the tokens that it showed."""
        if self.before is None or self.after is None or self.modulation is None:
            return
        assert self.tap.features is not None
        layer = self.model.final_layer
        shift, scale = layer.adaLN_modulation(self.modulation).chunk(2, 1)
        final = torch.addcmul(shift[:, None], layer.norm_final(self.after), 1 + scale[:, None])
        tokens = torch.cat((self.before, final), 2)
        for chunk, uuid in enumerate(self.uuids):
            for position, image in enumerate(self.images):
                row = chunk * len(self.images) + position
                self.tap.features.add(image, uuid, tokens[row], self.modulation[row])

    def _see_modulation(self, vector: Tensor) -> None:
        """Show the tap the modulation vector (rows, ..., D) of each image's first positive
        condition."""
        if not self.tap.wants_modulation or len(vector) != len(self.uuids) * len(self.images):
            return
        positive = (n for n, uuid in enumerate(self.uuids) if uuid in self.tap.positive)
        chunk = next(positive, None)
        if chunk is None:
            return
        for position, image in enumerate(self.images):
            self.tap.see_modulation(image, vector[chunk * len(self.images) + position])


def feature_tap(
    tap: Tap | None,
    model: Any,
    uuids: Sequence[Hashable],
    images: Sequence[int],
    shape: tuple[int, ...],
    all_tokens: bool,
) -> FeatureTap | None:
    """For a model call of these conditions and images, on latents of a shape (C, ...); None where
    there is nothing to see. all_tokens: whether all of them run."""
    if tap is None:
        return None
    # Of two chunks with the same uuid it is not known which condition was seen.
    told_apart = len(set(uuids)) == len(uuids)
    store = tap.features
    tokens = store is not None and all_tokens and told_apart and shape == store.shape
    if not tokens and not tap.wants_modulation:
        return None
    return FeatureTap(tap, model, uuids, images, tokens)


def make_tap(
    spec: FeatureSpec | None, shape: tuple[int, ...], conds: Mapping[str, Sequence[dict]]
) -> Tap:
    """The tap of a run on latents of this shape (B, C, ...) with a guider's conditions, by name;
    spec: of the tokens that heads look at, None where they look at none."""
    uuids = {name: [cond.get("uuid") for cond in some] for name, some in conds.items()}
    positive = uuids.get("positive", [])
    if spec is None:
        return Tap(positive)
    store = FeatureStore(spec.kind, shape[1:], positive, uuids.get("negative", []))
    return Tap(positive, store)


def why_blind(
    spec: FeatureSpec,
    architecture: Architecture | None,
    model: Any,
    shape: tuple[int, ...],
    guider: Any,
) -> Reason | None:
    """Why heads cannot look at the tokens of a run on latents of this shape (B, C, H, W); None
    where they can."""
    family = type(model).__name__ if architecture is None else architecture.family
    if architecture is None or family != spec.family or family not in FAMILIES:
        return Reason(ReasonCode.HEADS_OTHER_FAMILY, family=spec.family, model=family)
    hidden = architecture.width(model)
    if hidden != spec.hidden:
        return Reason(ReasonCode.HEADS_OTHER_WIDTH, width=spec.hidden, model=hidden)
    patch = architecture.patch(model)
    frames, rows, columns = TokenGrid(shape[1:], patch).size
    if (frames, rows, columns) != (1, spec.side, spec.side):
        return Reason(
            ReasonCode.HEADS_OTHER_SIZE,
            side=spec.side,
            pixels=PIXELS * patch * spec.side,
            rows=rows,
            columns=columns,
        )
    others = sorted(set(guider.conds) - {"positive", "negative"})
    return Reason(ReasonCode.HEADS_OTHER_COND, name=others[0]) if others else None
