"""Settings of region-adaptive sampling that belong together."""

from __future__ import annotations

from torch import Tensor

from ...types import KVKind
from .policy import RegionPolicy


def per_token_error(
    threshold: float,
    keep_ratio: float = 0.75,
    kv: KVKind = KVKind.PREDICT,
    memory_limit: float = 0.0,
    focus: Tensor | None = None,
) -> RegionPolicy:
    """Every token is computed when its own error estimate reaches `threshold`, and nothing else
    decides."""
    return RegionPolicy(
        keep_ratio=keep_ratio,
        warm_up=0.0,
        tail=0.03,
        refresh_interval=0,
        error_threshold=threshold,
        kv=kv,
        memory_limit=memory_limit,
        focus=focus,
    )


def paper(
    family: str, keep_ratio: float, memory_limit: float = 0.0, focus: Tensor | None = None
) -> RegionPolicy:
    """The published schedules: 28 steps of SD3 (start 4, resets 12 and 20) or 30 of Lumina-Next (4,
    12 and 22), which later models of the name share.

    Metric, last value and starvation as in the paper; other families take SD3's. Lumina's share
    falls over the run, from 0.6875 to 0.3125 at a keep_ratio of 0.5 (its skip list grows by 256 of
    4,096 tokens every 4 steps). Starvation has the sign of the paper's text, not that of its code,
    which lets neglected tokens starve."""
    if family in ("lumina_next", "lumina2", "z_image"):
        steps = 30
        resets = (12, 22)
        slope = 0.375
    else:
        steps = 28
        resets = (12, 20)
        slope = 0.0
    return RegionPolicy(
        keep_ratio=keep_ratio,
        warm_up=4 / steps,
        tail=0.0,
        refresh_interval=0,
        resets=tuple(r / steps for r in resets),
        metric="std",
        direction="low",
        starvation=0.1,
        slope=slope,
        inactive="last value",
        aim=None,
        kv=KVKind.LAST_VALUE,
        memory_limit=memory_limit,
        focus=focus,
    )
