"""The one attention override of a run, chained to what another node set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .blocks import CALL, ModelCall

KEY = "optimized_attention_override"
# The host's arguments after q, k and v.
POSITIONAL = ("heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")


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
) -> Tensor:
    """Outside the blocks of a call of ours this is `previous`, or the host's attention `func`."""
    attention = func if previous is None else partial(previous, func)
    call: ModelCall | None = (named.get("transformer_options") or {}).get(CALL)
    if call is None or call.layout is None or call.layout.block is None:
        return attention(q, k, v, *args, **named)
    named = {**named, **dict(zip(POSITIONAL, args, strict=False))}
    return call.attend(attention, q, k, v, named)
