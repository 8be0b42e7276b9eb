"""APPLY_MODEL: images of a batch are split by action, held rows get placeholders, and FLOPs are
counted."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..architectures import Architecture
from ..cost import CostModel
from ..engine.evaluation import Evaluation
from ..engine.kv import KVStore
from ..engine.run import RunState
from ..engine.sparse import BackendCheck, ResidualAccess, SparseAttention, SparseResidual, Tiles
from ..token_grid import TokenGrid
from ..types import FULL, Action, Mode, Sparsity
from . import blocks, control, features, sequence
from .slicing import NotSliceable, index, rows_of, take_rows
from .subset import TokenSubset


@dataclass
class SubBatch:
    """Images of one call that are computed alike: their rows and the arguments of those rows."""

    action: Action
    images: list[int]
    rows: list[int]
    x: Tensor
    t: Tensor
    arguments: dict
    tokens: Tensor | None = None  # (rows, K)

    @property
    def whole(self) -> bool:
        """Whether all tokens run."""
        return self.action.level is Mode.RUN and self.tokens is None


class ModelCalls:
    """Carries out one evaluation's decision in the one place that every architecture passes.

    Rows of a joined batch are chunk * B + image, a chunk being one condition. reuses: whether
    residuals are measured; looks: whether the first evaluation's modulation vector is wanted;
    store: keys and values, where a region policy is; sparsity: where a policy makes attention
    sparse; left_out: by how much that differs from dense attention."""

    def __init__(
        self,
        state: RunState,
        model: Any,
        architecture: Architecture | None,
        cost: CostModel | None,
        left_out: SparseResidual | None = None,
    ):
        self.state, self.model, self.architecture = state, model, architecture
        self.cost, self.left_out = cost, left_out
        self.reuses = self.looks = False
        self.positive: frozenset = frozenset()  # uuids of the conditions of that name
        self.store: KVStore | None = None
        self.sparsity: Sparsity | None = None
        self.dense_blocks: frozenset[int] = (
            frozenset()
        )  # numbers of blocks whose attention stays dense
        self.tiles: dict[tuple, Tiles] = {}  # by grid and device
        self.trust = BackendCheck()
        self.unsplit: str | None = (
            None  # why a call could not be split, which the next one need not try
        )
        self.mass_at = -1  # number of the block whose attention mass is measured

    def __call__(
        self,
        executor: Any,
        evaluation: Evaluation,
        x: Tensor,
        t: Tensor,
        arguments: dict,
        options: dict,
    ) -> Tensor:
        """One executor call per group of images with the same action."""
        streams = streams_of(options)
        repeated = any(evaluation.streams[s] for s in streams)
        evaluation.streams.update(streams)
        out = None
        for part in self._parts(evaluation, x, t, arguments, len(streams), repeated):
            result = self._run(executor, evaluation, part, options, repeated)
            if len(part.rows) == x.shape[0]:
                return result
            out = torch.zeros_like(x, dtype=result.dtype) if out is None else out
            out = out.index_copy(0, index(part.rows, x.device), result)
        return torch.zeros_like(x) if out is None else out

    def _parts(
        self,
        evaluation: Evaluation,
        x: Tensor,
        t: Tensor,
        arguments: dict,
        chunks: int,
        repeated: bool,
    ) -> list[SubBatch]:
        """Groups of images; everything at once where the batch cannot be split. The decision itself
        stays: other streams of this evaluation may already have obeyed it, and what was left out
        there is forecast."""
        groups: dict[tuple, list[int]] = {}
        for i, action in enumerate(evaluation.actions):
            if action.level is not Mode.SKIP:
                action = FULL if repeated and action.level is Mode.RUN else action
                count = None if action.tokens is None else len(action.tokens)
                groups.setdefault(
                    (action.level, count, action.density, action.measures), []
                ).append(i)
        try:
            return [
                self._part(
                    evaluation,
                    images,
                    x,
                    t,
                    arguments,
                    chunks,
                    Action(level, None, *attention),
                    count,
                )
                for (level, count, *attention), images in groups.items()
            ]
        except NotSliceable as error:
            self.unsplit = f"the batch cannot be split: {error}"
            evaluation.add_reason(self.unsplit)
            everything = list(range(self.state.batch))
            return [
                SubBatch(
                    FULL,
                    everything,
                    rows_of(everything, self.state.batch, chunks),
                    x,
                    t,
                    arguments,
                )
            ]

    def _part(
        self,
        evaluation: Evaluation,
        images: list[int],
        x: Tensor,
        t: Tensor,
        arguments: dict,
        chunks: int,
        action: Action,
        count: int | None,
    ) -> SubBatch:
        """Rows of `images`, all decided for `action`; count: tokens of each that run, None for
        all."""
        rows, total = rows_of(images, self.state.batch, chunks), x.shape[0]
        if len(rows) != total:
            where = index(rows, x.device)
            x, t, arguments = (
                x[where],
                take_rows(t, where, total),
                take_rows(arguments, where, total),
            )
        part = SubBatch(action, images, rows, x, t, arguments)
        if action.level is Mode.REUSE:
            part.arguments = {
                **arguments,
                "control": None,
            }  # its residuals are part of the block stack's
        elif count is not None:
            chosen = [evaluation.actions[i].tokens for i in images]
            part.tokens = torch.stack([c for c in chosen if c is not None]).repeat(chunks, 1)
            assert self.architecture is not None
            number = self.architecture.image_tokens(self.model, tuple(x.shape))
            residuals = control.narrowed(
                arguments["control"], part.tokens, number, self.architecture, self.model
            )
            part.arguments = {**arguments, "control": residuals}
        return part

    def _run(
        self, executor: Any, evaluation: Evaluation, part: SubBatch, options: dict, repeated: bool
    ) -> Tensor:
        streams, uuids, x = streams_of(options), options["uuids"], part.x
        context, level = part.arguments["c_crossattn"], part.action.level
        self.spend(
            evaluation,
            part.images,
            x,
            context,
            len(uuids),
            level,
            part.tokens,
            part.arguments["extra"],
        )
        call = None
        looks = self.looks and evaluation.index == 0
        alone = len(set(uuids)) == len(
            uuids
        )  # else it is not known which of two conditions was seen
        shown = self.state.features if part.whole and alone else None
        wanted = any(thing is not None for thing in (self.store, self.sparsity, shown))
        if not repeated and (self.reuses or looks or wanted):
            call = self._call(evaluation, part, streams)
            call.see = partial(self._see, part, uuids) if looks else None
            call.tap = (
                features.FeatureTap() if shown and tuple(x.shape[1:]) == shown.shape else None
            )
            options = {**options, blocks.CALL: call}
        out = call_model(executor, x, part.t, part.arguments, options)
        if shown and call is not None and call.tap is not None:
            features.keep(shown, call.tap, self.model, uuids, part.images)
        if self.store is not None and call is not None and part.whole and self._whole_latent(x):
            for stream in streams:
                self.store.complete(stream, part.images, (tuple(x.shape[1:]), str(x.device)))
        if call is not None and call.sparse is not None:
            evaluation.sparse_images.update(part.images if call.sparse.served else ())
            for i in part.images:
                evaluation.spent[i] -= call.sparse.saved / len(part.images)
        return out

    def _see(self, part: SubBatch, uuids: Sequence, vec: Tensor) -> None:
        """Keep the modulation vector (rows, ..., D) of each image's first positive condition for
        learned policies."""
        count, chunk = (
            len(part.images),
            next((n for n, uuid in enumerate(uuids) if uuid in self.positive), None),
        )
        if vec.shape[0] == len(part.rows) and chunk is not None:
            first = chunk * count
            for position, image in enumerate(part.images):
                self.state.pooled[image] = (
                    vec[first + position].float().reshape(-1, vec.shape[-1]).mean(0)
                )

    def _call(
        self, evaluation: Evaluation, part: SubBatch, streams: list[Hashable]
    ) -> blocks.ModelCall:
        key = (tuple(part.x.shape[1:]), str(part.x.device))
        tracks = [self.state.residual((stream, *key)) for stream in streams] if self.reuses else []
        call = blocks.ModelCall(
            part.images,
            tracks,
            evaluation.sigma,
            self.state.order,
            part.action.level is Mode.REUSE,
        )
        if call.reuse or self.architecture is None:
            return call
        grid = TokenGrid(tuple(part.x.shape[1:]), self.architecture.patch(self.model))
        padding = -grid.number % (getattr(self.model, "pad_tokens_multiple", None) or 1)
        call.sequence = sequence.Sequence(grid.number, padding)
        if self.store is not None and self._whole_latent(part.x):
            regions = self.state.regions
            for chunk, stream in enumerate(streams):
                count = len(part.images)
                tokens = (
                    None
                    if part.tokens is None
                    else part.tokens[chunk * count : (chunk + 1) * count]
                )
                self.store.tick(stream, part.images, evaluation.sigma, tokens, part.x.device)
            call.subset = TokenSubset(
                self.store, streams, part.images, call.sequence, part.tokens, regions, self.mass_at
            )
        measures = part.action.measures is not None and self.left_out is not None
        if self.sparsity is not None and (part.action.density < 1.0 or measures):
            keys = [(stream, *key) for stream in streams]
            call.sparse, call.dense_blocks = (
                self._sparse(evaluation, part, grid, keys),
                self.dense_blocks,
            )
        return call

    def _sparse(
        self, evaluation: Evaluation, part: SubBatch, grid: TokenGrid, streams: list
    ) -> SparseAttention:
        """Sparse attention over the tiles of a latent; what stays dense is a reason of the
        evaluation."""
        assert self.sparsity is not None
        key = (grid.size, str(part.x.device))
        if (
            key not in self.tiles
        ):  # here and not in every attention: a copy to the device waits for it
            self.tiles[key] = Tiles.of(grid.size, self.sparsity.tile).to(part.x.device)
        how, measures, density = (
            self.sparsity,
            part.action.measures,
            part.action.measures or part.action.density,
        )
        ledger = None
        if self.left_out is not None:
            ledger = ResidualAccess(
                self.left_out, streams, part.images, evaluation.sigma, density, measures is not None
            )
        return SparseAttention(
            self.tiles[key],
            density,
            how.backend,
            how.pooled,
            evaluation.add_reason,
            self.trust,
            ledger,
        )

    @property
    def bytes(self) -> int:
        """Memory of what is kept of attentions."""
        return sum(store.bytes for store in (self.store, self.left_out) if store is not None)

    def _whole_latent(self, x: Tensor) -> bool:
        """Whether a call sees the run's own latent; a condition with an area sees a part of it, and
        is dense."""
        regions = self.state.regions
        return regions is not None and tuple(x.shape[1:]) == regions.grid.shape

    def spend(
        self,
        evaluation: Evaluation,
        images: Iterable[int],
        x: Tensor,
        context: Any,
        chunks: int,
        level: Mode,
        tokens: Tensor | None = None,
        extra: dict | None = None,
    ) -> None:
        """Count the FLOPs of `chunks` conditions of these images. extra: the model's other
        arguments."""
        dense = spent = 1.0  # of an unknown architecture: calls are counted
        if self.architecture is not None and self.cost is not None:
            text = context.shape[1] if isinstance(context, Tensor) else 0
            references = self.architecture.reference_tokens(
                self.model, (extra or {}).get("ref_latents")
            )
            number = self.architecture.image_tokens(self.model, tuple(x.shape)) + references
            flops = self.cost.flops(number, text)
            dense = spent = float(flops.dense)
            if level is Mode.REUSE:
                spent = float(flops.reuse)
            elif tokens is not None:
                ran = tokens.shape[1]
                seen = None if self.store is None else self.store.seen(ran)
                seen = None if seen is None else seen + references
                spent = float(self.cost.flops(number, text, ran + references, seen=seen).dense)
        for i in images:
            evaluation.dense[i] += chunks * dense
            evaluation.spent[i] += chunks * spent


def streams_of(options: dict) -> list[Hashable]:
    """Conditioning streams of a call, one a chunk: place of its list (0: positive) and uuid. The
    uuid alone is not enough: for a condition with an area the host gives the other list a copy
    under the same one."""
    return list(zip(options["cond_or_uncond"], options["uuids"], strict=True))


def call_model(executor: Any, x: Tensor, t: Tensor, arguments: dict, options: dict) -> Tensor:
    """The host's own call with its arguments put together again."""
    first = (arguments[name] for name in ("c_concat", "c_crossattn", "control"))
    return executor(x, t, *first, options, **arguments["extra"])
