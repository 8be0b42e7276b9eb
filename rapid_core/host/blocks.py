"""Block hooks for residual reuse: measure what the block stack adds to the image tokens, or add a forecast of it.

Installed by `patches_replace["dit"]` on a run's own options. Outside compiled graphs: a compiled host model would
otherwise freeze the decision of its first call into the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..engine.forecast import Track

CALL = "rapid_call"  # key of the Call in a model call's transformer_options


@dataclass
class Call:
    """One model call: its rows are chunk * len(images) + position, `tracks` has one entry a chunk."""

    images: list[int]
    tracks: list[Track]
    sigma: float
    order: int
    reuse: bool
    entry: Tensor | None = None

    def forecast(self) -> Tensor:
        """Residuals of all rows, (rows, N, C)."""
        return torch.cat([track.forecast(self.images, self.sigma, self.order) for track in self.tracks])

    def remember(self, residual: Tensor) -> None:
        """Keep each row's residual; rows are cloned, so that none holds the others in memory."""
        for chunk, track in enumerate(self.tracks):
            for position, image in enumerate(self.images):
                track.add(image, self.sigma, residual[chunk * len(self.images) + position].clone())


def install(replace: dict, blocks: list[tuple[str, int]]) -> str | None:
    """Put the hooks into `patches_replace["dit"]`; returns the reason where a foreign patch holds a block."""
    foreign = [key for key in blocks if key in replace]
    if foreign:
        name, i = foreign[0]
        return f"another node replaced {name} {i}; its blocks cannot be passed over"
    for position, key in enumerate(blocks):
        replace[key] = partial(block_hook, position == 0, position == len(blocks) - 1)
    return None


@torch.compiler.disable()
def block_hook(first: bool, last: bool, args: dict, extra: dict) -> dict:
    """Run the block, or pass its input through; the last block of a passed-over stack adds the forecast."""
    original: Callable[[dict], dict] = extra["original_block"]
    call: Call | None = args["transformer_options"].get(CALL)
    if call is None:
        return original(args)
    if call.reuse:
        return _pass_through(call, last, args)
    if first:
        call.entry = args["img"].clone()  # blocks add to their input in place
    out = original(args)
    if last and call.entry is not None:
        text = out["img"].shape[1] - call.entry.shape[1]  # FLUX's single blocks carry text before image tokens
        call.remember(out["img"][:, text:] - call.entry)
        call.entry = None
    return out


def _pass_through(call: Call, last: bool, args: dict) -> dict:
    out = {"img": args["img"]}
    if "txt" in args:
        out["txt"] = args["txt"]
    if last:
        residual = call.forecast()
        text = args["img"].shape[1] - residual.shape[1]
        out["img"] = torch.cat((args["img"][:, :text], args["img"][:, text:] + residual.to(args["img"])), dim=1)
    return out
