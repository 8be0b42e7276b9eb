"""Sparse attention of a model call: image tokens in tiles, each query tile with the key tiles that
matter to it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...cost import PAIR, sparse_flops, sparse_saving, tiles_kept
from . import backends
from .backend_check import BackendCheck
from .backends import Backend
from .problem import Problem
from .residual import ResidualAccess
from .select import estimated_mass, keep
from .tiles import Tiles


@dataclass(frozen=True)
class KeyLayout:
    """How the keys lie: `text` tokens, the image's, `extra` ones. tokens (R, K) or None: sorted
    numbers of the image tokens that are queries, all of them if None; text and extra tokens are
    always queries. chunk: the conditioning stream that the rows belong to, None for all."""

    text: int
    extra: int
    tokens: Tensor | None = None
    chunk: int | None = None


class SparseAttention:
    """Of one model call, at one density. tiles: on the model's device; backend: a name of
    `backends`; pooled: whether tiles that were left out stand in as their means; say: where to tell
    why an attention was computed densely; trust: what the run has found out about backends; ledger:
    what was left out in earlier calls, where that is kept. saved: FLOPs of all rows that were left
    out, less than none where dense attention was measured against; served: how many attentions were
    not the host's own.

    Keys that every query attends to: text, extra tokens, and the image tokens after the last whole
    tile. Queries that are in no whole tile attend to everything, by the host's own attention."""

    def __init__(
        self,
        tiles: Tiles,
        density: float,
        backend: str,
        pooled: bool,
        add_reason: Callable[[str], None],
        trust: BackendCheck | None = None,
        ledger: ResidualAccess | None = None,
    ):
        self.tiles, self.density, self.backend, self.pooled, self.add_reason = (
            tiles,
            density,
            backend,
            pooled,
            add_reason,
        )
        self.trust, self.ledger = trust or BackendCheck(), ledger
        self.saved = self.served = 0
        self._order: dict[tuple[int, int], tuple[Tensor, int]] = {}  # the same in most blocks

    def __call__(
        self,
        go: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        named: dict,
        lay: KeyLayout,
        at: Hashable = None,
    ) -> Tensor:
        """One attention, with the host's arguments `named`; `go` is its own. at: which one of the
        model's it is."""
        heads, ready = named["heads"], named.get("skip_reshape", False)
        tall = [heads_first(t, heads, ready) for t in (q, k, v)]
        tiles = self.tiles
        count = tiles_kept(self.density, tiles.number)
        mask, reason = key_bias(named.get("mask"), tall[1])
        reason = reason or self._unfit(tall, lay, tiles, count)
        out = None
        if reason is None:
            chosen = backends.choose(self.backend, tall[0], len(tiles.walk), self.density)
            reason = chosen.reason
            if chosen.backend is not None:
                out, reason = self._sparse(
                    chosen.backend, go, tall, named, lay, tiles, count, mask, at
                )
        if out is None:
            self.add_reason(reason)
            return go(q, k, v, **named)
        self.served += 1
        return out if named.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)

    def _unfit(self, tall: list[Tensor], lay: KeyLayout, tiles: Tiles, count: int) -> str | None:
        """Why this attention cannot be sparse."""
        q, k, _ = tall
        if tiles.number < 2 or count >= tiles.number:
            return f"{len(tiles.walk)} image tokens make {tiles.number} tiles of {tiles.size}: attention is dense"
        if k.shape[2] != lay.text + len(tiles.walk) + lay.extra:
            return "attention over pooled or missing keys is dense"
        number = len(tiles.walk) if lay.tokens is None else lay.tokens.shape[1]
        if number < PAIR * tiles.size:
            return f"{number} computed tokens are less than a tile of {PAIR * tiles.size}: their attention is dense"
        if sparse_saving(*self._size(q, k, number, tiles, count)) <= 0:
            return "choosing tiles would cost more than they leave out: attention is dense"
        return None if q.is_floating_point() else f"attention in {q.dtype} is dense"

    def _size(self, q: Tensor, k: Tensor, number: int, tiles: Tiles, count: int) -> tuple:
        """What `sparse_flops` asks for, of `number` image queries."""
        size, hidden = tiles.size, q.shape[1] * q.shape[3]
        queries, always = number // (PAIR * size) * PAIR * size, k.shape[2] - tiles.number * size
        return hidden, queries, tiles.number, count, size, always, self.pooled

    def _sparse(
        self,
        backend: Backend,
        go: Callable[..., Tensor],
        tall: list[Tensor],
        named: dict,
        lay: KeyLayout,
        tiles: Tiles,
        count: int,
        mask: Tensor | None,
        at: Hashable,
    ) -> tuple[Tensor | None, str]:
        """Attention (R, H, L, D), or None and why it is dense."""
        q, k, v = tall
        dense = {**named, "skip_reshape": True, "skip_output_reshape": False}
        if mask is not None and not backend.bias:
            return None, f"attention under a mask is dense with {backend.name}"
        if (lay.text, lay.extra) not in self._order:
            self._order[lay.text, lay.extra] = key_order(tiles, lay)
        order, always = self._order[lay.text, lay.extra]
        k_tiled, v_tiled = (t.index_select(2, order) for t in (k, v))
        bias = None if mask is None else mask.index_select(1, order)
        tiled, others, own, steps = query_order(tiles, lay, order, q.shape[0])
        q_tiled = take(q, tiled)
        scale = named.get("scale") or q.shape[3] ** -0.5
        measured = (
            self.ledger is not None and not self.ledger.measures and self.ledger.has(at, lay.chunk)
        )
        if measured and steps is None:
            kept = self.ledger.kept(at, lay.chunk)
        else:
            kept = keep(
                estimated_mass(q_tiled, k_tiled, always, scale, tiles.size, bias), count, own
            )
        pooled = (
            self.pooled and bias is None and backend.pooled
        )  # means of tokens that a mask tells apart mean nothing
        problem = Problem(q_tiled, k_tiled, v_tiled, kept, tiles.size, always, scale, bias, pooled)
        found, reason = self.trust.attend(backend, problem)
        if found is None:
            return None, reason
        size = self._size(q, k, q_tiled.shape[2], tiles, count)
        if self.ledger is not None and self.ledger.measures:
            out = heads_first(go(q, k, v, **dense), q.shape[1], False)
            self.ledger.write(at, lay.chunk, take(out, tiled) - found, kept)
            self.saved -= q.shape[0] * sparse_flops(*size)
            return out, ""
        if measured:
            self.ledger.add(at, lay.chunk, found, steps)
        self.saved += q.shape[0] * sparse_saving(*size, not measured or steps is not None)
        out = torch.empty_like(q)
        put(out, tiled, found)
        if others.shape[-1]:
            rest = go(take(q, others).contiguous(), k, v, **dense)
            put(out, others, heads_first(rest, q.shape[1], False))
        return out, ""


def key_order(tiles: Tiles, lay: KeyLayout) -> tuple[Tensor, int]:
    """Places of the keys, tile by tile and then those that every query attends to, and how many
    these are."""
    walk, device, whole = tiles.walk + lay.text, tiles.walk.device, tiles.number * tiles.size
    after = lay.text + len(walk)
    always = torch.cat(
        (
            torch.arange(lay.text, device=device),
            walk[whole:],
            torch.arange(after, after + lay.extra, device=device),
        )
    )
    return torch.cat((walk[:whole], always)), len(always)


def query_order(
    tiles: Tiles, lay: KeyLayout, keys: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Places of the queries in tiles, those of the others, the key tiles that each query tile lies
    in, and the step of the walk of each query in a tile, None for all in a row; with a row axis
    where rows differ. keys: their order, by `key_order`."""
    if lay.tokens is None:
        pairs = tiles.number // PAIR
        whole = pairs * PAIR * tiles.size
        return (
            keys[:whole],
            keys[whole:],
            torch.arange(pairs * PAIR, device=keys.device).view(pairs, PAIR),
            None,
        )
    device, (size, number) = tiles.walk.device, (tiles.size, lay.tokens.shape[1])
    step = torch.empty_like(tiles.walk)
    step[tiles.walk] = torch.arange(
        len(step), device=device
    )  # step of the walk that each token is at
    steps, order = step[lay.tokens].sort(1)
    whole = number // (PAIR * size) * PAIR * size
    own = (
        (steps[:, size // 2 : whole : size] // size)
        .clamp_max(tiles.number - 1)
        .unflatten(1, (-1, PAIR))
    )
    order = order + lay.text
    fixed = torch.cat(
        (
            torch.arange(lay.text, device=device),
            torch.arange(lay.extra, device=device) + lay.text + number,
        )
    ).expand(rows, -1)
    return order[:, :whole], torch.cat((fixed, order[:, whole:]), 1), own, steps[:, :whole]


def take(x: Tensor, places: Tensor) -> Tensor:
    """x (R, H, L, D) at places (M,) or (R, M) -> (R, H, M, D)."""
    if places.ndim == 1:
        return x.index_select(2, places)
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def put(x: Tensor, places: Tensor, values: Tensor) -> None:
    """Write what `take` would take."""
    if places.ndim == 1:
        x.index_copy_(2, places, values)
    else:
        x.scatter_(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]), values)


def heads_first(x: Tensor, heads: int, ready: bool) -> Tensor:
    """The host's (R, H, L, D) (`ready`), (R, L, H, D) or (R, L, H * D) -> (R, H, L, D). Key heads
    may be fewer."""
    if ready:
        return x
    return (x if x.ndim == 4 else x.unflatten(2, (heads, -1))).transpose(1, 2)


def key_bias(mask: Tensor | None, k: Tensor) -> tuple[Tensor | None, str | None]:
    """A mask that is the same for all queries and heads as a bias (R, L) on the keys; otherwise the
    reason."""
    if mask is None:
        return None, None
    *rows, keys = mask.shape
    several = mask.ndim > 2 and rows[0] == k.shape[0]  # the host reads two axes as (queries, keys)
    if keys != k.shape[2] or any(n != 1 for n in rows[several:]):
        return None, "attention under a mask that differs between queries is dense"
    flat = mask.reshape(-1, k.shape[2]).expand(k.shape[0], -1)
    if flat.dtype != torch.bool:
        return flat.to(k), None
    return torch.zeros(flat.shape, dtype=k.dtype, device=k.device).masked_fill_(
        ~flat, -torch.inf
    ), None
