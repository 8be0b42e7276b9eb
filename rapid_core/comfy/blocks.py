"""Block hooks: measure or add the blocks' residual (reuse), or run the blocks on some tokens
(region).

Installed by `patches_replace["dit"]` on a run's own options, or, where a family has no such hook,
as object patches of the blocks' `forward`. Outside compiled graphs: a compiled host model would
otherwise freeze the decision of its first call into the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..architectures import BOTH, IMAGE, Architecture
from ..engine.history import History, clamp_half
from ..engine.sparse import KeyLayout, SparseAttention
from ..reasons import ReasonCode
from ..types import Reason
from .block_forms import HOOKED, PATCHED, BlockCall
from .block_table import BlockInfo, block_table
from .features import FeatureTap
from .memory import unrecorded
from .token_layout import TokenLayout
from .token_subset import TokenSubset, take

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
CALL = "rapid_call"  # key of the ModelCall in a call's transformer_options


@dataclass
class ModelCall:
    """What the hooks do in one model call; its rows are chunk * number of images + position."""

    residuals: list[list[History]] = field(default_factory=list)
    """Of each chunk and image, where reuse is installed; else empty."""
    sigmas: Sequence[float] = ()
    """Of each image."""
    order: int = 0
    """Of predictions."""
    reuse: bool = False
    """Whether the blocks are passed over."""
    layout: TokenLayout | None = None
    subset: TokenSubset | None = None
    """Tokens, keys and values, where a policy chooses tokens."""
    sparse: SparseAttention | None = None
    dense_blocks: frozenset[int] = frozenset()
    """Blocks whose attention is dense all the same."""
    tap: FeatureTap | None = None
    """Where learned heads look at what enters and leaves the blocks."""
    model: str = ""
    """Its class, to be named."""
    entry: list[Tensor] = field(default_factory=list)
    """Image tokens before the blocks, and those of the sound, while a residual is measured or
    added."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What a block form remembers of earlier blocks."""
    hooked: bool = False
    """Whether the host has called a hook of a block."""
    refused: Reason | None = None
    """Why the blocks are computed as the host would, whatever was asked for."""

    def predicted_residual(self) -> Tensor:
        """Residuals of all rows, (rows, N, C); of several tensors one after the other, (rows,
        numbers)."""
        return torch.stack(
            [
                history.predict(sigma, self.order)
                for chunk in self.residuals
                for history, sigma in zip(chunk, self.sigmas, strict=True)
            ]
        )

    def misfit(self, block: BlockInfo, args: dict) -> Reason | None:
        """Why what is known of the blocks is not about the tokens that arrive at the first one of a
        stack: another node has taken some out (FLUX.2's KV cache those of references, token merging
        those that are alike)."""
        if self.layout is not None:
            text, own, extra = self.layout.counted(block, args)
            follows = self.subset is None or not block.main or self.subset.follows(extra)
            if text < 0 or own < 0 or not follows:
                return Reason(ReasonCode.TOKENS_MISSING)
        known = {
            len(point.value)
            for chunk in self.residuals
            for history in chunk
            for point in history.points
        }
        image, *others = _streams(args)
        given = sum(tensor[0].numel() for tensor in (image, *others)) if others else image.shape[1]
        if block.main and known - {given}:
            return Reason(ReasonCode.TOKENS_MISSING)
        return None

    def refuse(self, reason: Reason) -> None:
        """From here on the blocks are computed as the host would, and nothing is kept of them."""
        self.refused = reason
        self.residuals = []
        self.reuse = False
        self.layout = None
        self.subset = None
        self.sparse = None
        self.tap = None
        self.entry = []

    def remember(self, residual: Tensor, where: Tensor | None) -> None:
        """Keep each row's residual; rows are cloned, so that none holds the others in memory."""
        row = 0
        for chunk in self.residuals:
            for history, sigma in zip(chunk, self.sigmas, strict=True):
                mask = None if where is None else where[row, :, None]
                history.add(sigma, residual[row].clone(), mask)
                row += 1

    def attend(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, named: dict
    ) -> Tensor:
        """One attention of the running block: its keys and values completed, its tiles chosen.
        attention: the host's."""
        assert self.layout is not None
        at, kind = self.layout.attention()
        axis = 2 if named.get("skip_reshape") else 1
        own = kind in (IMAGE, BOTH) and q.shape[axis] == k.shape[axis]
        if not own:
            return attention(q, k, v, **named)
        if self.sparse is not None and at[0] not in self.dense_blocks:
            inner = partial(self.sparse, attention, at=at)
        else:
            inner = partial(_dense, attention)
        if self.subset is not None:
            return self.subset.attend(inner, q, k, v, named, at, axis)
        return inner(q, k, v, named, self.layout.keys(q.shape[axis]))


def _dense(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    named: dict,
    layout: KeyLayout,
) -> Tensor:
    """The host's own attention; how the keys lie does not matter to it."""
    del layout
    return attention(q, k, v, **named)


def foreign_block(replace: dict, architecture: Architecture, model: Any) -> Reason | None:
    """Why blocks cannot be hooked: another node's replacement holds one."""
    for block, i in _hooked(architecture, model):
        if (block, i) in replace:
            return Reason(ReasonCode.BLOCK_REPLACED, block=f"{block} {i}")
    return None


def install(replace: dict, architecture: Architecture, model: Any) -> None:
    """Put the hooks into `patches_replace["dit"]`."""
    for key, block in _hooked(architecture, model).items():
        replace[key] = partial(block_hook, block)


def _hooked(architecture: Architecture, model: Any) -> dict[tuple[str, int], BlockInfo]:
    """Blocks that the host has hooks for, by the hooks' keys."""
    return {
        (block.group.name, i): block
        for (_, i), block in block_table(architecture, model).items()
        if block.group.name
    }


def foreign_patches(transformer_options: dict) -> Reason | None:
    """Why neither some tokens nor the blocks' residual can stand for the blocks: patches of other
    nodes inside or between them, which address tokens by their place and are not part of the
    residual."""
    patches = [name for name in BETWEEN if transformer_options.get("patches", {}).get(name)]
    return Reason(ReasonCode.BLOCKS_PATCHED, patches=", ".join(patches)) if patches else None


@torch.compiler.disable()
def block_hook(block: BlockInfo, args: dict, extra: dict) -> dict:
    """Run the block on all or some tokens, or pass its input through; see `run_block`."""
    call: ModelCall | None = args["transformer_options"].get(CALL)
    original: Callable[[dict], dict] = extra["original_block"]
    form = _read(call, partial(HOOKED[block.group.form], args, original))
    if form is None:
        return original(args)
    return form.finish(form.run(form.args) if call is None else run_block(call, block, form))


def _read(call: ModelCall | None, make: Callable[[], BlockCall]) -> BlockCall | None:
    """How the host calls a block; None where it does so in a way that is not known."""
    try:
        return make()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if call is not None:
            why = f"{type(error).__name__}: {error}"
            call.hooked = True
            call.refuse(Reason(ReasonCode.BLOCKS_UNREAD, model=call.model, error=why))
        return None


def run_block(call: ModelCall, block: BlockInfo, form: BlockCall) -> dict:
    """What a hook does in a call of ours; the last block of a reused stack adds the prediction. Residuals,
    keys and values, and what heads see are kept from inside the block."""
    with unrecorded():
        return _run_block(call, block, form.args, form.run)


def _run_block(
    call: ModelCall, block: BlockInfo, args: dict, original: Callable[[dict], dict]
) -> dict:
    call.hooked = True
    reason = call.misfit(block, args) if block.first else None
    if reason is not None:
        call.refuse(reason)
    if block.main and block.first and (call.reuse or call.residuals):
        # Blocks add to their input in place, and some models to what blocks give.
        call.entry = [tensor.clone() for tensor in _streams(args)]
    if call.reuse and block.main:
        return _pass_through(call, block.last, args)
    if call.tap is not None:
        call.tap.enter(block, args)
    if call.layout is not None:
        call.layout.enter(block, args)
    out = original(args) if call.subset is None else call.subset.run(block, args, original)
    if call.layout is not None:
        call.layout.leave()
    if call.tap is not None:
        call.tap.leave(block, out)
    if call.entry and block.main and block.last:
        _measure(call, out)
    return out


def _streams(args: dict) -> list[Tensor]:
    """Tensors that blocks pass on and reuse adds to: the image's, and the sound's, if any."""
    return [args["img"], *args.get("others", ())]


def _measure(call: ModelCall, out: dict) -> None:
    """Remember what the stack added to its tokens; single blocks of FLUX carry text before those of
    the image."""
    image, *others = call.entry
    text = out["img"].shape[1] - image.shape[1]
    where = None if call.subset is None else call.subset.ran(image.shape[1], image.device)
    ends = [out["img"][:, text:], *out.get("others", ())]
    added = [clamp_half(end - start) for end, start in zip(ends, call.entry, strict=True)]
    if others:
        added = [torch.cat([one.flatten(1) for one in added], dim=1)]
    call.remember(added[0], where)
    call.entry = []


def _pass_through(call: ModelCall, last: bool, args: dict) -> dict:
    out = {name: args[name] for name in ("img", "txt", "others") if name in args}
    if not last:
        return out
    residual = call.predicted_residual()
    if residual.ndim == 2:  # of several tensors
        sizes = [tensor[0].numel() for tensor in call.entry]
        added = [
            part.view_as(tensor)
            for part, tensor in zip(residual.split(sizes, dim=1), call.entry, strict=True)
        ]
    else:
        added = [residual]
    image, *others = (
        clamp_half(start + part.to(start)) for start, part in zip(call.entry, added, strict=True)
    )
    text = args["img"].shape[1] - image.shape[1]
    out["img"] = image if text == 0 else torch.cat((args["img"][:, :text], image), dim=1)
    if others:
        out["others"] = tuple(others)
    call.entry = []
    return out


class LayerHook:
    """A block's `forward`, where the host has no hook for it (NextDiT); stateless, as an object
    patch must be."""

    def __init__(self, original: Callable[..., Any], block: BlockInfo | None = None):
        self.original = original
        self.block = block

    @torch.compiler.disable()
    def __call__(self, *given: Any, **named: Any) -> Any:
        options = named.get("transformer_options") or {}
        call: ModelCall | None = options.get(CALL)
        if call is None:
            return self.original(*given, **named)
        return self.within(call, given, named)

    def within(self, call: ModelCall, given: tuple, named: dict) -> Any:
        """The block in a call of ours."""
        assert self.block is not None
        make = PATCHED[self.block.group.form]
        form = _read(call, partial(make, self.original, given, named, call.kept))
        if form is None:
            return self.original(*given, **named)
        return form.finish(run_block(call, self.block, form))


class BesideHook(LayerHook):
    """A block whose output the host adds to the tokens between the others (Wan VACE): nothing where
    they are passed over, and that of the tokens that run where only some do."""

    def within(self, call: ModelCall, given: tuple, named: dict) -> Any:
        """given: its own tokens (rows, N, C), then the image's."""
        if call.reuse:
            own = given[0] if given else named["c"]
            return own.new_zeros(1), own
        added, own = self.original(*given, **named)
        rows = None if call.subset is None else call.subset.rows_between()
        return (added if rows is None else take(added, rows)), own


def layer_patches(architecture: Architecture, patcher: Any) -> dict[str, LayerHook]:
    """Object patches of blocks without hooks: name under the model -> forward. Another node's patch
    of the same `forward` is what ours calls."""
    patches = {}
    model = patcher.model.diffusion_model
    for (attribute, i), block in block_table(architecture, model).items():
        if not block.group.name:
            name, original = _forward(patcher, attribute, i)
            patches[name] = LayerHook(original, block)
    for i in range(len(getattr(model, architecture.beside or "-", ()))):
        name, original = _forward(patcher, architecture.beside, i)
        patches[name] = BesideHook(original)
    return patches


def _forward(patcher: Any, attribute: str, i: int) -> tuple[str, Callable[..., Any]]:
    """Name and `forward` of a block, without our hook."""
    name = f"diffusion_model.{attribute}.{i}.forward"
    forward = patcher.get_model_object(name)
    return name, forward.original if isinstance(forward, LayerHook) else forward
