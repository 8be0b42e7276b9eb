"""Block hooks: measure or add the block stack's residual (reuse), or run the blocks on some tokens
(region).

Installed by `patches_replace["dit"]` on a run's own options, or, where a family has no such hook,
as object patches of the blocks' `forward`. Outside compiled graphs: a compiled host model would
otherwise freeze the decision of its first call into the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..architectures import TEXT, Architecture
from ..engine.history import History, clamp_fp16
from ..engine.sparse import KeyLayout, SparseAttention
from .block_table import BlockInfo, block_table
from .features import FeatureTap
from .sequence import Sequence
from .subset import TokenSubset

# Kinds of transformer_options["patches"] that act inside or between blocks.
BETWEEN = (
    "attn1_patch",
    "attn1_output_patch",
    "attn2_patch",
    "attn2_output_patch",
    "double_block",
    "single_block",
    "noise_refiner",
)
CALL = "rapid_call"  # key of the Call in a model call's transformer_options


@dataclass
class ModelCall:
    """One model call: its rows are chunk * len(images) + position, `tracks` has one entry a chunk.

    tracks: of residuals, empty where reuse is not installed. subset: tokens and K/V, where a region
    policy is. sparse, spared: how attention is sparse, and the blocks where it is dense all the
    same. see: where to show the modulation vector of the first block. witness: where to keep the
    tokens that enter and leave the blocks."""

    images: list[int]
    tracks: list[History]
    sigma: float
    order: int
    reuse: bool
    sequence: Sequence | None = None
    subset: TokenSubset | None = None
    sparse: SparseAttention | None = None
    dense_blocks: frozenset[int] = frozenset()
    entry: Tensor | None = None
    see: Callable[[Tensor], None] | None = None
    tap: FeatureTap | None = None

    def forecast(self) -> Tensor:
        """Residuals of all rows, (rows, N, C)."""
        return torch.cat(
            [track.forecast(self.images, self.sigma, self.order) for track in self.tracks]
        )

    def attend(
        self, go: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, named: dict
    ) -> Tensor:
        """One attention of the running block: its keys and values completed, its tiles chosen.
        `go`: the host's."""
        assert self.sequence is not None
        at, kind = self.sequence.attention()
        axis = 2 if named.get("skip_reshape") else 1
        if kind == TEXT or q.shape[axis] != k.shape[axis]:
            return go(q, k, v, **named)
        if self.sparse is not None and at[0] not in self.dense_blocks:
            go = partial(self.sparse, go, at=at)
        else:
            go = partial(_plainly, go)
        if self.subset is not None:
            return self.subset.attend(go, q, k, v, named, at, axis)
        return go(q, k, v, named, self.sequence.lay(q.shape[axis]))

    def remember(self, residual: Tensor, where: Tensor | None) -> None:
        """Keep each row's residual; rows are cloned, so that none holds the others in memory."""
        for chunk, track in enumerate(self.tracks):
            for position, image in enumerate(self.images):
                row = chunk * len(self.images) + position
                mask = None if where is None else where[row, :, None]
                track.add(image, self.sigma, residual[row].clone(), mask)


def _plainly(
    go: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, named: dict, lay: KeyLayout
) -> Tensor:
    """The host's own attention."""
    return go(q, k, v, **named)


def install(replace: dict, architecture: Architecture, model: Any) -> str | None:
    """Put the hooks into `patches_replace["dit"]`; returns the reason where a foreign patch holds a
    block."""
    found = {
        (place.group.name, i): place
        for (_, i), place in block_table(architecture, model).items()
        if place.group.name
    }
    foreign = [key for key in found if key in replace]
    if foreign:
        name, i = foreign[0]
        return f"another node replaced {name} {i}; its blocks cannot be changed"
    for key, place in found.items():
        replace[key] = partial(block_hook, place)
    return None


def foreign(transformer_options: dict) -> str | None:
    """Why neither some tokens nor the blocks' residual can stand for the blocks: patches of other
    nodes inside or between them, which address tokens by their place and are not part of the
    residual."""
    there = [name for name in BETWEEN if transformer_options.get("patches", {}).get(name)]
    return (
        f"another node patches the model's blocks ({', '.join(there)}); they are computed whole"
        if there
        else None
    )


@torch.compiler.disable()
def block_hook(place: BlockInfo, args: dict, extra: dict) -> dict:
    """Run the block on all or some tokens, or pass its input through; see `run_block`."""
    call: ModelCall | None = args["transformer_options"].get(CALL)
    original: Callable[[dict], dict] = extra["original_block"]
    return original(args) if call is None else run_block(call, place, args, original)


def run_block(
    call: ModelCall, place: BlockInfo, args: dict, original: Callable[[dict], dict]
) -> dict:
    """What a hook does in a call of ours; the last block of a passed-over stack adds the
    forecast."""
    if call.reuse and place.main:
        return _pass_through(call, place.last, args)
    measuring = bool(call.tracks) and place.main
    if measuring and place.first:
        call.entry = args["img"].clone()  # blocks add to their input in place
    if call.see is not None and place.main and place.first and isinstance(args.get("vec"), Tensor):
        call.see(args["vec"])
    if call.tap is not None and place.main:
        call.tap.enter(place, args)
    if call.sequence is not None:
        call.sequence.enter(place, args)
    out = original(args) if call.subset is None else call.subset.run(place, args, original)
    if call.sequence is not None:
        call.sequence.leave()
    if call.tap is not None and place.main:
        call.tap.leave(place, out)
    if measuring and place.last and call.entry is not None:
        _measure(call, place, out["img"])
    return out


def _measure(call: ModelCall, place: BlockInfo, img: Tensor) -> None:
    """Remember what the stack added to the image tokens; single blocks of FLUX carry text before
    them."""
    assert call.entry is not None
    text = img.shape[1] - call.entry.shape[1]
    where = None if call.subset is None else call.subset.ran(call.entry.shape[1], img.device)
    call.remember(clamp_fp16(img[:, text:] - call.entry), where)
    call.entry = None


def _pass_through(call: ModelCall, last: bool, args: dict) -> dict:
    out = {"img": args["img"]}
    if "txt" in args:
        out["txt"] = args["txt"]
    if last:
        residual = call.forecast()
        text = args["img"].shape[1] - residual.shape[1]
        image = clamp_fp16(args["img"][:, text:] + residual.to(args["img"]))
        out["img"] = torch.cat((args["img"][:, :text], image), dim=1)
    return out


class LayerHook:
    """A block's `forward`, where the host has no hook for it (NextDiT); stateless, as an object
    patch must be."""

    def __init__(self, original: Callable[..., Tensor], place: BlockInfo):
        self.original, self.place = original, place

    @torch.compiler.disable()
    def __call__(
        self, x: Tensor, x_mask: Any, freqs_cis: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        options = named.get("transformer_options") or {}
        call: ModelCall | None = options.get(CALL)
        if call is None:
            return self.original(x, x_mask, freqs_cis, *rest, **named)
        args = {"img": x, "pe": freqs_cis, "transformer_options": options}

        def run(a):
            return {"img": self.original(a["img"], x_mask, a["pe"], *rest, **named)}

        return run_block(call, self.place, args, run)["img"]


def layer_patches(architecture: Architecture, patcher: Any) -> dict[str, LayerHook]:
    """Object patches of a family without block hooks: name under the model -> forward. Another
    node's patch of the same `forward` is what ours calls."""
    patches = {}
    for (attribute, i), place in block_table(architecture, patcher.model.diffusion_model).items():
        if not place.group.name:
            name = f"diffusion_model.{attribute}.{i}.forward"
            forward = patcher.get_model_object(name)
            patches[name] = LayerHook(
                forward.original if isinstance(forward, LayerHook) else forward, place
            )
    return patches
