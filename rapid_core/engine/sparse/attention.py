"""Sparse attention of a model call: image tokens in tiles, each query tile with the key tiles that
matter to it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attention_cost import PAIR, SparseShape, tiles_kept
from ...reasons import ReasonCode
from ...types import Reason
from .backend_check import BackendCheck
from .backends import AttentionSize
from .problem import Problem, StaysDense
from .residual import ResidualAccess
from .select import choose_tiles, estimated_mass
from .tiles import Tiles


@dataclass(frozen=True)
class KeyLayout:
    """How the keys lie: text, the image's tokens, extra ones."""

    text: int
    """Tokens before the image's."""
    extra: int
    """Tokens after the image's."""
    tokens: Tensor | None = None
    """(R, K) sorted numbers of the image tokens that are queries, None for all; text and extra
    tokens are always queries."""
    chunk: int | None = None
    """Which of the call's conds the rows belong to, None for all."""


@dataclass(frozen=True)
class TileLayout:
    """Places of keys and queries in tiles; places of queries have a row axis where rows differ."""

    keys: Tensor
    """Places of the keys: tile by tile, then those that every query attends to."""
    always: int
    """How many these are."""
    queries: Tensor
    """Places of the queries in tiles."""
    others: Tensor
    """Places of the other queries."""
    own: Tensor
    """(Tq, PAIR) or (R, Tq, PAIR) key tiles that each query tile lies in."""
    steps: Tensor | None
    """(R, M) step of the walk of each query in a tile; None for all in a row."""


@dataclass(frozen=True)
class _Attention:
    """One attention of a model call."""

    dense: Callable[..., Tensor]
    """The host's own, of (q, k, v, its other arguments)."""
    q: Tensor
    """(R, H, queries, D)."""
    k: Tensor
    """(R, G, keys, D)."""
    v: Tensor
    named: dict
    """The host's other arguments."""
    layout: KeyLayout
    at: Hashable
    """Which one of the model's it is."""

    def computed_densely(self, q: Tensor) -> Tensor:
        """Dense attention of some queries (R, H, M, D) to all keys."""
        named = {**self.named, "skip_reshape": True, "skip_output_reshape": False}
        return heads_first(self.dense(q, self.k, self.v, **named), self.q.shape[1], False)


class SparseAttention:
    """Of one model call, at one density.

    Keys that every query attends to: text, extra tokens, and the image tokens after the last whole
    tile. Queries that are in no whole tile attend to everything, by the host's own attention."""

    def __init__(
        self,
        tiles: Tiles,
        density: float,
        backend: str,
        means: bool,
        add_reason: Callable[[Reason], None],
        check: BackendCheck | None = None,
        residual: ResidualAccess | None = None,
    ):
        """tiles: on the model's device; backend: one of `backends.NAMES`; means: whether tiles that
        are not attended to stand in as their means; add_reason: is told why an attention was dense;
        check: what the run has found out about backends; residual: differences to dense attention
        that were measured in earlier calls or are in this one, where they are kept."""
        self.tiles = tiles
        self.density = density
        self.backend = backend
        self.means = means
        self.add_reason = add_reason
        self.check = check or BackendCheck()
        self.residual = residual
        self.saved = 0  # FLOPs of all rows; less than none where dense attention was measured
        self.served = 0  # attentions that were not the host's own
        self._layouts: dict[tuple, TileLayout] = {}  # the same in most blocks

    def __call__(
        self,
        dense: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        named: dict,
        layout: KeyLayout,
        at: Hashable = None,
    ) -> Tensor:
        """One attention, with the host's arguments `named`; `dense` is its own. at: which one of
        the model's it is."""
        heads, ready = named["heads"], named.get("skip_reshape", False)
        q_tall, k_tall, v_tall = (heads_first(t, heads, ready) for t in (q, k, v))
        out: Tensor | None = None
        reason: Reason | None = None
        try:
            out = self._sparse(_Attention(dense, q_tall, k_tall, v_tall, named, layout, at))
        except StaysDense as stays:
            reason = stays.reason
        # Outside of `except`, where the frames that hold tensors of the attempt are gone.
        if out is None:
            self.add_reason(Reason(ReasonCode.ATTENTION_DENSE, why=reason))
            return dense(q, k, v, **named)
        self.served += 1
        return out if named.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)

    def _sparse(self, a: _Attention) -> Tensor:
        """Attention (R, H, L, D). Raises StaysDense."""
        mask = key_bias(a.named.get("mask"), a.k)
        count = tiles_kept(self.density, self.tiles.number)
        reason = self._unfit(a, count)
        if reason is not None:
            raise StaysDense(reason)
        size = AttentionSize(
            a.q.device.type, a.q.shape[3], len(self.tiles.walk), self.density, self.tiles.size
        )
        backend = self.check.choose(self.backend, size)
        if mask is not None and not backend.bias:
            raise StaysDense(Reason(ReasonCode.MASK_WITH_BACKEND, backend=backend.name))
        places = self._places(a)
        known = self._is_known(a)
        problem = self._problem(a, places, count, mask, known, backend.means)
        tiled = self.check.attend(backend, problem)
        shape = self._shape(a, problem.q.shape[2], count)
        rows = a.q.shape[0]
        if self.residual is not None and self.residual.measures:
            out = a.computed_densely(a.q)
            difference = take(out, places.queries) - tiled
            self.residual.write(a.at, a.layout.chunk, difference, problem.chosen)
            self.saved -= rows * shape.flops()
            return out
        if known:
            assert self.residual is not None
            self.residual.add(a.at, a.layout.chunk, tiled, places.steps)
        self.saved += rows * shape.saving(choosing=not known or places.steps is not None)
        out = torch.empty_like(a.q)
        put(out, places.queries, tiled)
        if places.others.shape[-1]:
            others = a.computed_densely(take(a.q, places.others).contiguous())
            put(out, places.others, others)
        return out

    def _unfit(self, a: _Attention, count: int) -> Reason | None:
        """Why this attention cannot be sparse with `count` tiles of keys for each of queries."""
        tiles = self.tiles
        if tiles.number < 2 or count >= tiles.number:
            return Reason(
                ReasonCode.FEW_TILES,
                tokens=len(tiles.walk),
                tiles=tiles.number,
                size=tiles.size,
            )
        if a.k.shape[2] != a.layout.text + len(tiles.walk) + a.layout.extra:
            return Reason(ReasonCode.KEYS_MISSING)
        number = len(tiles.walk) if a.layout.tokens is None else a.layout.tokens.shape[1]
        if number < PAIR * tiles.size:
            return Reason(ReasonCode.FEW_TOKENS, tokens=number, size=PAIR * tiles.size)
        if self._shape(a, number, count).saving() <= 0:
            return Reason(ReasonCode.NO_SAVING)
        if not a.q.is_floating_point():
            return Reason(ReasonCode.ATTENTION_DTYPE, dtype=str(a.q.dtype))
        return None

    def _shape(self, a: _Attention, number: int, count: int) -> SparseShape:
        """What the cost with `number` image queries depends on."""
        tiles = self.tiles
        whole = PAIR * tiles.size
        return SparseShape(
            hidden=a.q.shape[1] * a.q.shape[3],
            queries=number // whole * whole,
            tiles=tiles.number,
            kept=count,
            size=tiles.size,
            always=a.k.shape[2] - tiles.number * tiles.size,
            means=self.means,
        )

    def _places(self, a: _Attention) -> TileLayout:
        """Where keys and queries are; tokens of a chunk are the same in all attentions of a
        call."""
        layout = a.layout
        key = (layout.text, layout.extra, layout.chunk, layout.tokens is None, a.q.shape[0])
        if key not in self._layouts:
            self._layouts[key] = tile_layout(self.tiles, layout, a.q.shape[0])
        return self._layouts[key]

    def _is_known(self, a: _Attention) -> bool:
        """Whether the difference to dense attention was measured in an earlier call."""
        if self.residual is None or self.residual.measures:
            return False
        return self.residual.has(a.at, a.layout.chunk)

    def _problem(
        self,
        a: _Attention,
        places: TileLayout,
        count: int,
        mask: Tensor | None,
        known: bool,
        means: bool,
    ) -> Problem:
        """The attention in tiles, `count` of them chosen. known: as they were when the difference
        was measured, where all tokens are queries; means: whether the backend can add them."""
        q = take(a.q, places.queries)
        k = a.k.index_select(2, places.keys)
        v = a.v.index_select(2, places.keys)
        bias = None if mask is None else mask.index_select(1, places.keys)
        scale = a.named.get("scale") or a.q.shape[3] ** -0.5
        size, always = self.tiles.size, places.always
        if known and places.steps is None:
            assert self.residual is not None
            chosen = self.residual.tiles(a.at, a.layout.chunk)
        else:
            mass = estimated_mass(q, k, always, scale, size, bias)
            chosen = choose_tiles(mass, count, places.own)
        # Means of tokens that a mask tells apart mean nothing.
        means = means and self.means and bias is None
        return Problem(q, k, v, chosen, size, always, scale, bias, means)


def tile_layout(tiles: Tiles, layout: KeyLayout, rows: int) -> TileLayout:
    """Places of keys and queries in tiles, of `rows` rows."""
    keys, always = _key_places(tiles, layout)
    if layout.tokens is None:
        pairs = tiles.number // PAIR
        whole = pairs * PAIR * tiles.size
        own = torch.arange(pairs * PAIR, device=keys.device).view(pairs, PAIR)
        return TileLayout(keys, always, keys[:whole], keys[whole:], own, None)
    device, size = tiles.walk.device, tiles.size
    number = layout.tokens.shape[1]
    step = torch.empty_like(tiles.walk)  # of the walk that each token is at
    step[tiles.walk] = torch.arange(len(step), device=device)
    steps, order = step[layout.tokens].sort(1)
    whole = number // (PAIR * size) * PAIR * size
    own = (steps[:, size // 2 : whole : size] // size).clamp_max(tiles.number - 1)
    order = order + layout.text
    before = torch.arange(layout.text, device=device)
    after = torch.arange(layout.extra, device=device) + layout.text + number
    fixed = torch.cat((before, after)).expand(rows, -1)
    others = torch.cat((fixed, order[:, whole:]), 1)
    own = own.unflatten(1, (-1, PAIR))
    return TileLayout(keys, always, order[:, :whole], others, own, steps[:, :whole])


def _key_places(tiles: Tiles, layout: KeyLayout) -> tuple[Tensor, int]:
    """Places of the keys, tile by tile and then those that every query attends to, and how many
    these are."""
    device = tiles.walk.device
    walk = tiles.walk + layout.text
    whole = tiles.number * tiles.size
    after = layout.text + len(walk)
    text = torch.arange(layout.text, device=device)
    extra = torch.arange(after, after + layout.extra, device=device)
    always = torch.cat((text, walk[whole:], extra))
    return torch.cat((walk[:whole], always)), len(always)


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


def key_bias(mask: Tensor | None, k: Tensor) -> Tensor | None:
    """A mask that is the same for all queries and heads as a bias (R, L) on the keys k
    (R, G, L, D); None for none. Raises StaysDense for another mask."""
    if mask is None:
        return None
    *rows, keys = mask.shape
    several = mask.ndim > 2 and rows[0] == k.shape[0]  # the host reads two axes as (queries, keys)
    if keys != k.shape[2] or any(n != 1 for n in rows[several:]):
        raise StaysDense(Reason(ReasonCode.MASK_PER_QUERY))
    flat = mask.reshape(-1, k.shape[2]).expand(k.shape[0], -1)
    if flat.dtype != torch.bool:
        return flat.to(k)
    bias = torch.zeros(flat.shape, dtype=k.dtype, device=k.device)
    return bias.masked_fill_(~flat, -torch.inf)
