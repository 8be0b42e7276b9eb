"""A model's own tokens, for policies that look at them: as they enter the blocks, and as the final
layer's matrix sees them (TPDM, Ye et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architectures import SD3, Architecture
from ..engine.features import FeatureStore
from ..token_grid import TokenGrid
from ..types import FeatureSpec
from .block_table import BlockInfo
from .memory import MemoryEstimate

FAMILIES = (SD3.family,)  # whose final layer is known


@dataclass
class FeatureTap:
    """What passes the blocks of one model call: image tokens (rows, N, C) before the first and
    after the last block, and the modulation vector (rows, C)."""

    before: Tensor | None = None
    after: Tensor | None = None
    modulation: Tensor | None = None

    def enter(self, place: BlockInfo, args: dict) -> None:
        """A block begins; `args` are its arguments."""
        if place.first:
            self.before, self.modulation = (
                args["img"].clone(),
                args["vec"],
            )  # blocks may add to their input in place

    def leave(self, place: BlockInfo, out: dict) -> None:
        """A block has ended. Not cloned: what a ControlNet adds to the last block's tokens is added
        in place, and the final layer sees it."""
        if place.last:
            self.after = out["img"]


def unseen(
    view: FeatureSpec,
    architecture: Architecture | None,
    model: Any,
    shape: tuple[int, ...],
    guider: Any,
) -> str | None:
    """Why a policy cannot look at the tokens of a run on latents of this shape (B, C, H, W); None
    where it can."""
    family = architecture.family if architecture else type(model).__name__
    if family != view.family or family not in FAMILIES or architecture is None:
        return f"they are for {view.family}, this model is {family}"
    hidden, grid = (
        int(getattr(model, architecture.hidden)),
        TokenGrid(shape[1:], architecture.patch(model)).size,
    )
    if hidden != view.hidden:
        return f"their tokens are {view.hidden} wide, this model's {hidden}"
    if grid != (1, view.side, view.side):
        pixels = 8 * architecture.patch(model) * view.side
        return (
            f"they look at {view.side} x {view.side} tokens ({pixels} x {pixels} px), this latent has "
            f"{grid[1]} x {grid[2]}"
        )
    other = sorted(set(guider.conds) - {"positive", "negative"})
    return f"they do not know guidance with a condition named {other[0]}" if other else None


def watch(
    policies: tuple,
    architecture: Architecture | None,
    model: Any,
    shape: tuple[int, ...],
    guider: Any,
    room: MemoryEstimate,
) -> tuple[FeatureStore | None, str | None]:
    """A store for what the policies look at and what it takes in words, or why there is none;
    (None, None) where no policy looks."""
    view = next((p.view for p in reversed(policies) if getattr(p, "view", None)), None)
    if view is None:
        return None, None
    reason = unseen(view, architecture, model, shape, guider)
    if reason:
        return None, blind(view.kind, reason)
    each = view.side**2 * 2 * view.hidden
    _, said = room.within_limit(
        "tokens for heads", each * (room.rows * room.element + room.batch * 4), view.kind, 0.0
    )
    uuids = (
        [c.get("uuid") for c in guider.conds.get(name, ())] for name in ("positive", "negative")
    )
    return FeatureStore(view.kind, shape[1:], *uuids), said


def blind(kind: str, reason: str) -> str:
    """What a report says where heads cannot look."""
    return f"{kind} heads: {reason}; where they would decide, everything is computed"


def keep(store: FeatureStore, tap: FeatureTap, model: Any, uuids: list, images: list[int]) -> None:
    """Keep what a model call of these conditions and images showed; its rows are chunk *
    len(images) + position."""
    if tap.before is None or tap.after is None or tap.modulation is None:
        return
    last = model.final_layer
    shift, scale = last.adaLN_modulation(tap.modulation).chunk(2, 1)
    final = torch.addcmul(shift[:, None], last.norm_final(tap.after), 1 + scale[:, None])
    tokens = torch.cat((tap.before, final), 2)
    for chunk, uuid in enumerate(uuids):
        for position, image in enumerate(images):
            row = chunk * len(images) + position
            store.keep(image, uuid, tokens[row], tap.modulation[row])
