"""APPLY_MODEL: images of a batch are split by action, skipped rows get placeholders, and FLOPs are
counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..architectures import Architecture
from ..cost import CostModel
from ..engine.evaluation import Evaluation
from ..engine.kv import Cond, KVStore
from ..engine.run import Run
from ..engine.sparse import BackendCheck, ResidualAccess, SparseAttention, SparseResidual, Tiles
from ..reasons import ReasonCode
from ..token_grid import TokenGrid
from ..types import FULL, Action, Mode, Reason
from . import blocks, control
from .batch_rows import NotSliceable, index, rows_of, take_rows
from .features import FeatureTap, feature_tap
from .token_layout import TokenLayout
from .token_subset import TokenSubset


@dataclass(frozen=True)
class Arguments:
    """What the host calls the model with, apart from its options."""

    x: Tensor
    t: Tensor
    c_concat: Any
    c_crossattn: Any
    control: Any
    extra: dict[str, Any]

    def rows(self, where: Tensor, total: int) -> Arguments:
        """Some rows of everything that is batched. Raises NotSliceable."""
        return Arguments(
            self.x[where],
            *(
                take_rows(value, where, total)
                for value in (self.t, self.c_concat, self.c_crossattn, self.control, self.extra)
            ),
        )

    def call(self, executor: Callable[..., Tensor], options: dict) -> Tensor:
        """The host's own call."""
        return executor(
            self.x, self.t, self.c_concat, self.c_crossattn, self.control, options, **self.extra
        )

    @property
    def text_tokens(self) -> int:
        """Text tokens of a conditioning."""
        context = self.c_crossattn
        return context.shape[1] if isinstance(context, Tensor) else 0


@dataclass(frozen=True)
class SubBatch:
    """Images of one call that are computed alike: their rows, and the arguments of those rows."""

    action: Action
    """What is common to them; `tokens` is of each image."""
    images: list[int]
    rows: list[int]
    arguments: Arguments
    """As the host gave them."""
    control: Any
    """What ControlNets add: nothing where the blocks are passed over, to the tokens that run."""
    tokens: Tensor | None = None
    """(rows, K) image tokens that run; None for all."""

    @property
    def all_tokens(self) -> bool:
        """Whether all tokens run."""
        return self.action.mode is Mode.RUN and self.tokens is None

    @property
    def in_part(self) -> bool:
        """Whether the blocks are passed over, or run on some tokens."""
        return not self.all_tokens


class BatchedModel:
    """Carries out one evaluation's decision in the one place that every architecture passes. Rows
    of a joined batch are chunk * B + image, a chunk being one conditioning."""

    def __init__(
        self,
        run: Run,
        model: Any,
        architecture: Architecture | None,
        cost: CostModel | None,
        store: KVStore | None = None,
        residual: SparseResidual | None = None,
    ):
        self.run = run
        self.model = model
        self.architecture = architecture
        self.cost = cost
        self.store = store  # keys and values, where a policy chooses tokens
        self.residual = residual  # differences to dense attention, where they are kept
        self.tiles: dict[tuple, Tiles] = {}  # by grid and device
        self.backend_check = BackendCheck()
        self.hooked = False  # whether the host has called any hook of a block

    def __call__(
        self, executor: Callable, evaluation: Evaluation, arguments: Arguments, options: dict
    ) -> Tensor:
        """One executor call per group of images with the same action."""
        conds = conds_of(options)
        again = any(evaluation.cond_calls[cond] for cond in conds)
        evaluation.cond_calls.update(conds)
        if again:
            # A node calls the model once a tile, say: what is known of blocks is of other calls.
            refusals = self.run.refusals
            refusals.no_hooks = refusals.no_hooks or Reason(ReasonCode.CALLED_AGAIN)
        x = arguments.x
        out = None
        for part in self._parts(evaluation, arguments, conds, again):
            result = self._run(executor, evaluation, part, options, again)
            if len(part.rows) == x.shape[0]:
                return result
            out = torch.zeros_like(x, dtype=result.dtype) if out is None else out
            out = out.index_copy(0, index(part.rows, x.device), result)
        return torch.zeros_like(x) if out is None else out

    def _parts(
        self, evaluation: Evaluation, arguments: Arguments, conds: list[Cond], again: bool
    ) -> list[SubBatch]:
        """Groups of images; everything at once where the batch cannot be split. The decision itself
        stays: other conditionings of this evaluation may already have obeyed it, and what they
        skipped is predicted."""
        chunks = len(conds)
        groups: dict[tuple, list[int]] = {}
        for i, action in enumerate(evaluation.actions):
            if action.mode is Mode.SKIP:
                continue
            if again:
                action = FULL
            elif not self._can_obey(i, action, conds, arguments.x):
                action = Action(density=action.density)
            count = None if action.tokens is None else len(action.tokens)
            key = (action.mode, count, action.density, action.measured_density)
            groups.setdefault(key, []).append(i)
        try:
            return [
                self._part(evaluation, images, arguments, chunks, Action(mode, None, *attention), n)
                for (mode, n, *attention), images in groups.items()
            ]
        except NotSliceable as error:
            reason = Reason(ReasonCode.BATCH_NOT_SPLIT, why=error.reason)
            self.run.refusals.no_split = reason
            evaluation.add_reason(reason)
            batch = self.run.plan.batch
            everything = list(range(batch))
            rows = rows_of(everything, batch, chunks)
            return [SubBatch(FULL, everything, rows, arguments, arguments.control)]

    def _can_obey(self, image: int, action: Action, conds: Sequence[Cond], x: Tensor) -> bool:
        """Whether a call on latents x can pass an image's blocks over, or run them on some tokens:
        what is known of them may be of whole latents, and this call about a tile of one."""
        if action.mode is Mode.REUSE:
            residuals = self.run.images[image].residuals
            keys = [(cond, tuple(x.shape[1:]), str(x.device)) for cond in conds]
            return all(key in residuals and residuals[key].points for key in keys)
        return action.tokens is None or (self.store is not None and self._is_whole_latent(x))

    def _part(
        self,
        evaluation: Evaluation,
        images: list[int],
        arguments: Arguments,
        chunks: int,
        action: Action,
        count: int | None,
    ) -> SubBatch:
        """Rows of `images`, all decided for `action`; count: tokens of each that run, None for
        all."""
        total = arguments.x.shape[0]
        rows = rows_of(images, self.run.plan.batch, chunks)
        if len(rows) != total:
            arguments = arguments.rows(index(rows, arguments.x.device), total)
        if action.mode is Mode.REUSE:
            # A ControlNet's residuals are part of the blocks'.
            return SubBatch(action, images, rows, arguments, None)
        if count is None:
            return SubBatch(action, images, rows, arguments, arguments.control)
        chosen = [evaluation.actions[i].tokens for i in images]
        tokens = torch.stack([c for c in chosen if c is not None]).repeat(chunks, 1)
        assert self.architecture is not None
        number = self.architecture.image_tokens(self.model, self._image_shape(arguments.x))
        residuals = control.narrowed(
            arguments.control, tokens, number, self.architecture, self.model
        )
        return SubBatch(action, images, rows, arguments, residuals, tokens)

    def _run(
        self, executor: Callable, evaluation: Evaluation, part: SubBatch, options: dict, again: bool
    ) -> Tensor:
        conds = conds_of(options)
        x = part.arguments.x
        arguments = replace(part.arguments, control=part.control)
        if again:
            self._count_part(evaluation, part, len(conds))
            return arguments.call(executor, options)
        tap = feature_tap(
            self.run.tap,
            self.model,
            options["uuids"],
            part.images,
            tuple(x.shape[1:]),
            part.all_tokens,
        )
        plan = self.run.plan
        hooked = plan.reuses or self.store is not None or plan.attention is not None
        call = None
        hooking = options
        if hooked or tap is not None:
            call = self._call(evaluation, part, conds, tap)
            hooking = {**options, blocks.CALL: call}
        out = arguments.call(executor, hooking)
        reason = None if call is None else self._refused(call, part)
        if reason is not None:
            refusals = self.run.refusals
            refusals.no_hooks = refusals.no_hooks or reason
            evaluation.add_reason(reason)
            self.count(evaluation, part.images, part.arguments, len(conds))
            if part.tokens is None and part.control is part.arguments.control:
                return out
            # Some tokens may have passed some of the blocks, or without what a ControlNet adds.
            return part.arguments.call(executor, options)
        self._count_part(evaluation, part, len(conds))
        if part.in_part:
            evaluation.obeyed.update(part.images)
        if tap is not None:
            tap.end()
        if self.store is not None and part.all_tokens and self._is_whole_latent(x):
            for cond in conds:
                self.store.complete(cond, part.images, (tuple(x.shape[1:]), str(x.device)))
        if call is not None and call.sparse is not None:
            evaluation.sparse_images.update(part.images if call.sparse.served else ())
            for i in part.images:
                evaluation.cost[i] -= call.sparse.saved / len(part.images)
        return out

    def _refused(self, call: blocks.ModelCall, part: SubBatch) -> Reason | None:
        """Why the host computed all blocks of a call, whatever was asked for; None where it did as it was
        told. Where hooks were called before, another node's cache may have skipped this call."""
        self.hooked = self.hooked or call.hooked
        if call.hooked or not self.run.plan.hooks:
            return call.refused
        if part.in_part or not self.hooked:
            return Reason(ReasonCode.HOOKS_NOT_CALLED, model=type(self.model).__name__)
        return None

    def _count_part(self, evaluation: Evaluation, part: SubBatch, chunks: int) -> None:
        """Count the FLOPs of a part that was carried out as decided."""
        mode, tokens = part.action.mode, part.tokens
        self.count(evaluation, part.images, part.arguments, chunks, mode, tokens)

    def _call(
        self,
        evaluation: Evaluation,
        part: SubBatch,
        conds: list[Cond],
        tap: FeatureTap | None,
    ) -> blocks.ModelCall:
        x = part.arguments.x
        plan = self.run.plan
        key = (tuple(x.shape[1:]), str(x.device))
        images = [self.run.images[i] for i in part.images]
        sigmas = [evaluation.sigmas[i] for i in part.images]
        residuals = []
        if plan.reuses:
            residuals = [[image.residual((cond, *key)) for image in images] for cond in conds]
        call = blocks.ModelCall(
            residuals,
            sigmas,
            plan.prediction_order,
            part.action.mode is Mode.REUSE,
            tap=tap,
            model=type(self.model).__name__,
        )
        if call.reuse or self.architecture is None:
            return call
        grid = TokenGrid(self._image_shape(x)[1:], self.architecture.patch(self.model))
        padding = -grid.number % (getattr(self.model, "pad_tokens_multiple", None) or 1)
        call.layout = TokenLayout(grid.number, padding)
        if self.store is not None and self._is_whole_latent(x):
            for chunk, cond in enumerate(conds):
                count = len(part.images)
                rows = slice(chunk * count, (chunk + 1) * count)
                tokens = None if part.tokens is None else part.tokens[rows]
                self.store.tick(cond, part.images, sigmas, tokens, x.device)
            stats = [image.token_stats for image in images]
            call.subset = TokenSubset(
                self.store,
                conds,
                part.images,
                call.layout,
                part.tokens,
                stats,
                plan.mass_block,
                self.architecture.sharing(self.model),
            )
        measures = part.action.measured_density is not None and self.residual is not None
        if plan.attention is not None and (part.action.density < 1.0 or measures):
            call.sparse = self._sparse(evaluation, part, grid, [(cond, *key) for cond in conds])
            call.dense_blocks = plan.dense_blocks
        return call

    def _sparse(
        self, evaluation: Evaluation, part: SubBatch, grid: TokenGrid, conds: list
    ) -> SparseAttention:
        """Sparse attention over the tiles of a latent; what stays dense is a reason of the
        evaluation."""
        sparsity = self.run.plan.attention
        assert sparsity is not None
        device = part.arguments.x.device
        key = (grid.size, str(device))
        if key not in self.tiles:  # once a run, not in every attention
            self.tiles[key] = Tiles.of(grid.size, sparsity.tile).to(device)
        measured = part.action.measured_density
        density = measured or part.action.density
        access = None
        if self.residual is not None:
            sigmas = [evaluation.sigmas[i] for i in part.images]
            access = ResidualAccess(
                self.residual, conds, part.images, sigmas, density, measured is not None
            )
        return SparseAttention(
            self.tiles[key],
            density,
            sparsity.backend,
            sparsity.uses_means,
            evaluation.add_reason,
            self.backend_check,
            access,
        )

    @property
    def bytes(self) -> int:
        """Memory of what is kept of attentions."""
        return sum(store.bytes for store in (self.store, self.residual) if store is not None)

    def _is_whole_latent(self, x: Tensor) -> bool:
        """Whether a call sees the run's own latent; a conditioning with an area sees a part of it,
        and is computed in full."""
        grid = self.run.plan.grid
        return grid is not None and tuple(x.shape[1:]) == grid.latent

    def _image_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape (rows, C, [T,] H, W) of what the image tokens are cut from: of a packed latent the
        video's."""
        return (x.shape[0], *(self.run.plan.video or x.shape[1:]))

    def count(
        self,
        evaluation: Evaluation,
        images: Sequence[int],
        arguments: Arguments,
        chunks: int,
        mode: Mode = Mode.RUN,
        tokens: Tensor | None = None,
    ) -> None:
        """Count the FLOPs of `chunks` conditionings of these images; of an unknown architecture,
        calls are counted."""
        full = cost = 1.0
        if self.architecture is not None and self.cost is not None:
            references = self.architecture.reference_tokens(
                self.model, arguments.extra.get("ref_latents")
            )
            number = self.architecture.image_tokens(self.model, self._image_shape(arguments.x))
            number += references
            audio = self.run.plan.audio_tokens
            flops = self.cost.flops(number, arguments.text_tokens, audio=audio)
            full = cost = float(flops.full)
            if mode is Mode.REUSE:
                cost = float(flops.reuse)
            elif tokens is not None:
                ran = tokens.shape[1]
                seen = None if self.store is None else self.store.keys_seen(ran)
                seen = None if seen is None else seen + references
                partial = self.cost.flops(
                    number, arguments.text_tokens, ran + references, seen=seen, audio=audio
                )
                cost = float(partial.full)
        for i in images:
            evaluation.full_cost[i] += chunks * full
            evaluation.cost[i] += chunks * cost


def conds_of(options: dict) -> list[Cond]:
    """Conditionings of a call, one a chunk: place of the list (0: positive) and uuid. The uuid alone
    is not enough: for a conditioning with an area the host gives the other list a copy under the
    same one."""
    return list(zip(options["cond_or_uncond"], options["uuids"], strict=True))
