"""The host's memory: what a run will take is announced before the loader fills the card, and what is
kept from inside a block stays out of the host's record of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

try:
    import comfy.model_prefetch as model_prefetch
except ImportError:  # ComfyUI 0.18 and older
    model_prefetch = None

Shape = tuple[int, ...]


def announced_shape(required: Callable[[Shape], float], shape: Shape, extra: int) -> Shape:
    """A shape of latents for which the host reckons about `extra` bytes more than for `shape`, and
    no less. The host's loader takes the memory of a run from the shape of its latents alone; a
    wider latent is the one way to announce more without touching the host.

    required: the host's estimate for a shape, linear in its last axis."""
    if extra <= 0:
        return shape
    width = shape[-1]
    here = required(shape)
    each = (required((*shape[:-1], 2 * width)) - here) / width
    if not (math.isfinite(each) and each > 0):
        return shape
    return (*shape[:-1], width + math.ceil(extra / each))


def unrecorded() -> AbstractContextManager:
    """What is allocated in it may outlive the block that runs. ComfyUI 0.38 and newer may record what
    a block allocates and expect all of it to be freed by the block's end; older ones record nothing."""
    pause = getattr(model_prefetch, "pause_malloc_graph", None)
    return nullcontext() if pause is None else pause()


class Announcement:
    """PREPARE_SAMPLING: the host loads models as if the latents were wider."""

    def __init__(self, extra: int):
        self.extra = extra

    def __call__(
        self, executor: Callable, model: Any, noise_shape: Any, conds: Any, *args: Any, **named: Any
    ) -> Any:
        """Host arguments: model, noise_shape, conds, and others by their names."""
        shape = tuple(noise_shape)

        def required(some: Shape) -> float:
            return float(model.model.memory_required([2 * some[0], *some[1:]]))

        return executor(model, announced_shape(required, shape, self.extra), conds, *args, **named)
