"""One model call on some of its image tokens: which rows pass the blocks, and whose keys and values
they attend to.

Between the first and the last block of a stack the image has K tokens instead of N; after the last
one it is whole again, with zeros where nothing was computed (their prediction is put in when the
evaluation ends).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..architectures import IMAGE_FIRST
from ..engine.kv import AttendedKV, Cond, KVStore, Merge, Write
from ..engine.sparse import heads_first
from ..engine.token_stats import TokenStats
from .block_table import BlockInfo
from .token_layout import TokenLayout

MASS_SAMPLES = 64  # queries whose attention is looked at


class TokenSubset:
    """Tokens of one model call; rows are chunk * len(images) + position.

    conds: one a chunk; tokens: (rows, K) sorted image tokens of every row, None for all; stats:
    where to report the attention mass that image tokens receive, one an image; mass_block: the block
    where it is measured; sharing: heads of queries that share one of keys and values, which arrives
    repeated for them and is kept once."""

    def __init__(
        self,
        store: KVStore,
        conds: Sequence[Cond],
        images: Sequence[int],
        layout: TokenLayout,
        tokens: Tensor | None = None,
        stats: Sequence[TokenStats | None] = (),
        mass_block: int = -1,
        sharing: int = 1,
    ):
        self.store = store
        self.conds = conds
        self.images = images
        self.layout = layout
        self.tokens = tokens
        self.stats = stats
        self.mass_block = mass_block
        self.sharing = sharing
        self._positions: tuple[Tensor, Tensor] | None = None  # given and narrowed
        # By tokens before the image and after it.
        self._rows_around: dict[tuple[int, int], Tensor] = {}
        self._between = False  # whether some tokens are on their way through a stack

    def ran(self, length: int, device: torch.device) -> Tensor | None:
        """Mask (rows, length) of the tokens of a sequence that ran, with or without text before the
        image; None for all."""
        if self.tokens is None:
            return None
        text = self.layout.text if length == self.layout.length else 0
        flags = torch.ones(len(self.tokens), length, dtype=torch.bool, device=device)
        flags[:, text : text + self.layout.image] = False
        return flags.scatter_(1, self.tokens + text, True)

    def follows(self, extra: int) -> bool:
        """Whether as many tokens stand behind the image as when keys and values were kept, among which
        those of the computed tokens are put. Where all tokens are computed their number is noted."""
        kept = self.store.extra
        keys = [(cond, image) for cond in self.conds for image in self.images]
        if self.tokens is None:
            kept.update(dict.fromkeys(keys, extra))
        return all(kept.get(key, extra) == extra for key in keys)

    def run(self, block: BlockInfo, args: dict, original: Callable[[dict], dict]) -> dict:
        """The block, on the chosen tokens."""
        if self.tokens is None:
            return original(args)
        if block.first:
            self._rows_around = {}
        out = original(self._narrowed(block, args))
        self._between = not block.last
        return {**out, "img": self._widened(block, out["img"])} if block.last else out

    def rows_between(self) -> Tensor | None:
        """Places (rows, M) of the tokens that are on their way from block to block, in all tokens of
        a model that has image tokens alone; None where it is all."""
        return self._rows(0, self.layout.extra) if self._between else None

    def _rows(self, text: int, extra: int) -> Tensor:
        """Places (rows, M) of the computed tokens in a sequence with `text` tokens before the
        image and `extra` ones after it."""
        assert self.tokens is not None
        if (text, extra) not in self._rows_around:
            rows = len(self.tokens)
            end = text + self.layout.image
            device = self.tokens.device
            before = torch.arange(text, device=device).expand(rows, -1)
            after = torch.arange(end, end + extra, device=device).expand(rows, -1)
            self._rows_around[text, extra] = torch.cat((before, self.tokens + text, after), 1)
        return self._rows_around[text, extra]

    def _all_rows(self) -> Tensor:
        """Places of the computed tokens in the attention."""
        return self._rows(self.layout.text, self.layout.extra)

    def _own_rows(self, block: BlockInfo) -> Tensor:
        """Places of the computed tokens in a block's own tensor."""
        return self._rows(self.layout.text_in(block), self.layout.extra_in(block))

    def _narrowed(self, block: BlockInfo, args: dict) -> dict:
        """The block's arguments for the chosen tokens only."""
        args = dict(args)
        if block.first:
            args["img"] = take(args["img"], self._own_rows(block))
        if args.get("pe") is not None:
            args["pe"] = self._narrowed_positions(block, args["pe"])
        vec = args.get("vec")
        if isinstance(vec, Tensor) and vec.ndim == 4:
            args["vec"] = self._narrowed_times(vec)
        if "times" in args:
            args["times"] = tuple(map(self._narrowed_times, args["times"]))
        mask = args.get("attn_mask")
        if block.group.layout == IMAGE_FIRST and isinstance(mask, Tensor):
            args["attn_mask"] = self._narrowed_keys(mask)
        return args

    def _narrowed_times(self, times: Tensor) -> Tensor:
        """Modulation (rows, T, ...) of frames that may have sigmas of their own (Wan 2.2's is (rows,
        T, 6, C)) -> (rows, K, ...); one of all frames stays as it is."""
        assert self.tokens is not None
        if times.shape[1] == 1:
            return times
        frame = self.tokens // -(-self.layout.image // times.shape[1])
        places = frame.view(*frame.shape, *([1] * (times.ndim - 2)))
        return times.gather(1, places.expand(-1, -1, *times.shape[2:]))

    def _narrowed_keys(self, mask: Tensor) -> Tensor:
        """A mask (rows, 1, 1, L) of all keys for the computed ones."""
        places = self._all_rows()[:, None, None]
        return mask.expand(len(places), -1, -1, -1).gather(3, places)

    def _narrowed_positions(self, block: BlockInfo, pe: Tensor) -> Tensor:
        """Rotary positions (1 or rows, ..., length, ...) of the computed tokens, of the whole
        attention or the block's own tensor; all blocks share one tensor."""
        if self._positions is None or self._positions[0] is not pe:
            lengths = list(pe.shape[1:])
            rows = self._all_rows()
            if self.layout.length in lengths:
                axis = 1 + lengths.index(self.layout.length)
            else:
                rows = self._own_rows(block)
                axis = 1 + lengths.index(self.layout.image + self.layout.extra_in(block))
            if pe.shape[0] == 1 and len(self.images) == 1:  # all conds share one image's tokens
                rows = rows[:1]
            each = pe.expand(len(rows), *pe.shape[1:]) if pe.shape[0] == 1 else pe
            parts = [each[i].index_select(axis - 1, rows[i]) for i in range(len(rows))]
            self._positions = pe, torch.stack(parts)
        return self._positions[1]

    def _widened(self, block: BlockInfo, img: Tensor) -> Tensor:
        length = self.layout.text_in(block) + self.layout.image + self.layout.extra_in(block)
        out = img.new_zeros(img.shape[0], length, img.shape[2])
        places = self._own_rows(block)
        return out.scatter_(1, places[:, :, None].expand(-1, -1, img.shape[2]), img)

    def attend(
        self,
        attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        named: dict[str, Any],
        at: tuple[int, int],
        axis: int,
    ) -> Tensor:
        """One attention of the current block: keep its keys and values, or complete them from the
        cache. attention: of (q, k, v, the host's arguments, how the keys lie); at: (block, n-th
        attention in it); axis: of tokens."""
        layout = self.layout.keys(q.shape[axis], self.tokens)
        repeats = self.sharing if axis == 2 and k.shape[1] == named["heads"] else 1
        own_k, own_v = (k, v) if repeats == 1 else (k[:, ::repeats], v[:, ::repeats])
        if self.tokens is None:
            for chunk, cond in enumerate(self.conds):
                rows = self._chunk(chunk)
                write = Write(self.images, own_k[rows], own_v[rows], axis, layout.text)
                self.store.write(cond, at, write)
            if at == (self.mass_block, 0):
                asking = slice(layout.text, layout.text + self.layout.image)
                self._report_mass(received_mass(q, k, axis, named["heads"], asking))
            return attention(q, k, v, named, layout)
        places = self._rows(layout.text, layout.extra)
        total = layout.text + self.layout.image + self.layout.extra
        mask = self._mask(named.get("mask"), places, total)
        parts = []
        for chunk, cond in enumerate(self.conds):
            rows = self._chunk(chunk)
            own_places = places[rows]
            merge = Merge(self.images, own_k[rows], own_v[rows], own_places, layout.text, total)
            merged = self.store.merge(cond, at, merge)
            seen = _for_keys(_of_rows(mask, rows), merged, own_places)
            own = replace(layout, tokens=self.tokens[rows], chunk=chunk)
            given = named if seen is None else {**named, "mask": seen}
            all_k, all_v = (_repeated(kept, repeats) for kept in (merged.k, merged.v))
            parts.append(attention(q[rows], all_k, all_v, given, own))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _chunk(self, chunk: int) -> slice:
        count = len(self.images)
        return slice(chunk * count, (chunk + 1) * count)

    def _report_mass(self, mass: Tensor) -> None:
        """mass (rows, L) of all keys; the image's part goes to the tokens' statistics."""
        text = mass.shape[1] - self.layout.image - self.layout.extra
        for row in range(len(mass)):
            stats = self.stats[row % len(self.images)]
            if stats is not None:
                stats.attended(mass[row, text : text + self.layout.image], len(self.conds))

    def _mask(self, mask: Tensor | None, rows: Tensor, total: int) -> Tensor | None:
        """The attention mask (..., queries, keys) for the computed queries and all keys."""
        if mask is None:
            return None
        if mask.shape[-1] == rows.shape[1] != total:
            # Made for the computed tokens only; no image token is masked.
            given = mask.expand(len(rows), *mask.shape[1:]) if mask.ndim > 2 else mask
            places = (
                rows.view(len(rows), *([1] * (given.ndim - 2)), -1) if mask.ndim > 2 else rows[0]
            )
            whole = given.new_full((*given.shape[:-1], total), mask.dtype == torch.bool)
            mask = whole.scatter(-1, places.expand_as(given), given)
        if mask.ndim < 2 or mask.shape[-2] != total:  # one line for all queries
            return mask
        flat = mask.reshape(-1, total, total)
        flat = flat.expand(len(rows), -1, -1) if flat.shape[0] == 1 else flat
        return take(flat, rows).view(len(rows), *([1] * (mask.ndim - 3)), -1, total)


def received_mass(
    q: Tensor, k: Tensor, axis: int, heads: int, asking: slice, samples: int = MASS_SAMPLES
) -> Tensor:
    """Mean attention (rows, L) that each key gets from about `samples` queries spread over those
    that are `asking`; axis of tokens 1 for (rows, L, heads * D), 2 for (rows, heads, L, D)."""
    q, k = (heads_first(t, heads, axis == 2) for t in (q, k))
    q = q[:, :, asking]
    few = q[:, :, :: max(1, q.shape[2] // samples)].float()
    return ((few * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)).softmax(-1).mean((1, 2))


def take(values: Tensor, rows: Tensor) -> Tensor:
    """values (B, L, C), rows (B, M) -> (B, M, C)."""
    return values.gather(1, rows[:, :, None].expand(-1, -1, values.shape[2]))


def _repeated(kept: Tensor, repeats: int) -> Tensor:
    """Keys or values (rows, heads, L, D), each head as often as it serves one of queries."""
    return kept if repeats == 1 else kept.repeat_interleave(repeats, dim=1)


def _for_keys(mask: Tensor | None, merged: AttendedKV, rows: Tensor) -> Tensor | None:
    """The mask for keys that are the computed tokens alone."""
    if mask is None or not merged.fresh_only:
        return mask
    places = rows.view(len(rows), *([1] * (mask.ndim - 2)), rows.shape[1])
    places = places.expand(-1, *mask.shape[1:-1], -1)
    return mask.expand(len(rows), *mask.shape[1:]).gather(-1, places)


def _of_rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask if mask is None or mask.shape[0] == 1 or mask.ndim < 3 else mask[rows]
