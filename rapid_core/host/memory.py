"""Memory of a run, counted before it is taken."""

from __future__ import annotations

from typing import Any

from ..cost import CostModel
from ..engine.kv import KVStore, bytes_of
from ..engine.regions import Regions


def key_store(policy: Any, cost: CostModel, regions: Regions, guider: Any, batch: int) -> tuple[KVStore | None, str]:
    """A store for the keys and values of a region policy, and what it takes in words; None where that is more than
    the policy allows."""
    conditions = [c for name, slot in guider.conds.items() for c in slot if name != "negative" or guider.cfg != 1]
    text = max((c["cross_attn"].shape[1] for c in conditions if c.get("cross_attn") is not None), default=0)
    base = guider.model_patcher.model
    element = (getattr(base, "manual_cast_dtype", None) or base.get_dtype()).itemsize
    references = max((cost.architecture.reference_tokens(base.diffusion_model, c.get("reference_latents"))
                      for c in conditions), default=0)  # fmt: skip
    rows, tokens = len(conditions) * batch, regions.grid.number + text + references
    needed = bytes_of(policy.kv_cache, tokens, cost.hidden, cost.cached_attentions, rows, element)
    said = f"keys and values: {needed / 2**20:.0f} MiB ({policy.kv_cache}), {len(conditions)} conditions"
    if policy.memory_limit and needed > policy.memory_limit * 2**30:
        return None, f"{said}, more than memory_limit = {policy.memory_limit:g} GiB: all tokens are computed"
    return KVStore(batch, policy.kv_cache, regions.grid.size, policy.reach or 4.0), said
