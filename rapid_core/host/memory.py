"""Memory of a run, counted before it is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..actions import Sparsity
from ..cost import PAIR, CostModel
from ..engine.kv import KVStore, bytes_of
from ..engine.regions import Regions
from ..engine.sparse import SLOPE, LeftOut


class Room:
    """What a run has to hold rows for: `conditions` times images, and bytes an element takes."""

    def __init__(self, guider: Any, batch: int):
        self.conditions = [c for name, slot in guider.conds.items() for c in slot
                           if name != "negative" or guider.cfg != 1]  # fmt: skip
        self.base = guider.model_patcher.model
        self.element = (getattr(self.base, "manual_cast_dtype", None) or self.base.get_dtype()).itemsize
        self.rows = len(self.conditions) * batch
        self.batch = batch

    def says(self, what: str, needed: int, kind: str, limit: float) -> tuple[bool, str]:
        """Whether `needed` bytes are within `limit` GiB (0: none), and the words for it."""
        said = f"{what}: {needed / 2**20:.0f} MiB ({kind}), {len(self.conditions)} conditions"
        if limit and needed > limit * 2**30:
            return False, f"{said}, more than memory_limit = {limit:g} GiB"
        return True, said


def key_store(policy: Any, cost: CostModel, regions: Regions, room: Room) -> tuple[KVStore | None, str]:
    """A store for the keys and values of a region policy, and what it takes in words; None where that is more than
    the policy allows."""
    text = max((c["cross_attn"].shape[1] for c in room.conditions if c.get("cross_attn") is not None), default=0)
    references = max((cost.architecture.reference_tokens(room.base.diffusion_model, c.get("reference_latents"))
                      for c in room.conditions), default=0)  # fmt: skip
    tokens = regions.grid.number + text + references
    needed = bytes_of(policy.kv_cache, tokens, cost.hidden, cost.image_attentions(), room.rows, room.element)
    fits, said = room.says("keys and values", needed, policy.kv_cache, policy.memory_limit)
    if not fits:
        return None, f"{said}: all tokens are computed"
    return KVStore(room.batch, policy.kv_cache, regions.grid.size, policy.reach or 4.0), said


def with_left_out(
    policies: tuple, cost: CostModel, number: int, room: Room
) -> tuple[tuple, LeftOut | None, str | None]:
    """Policies, a store for what sparse attention leaves out of pictures of `number` image tokens, and what it takes in
    words. Where that is more than is allowed there is no store, and only means stand in."""
    sparsity = next((p.sparsity for p in reversed(policies) if p.sparsity), None)
    if sparsity is None or not sparsity.remembers:
        return policies, None, None
    store, said = left_out_store(sparsity, cost, number, room)
    if store is None:
        means = replace(sparsity, left_out="means")
        policies = tuple(replace(p, sparsity=means) if p.sparsity is sparsity else p for p in policies)
    return policies, store, said


def left_out_store(sparsity: Sparsity, cost: CostModel, number: int, room: Room) -> tuple[LeftOut | None, str]:
    """A store for what sparse attention leaves out, or None; see `with_left_out`."""
    whole = number // (PAIR * sparsity.tile) * PAIR * sparsity.tile
    points = 2 if sparsity.left_out == "forecast" else 1
    attentions = cost.image_attentions(sparsity.dense_first, sparsity.dense_last)
    needed = points * whole * cost.hidden * attentions * room.rows * room.element
    fits, said = room.says("differences to dense attention", needed, sparsity.left_out, sparsity.memory_limit)
    if not fits:
        return None, f"{said}: none are kept, means stand in for what is left out"
    return LeftOut(SLOPE if sparsity.left_out == "forecast" else 0.0), said
