"""The one attention override of a run, chained to what another node set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .blocks import CALL

KEY = "optimized_attention_override"
POSITIONAL = (
    "heads",
    "mask",
    "attn_precision",
    "skip_reshape",
    "skip_output_reshape",
)  # after q, k, v


def install(transformer_options: dict) -> None:
    """Set the override; a foreign one becomes the attention that ours calls."""
    transformer_options[KEY] = partial(attend, transformer_options.get(KEY))


@torch.compiler.disable()
def attend(
    previous: Callable | None,
    func: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *args: Any,
    **named: Any,
):
    """Outside the blocks of a call of ours this is `previous`, or the host's attention `func`."""
    go = func if previous is None else partial(previous, func)
    call = (named.get("transformer_options") or {}).get(CALL)
    if call is None or call.sequence is None or call.sequence.place is None:
        return go(q, k, v, *args, **named)
    named = {**named, **dict(zip(POSITIONAL, args, strict=False))}
    return call.attend(go, q, k, v, named)
