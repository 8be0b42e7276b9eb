"""Memory of a run, counted before it is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..cost import PAIR, CostModel, tiles_kept
from ..engine.kv import KVStore, bytes_of, number_of_pools
from ..engine.sparse import SLOPE, SparseResidual
from ..engine.token_stats import TokenStats
from ..types import Sparsity

HEAD = 64  # channels of a head at least, for counting what is kept head by head


class MemoryEstimate:
    """What a run has to hold rows for: `conditions` times images, and bytes an element takes.
    sampler: its name."""

    def __init__(self, guider: Any, batch: int, sampler: str = ""):
        unguided = (
            set(guider.conds) <= {"positive", "negative"}
            and abs(getattr(guider, "cfg", 0.0) - 1.0) < 1e-6
        )
        # Samplers of that name look at the negative whatever the scale, and say so in options of
        # their own only.
        asked = guider.model_options.get("disable_cfg1_optimization") or "cfg_pp" in sampler
        dense_blocks = "negative" if unguided and not asked else None
        self.conditions = [
            c for name, slot in guider.conds.items() for c in slot if name != dense_blocks
        ]
        self.base, patcher = guider.model_patcher.model, guider.model_patcher
        cast = (
            patcher.get_model_object("manual_cast_dtype")
            if hasattr(self.base, "manual_cast_dtype")
            else None
        )
        self.element = (cast or self.base.get_dtype()).itemsize  # patches of it are not applied yet
        self.rows = len(self.conditions) * batch
        self.batch = batch

    def within_limit(self, what: str, needed: int, kind: str, limit: float) -> tuple[bool, str]:
        """Whether `needed` bytes are within `limit` GiB (0: none), and the words for it."""
        said = f"{what}: {needed / 2**20:.0f} MiB ({kind}), conditions: {len(self.conditions)}"
        if limit and needed > limit * 2**30:
            return False, f"{said}, more than memory_limit = {limit:g} GiB"
        return True, said


def key_store(
    policy: Any, cost: CostModel, regions: TokenStats, room: MemoryEstimate
) -> tuple[KVStore | None, str]:
    """A store for the keys and values of a region policy, and what it takes in words; None where
    that is more than the policy allows."""
    needed = bytes_of(
        policy.kv_cache,
        rows_kept(policy.kv_cache, cost, regions, room),
        cost.hidden,
        cost.image_attentions() * room.rows,
        room.element,
    )
    fits, said = room.within_limit("keys and values", needed, policy.kv_cache, policy.memory_limit)
    if not fits:
        return None, f"{said}: tokens are computed all or none"
    counted = frozenset(c.get("uuid") for c in room.conditions) if policy.memory_limit else None
    return KVStore(
        room.batch, policy.kv_cache, regions.grid.size, policy.reach or 4.0, counted
    ), said


def rows_kept(kind: str, cost: CostModel, regions: TokenStats, room: MemoryEstimate) -> int:
    """Rows of keys that a run will keep, text and references included; of prompts of different
    lengths the longest."""
    if kind == "pooled":
        return cost.kept_tokens(number_of_pools(regions.grid.size), 0) * room.rows
    text = max(
        (c["cross_attn"].shape[1] for c in room.conditions if c.get("cross_attn") is not None),
        default=0,
    )
    text, image = (
        text + -text % cost.multiple,
        regions.grid.number + -regions.grid.number % cost.multiple,
    )
    references = [
        cost.architecture.reference_tokens(room.base.diffusion_model, c.get("reference_latents"))
        for c in room.conditions
    ]
    return sum(cost.kept_tokens(image, text + found) for found in references) * room.batch


def with_left_out(
    policies: tuple, cost: CostModel, number: int, room: MemoryEstimate
) -> tuple[tuple, SparseResidual | None, str | None]:
    """Policies, a store for what sparse attention leaves out of pictures of `number` image tokens,
    and what it takes in words. Where that is more than is allowed there is no store, and only means
    stand in. Attention can be sparse in one way only: that of the policy that is about nothing
    else, or of the last."""
    sparse = [p for p in policies if p.sparsity]
    if not sparse:
        return policies, None, None
    chosen = next((p for p in reversed(sparse) if p.technique == "sparse_attention"), sparse[-1])
    sparsity, store, said = chosen.sparsity, None, None
    if sparsity.remembers:
        store, said = left_out_store(sparsity, cost, number, room, getattr(chosen, "density", 0.5))
        sparsity = sparsity if store else replace(sparsity, left_out="means")
    other = [p for p in sparse if p.sparsity != sparsity]
    return tuple(replace(p, sparsity=sparsity) if p in other else p for p in policies), store, said


def left_out_store(
    sparsity: Sparsity, cost: CostModel, number: int, room: MemoryEstimate, density: float
) -> tuple[SparseResidual | None, str]:
    """A store for what sparse attention leaves out, or None; see `with_left_out`."""
    whole = number // (PAIR * sparsity.tile) * PAIR * sparsity.tile
    points = 2 if sparsity.left_out == "forecast" else 1
    attentions = cost.image_attentions(sparsity.dense_first, sparsity.dense_last)
    tiles = number // sparsity.tile
    chosen = (
        whole // (PAIR * sparsity.tile) * tiles_kept(density, tiles) * (cost.hidden // HEAD) * 4
    )  # their numbers
    needed = (points * whole * cost.hidden * room.element + chosen) * attentions * room.rows
    fits, said = room.within_limit(
        "differences to dense attention", needed, sparsity.left_out, sparsity.memory_limit
    )
    if not fits:
        return None, f"{said}: none are kept, means stand in for what is left out"
    return SparseResidual(SLOPE if sparsity.left_out == "forecast" else 0.0), said
