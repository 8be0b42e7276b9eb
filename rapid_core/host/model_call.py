"""APPLY_MODEL: images of a batch are split by level, held rows get placeholders, and FLOPs are counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..actions import Level
from ..architectures import Architecture
from ..engine.state import Evaluation, RunState
from . import blocks
from .slicing import NotSliceable, index, rows_of, take_rows


class ModelCalls:
    """Carries out one evaluation's decision in the one place that every architecture passes.

    Rows of a joined batch are chunk * B + image, a chunk being one condition."""

    def __init__(self, state: RunState, model: Any, architecture: Architecture | None):
        self.state, self.model, self.architecture = state, model, architecture
        self.reuses = False  # whether block hooks are installed

    def __call__(
        self, executor: Any, evaluation: Evaluation, x: Tensor, t: Tensor, arguments: dict, options: dict
    ) -> Tensor:
        """One executor call per group of images with the same level."""
        uuids, batch = options["uuids"], self.state.batch
        repeated = any(evaluation.streams[u] for u in uuids)
        evaluation.streams.update(uuids)
        groups = {level: evaluation.images(level) for level in (Level.RUN, Level.REUSE)}
        try:
            parts = {
                level: (images, *self._sliced(x, t, arguments, rows_of(images, batch, len(uuids))))
                for level, images in groups.items()
                if images
            }
        except NotSliceable as error:
            evaluation.fall_back(f"the batch cannot be split: {error}")
            everything = list(range(batch))
            parts = {Level.RUN: (everything, rows_of(everything, batch, len(uuids)), x, t, arguments)}
        out = None
        for level, (images, rows, *call) in parts.items():
            result = self._group(executor, evaluation, level, images, *call, options, repeated)
            if len(rows) == x.shape[0]:
                return result
            out = torch.zeros_like(x, dtype=result.dtype) if out is None else out
            out = out.index_copy(0, index(rows, x.device), result)
        return out

    def _sliced(self, x: Tensor, t: Tensor, arguments: dict, rows: list[int]) -> tuple:
        total = x.shape[0]
        if len(rows) == total:
            return rows, x, t, arguments
        where = index(rows, x.device)
        return rows, x[where], take_rows(t, where, total), take_rows(arguments, where, total)

    def _group(
        self, executor: Any, evaluation: Evaluation, level: Level, images: list[int], x: Tensor, t: Tensor,
        arguments: dict, options: dict, repeated: bool,
    ) -> Tensor:
        uuids = options["uuids"]
        self.spend(evaluation, images, x, arguments["c_crossattn"], len(uuids), level)
        if self.reuses and not repeated:
            key = (tuple(x.shape[1:]), str(x.device))
            tracks = [self.state.residual((uuid, *key)) for uuid in uuids]
            call = blocks.Call(images, tracks, evaluation.sigma, self.state.order, level is Level.REUSE)
            options = {**options, blocks.CALL: call}
        if level is Level.REUSE:
            arguments = {**arguments, "control": None}  # its residuals are part of the block stack's
        return call_model(executor, x, t, arguments, options)

    def spend(
        self, evaluation: Evaluation, images: Iterable[int], x: Tensor, context: Any, chunks: int, level: Level
    ) -> None:
        """Count the FLOPs of `chunks` conditions of these images."""
        dense = reuse = 1.0  # of an unknown architecture: calls are counted
        if self.architecture is not None:
            text = context.shape[1] if isinstance(context, Tensor) else 0
            flops = self.architecture.flops(self.model, self.architecture.image_tokens(tuple(x.shape)), text)
            dense, reuse = float(flops.dense), float(flops.reuse)
        for i in images:
            evaluation.dense[i] += chunks * dense
            evaluation.spent[i] += chunks * (reuse if level is Level.REUSE else dense)


def call_model(executor: Any, x: Tensor, t: Tensor, arguments: dict, options: dict) -> Tensor:
    """The host's own call with its arguments put together again."""
    first = (arguments[name] for name in ("c_concat", "c_crossattn", "control"))
    return executor(x, t, *first, options, **arguments["extra"])
