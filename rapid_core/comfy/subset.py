"""One model call on some of its image tokens: which rows pass the blocks, and whose keys and values
they attend to.

Between the first and the last block of a stack the image has K tokens instead of N; after the last
one it is whole again, with zeros where nothing was computed (their forecast is put in when the
evaluation ends).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..engine.kv import AttendedKV, KVStore
from ..engine.sparse import heads_first
from ..engine.token_stats import TokenStats
from .block_table import BlockInfo
from .sequence import Sequence


class TokenSubset:
    """Tokens of one model call. tokens: (rows, K) sorted image tokens of every row, None for all;
    rows are chunk * len(images) + position, a chunk being a conditioning stream. regions, mass_at:
    where to report the attention mass that image tokens receive, and in which block."""

    def __init__(
        self,
        store: KVStore,
        streams: list[Hashable],
        images: list[int],
        sequence: Sequence,
        tokens: Tensor | None = None,
        regions: TokenStats | None = None,
        mass_at: int = -1,
    ):
        self.regions, self.mass_at = regions, mass_at
        self.store, self.streams, self.images = store, streams, images
        self.sequence, self.tokens = sequence, tokens
        self._positions: tuple[Tensor, Tensor] | None = None
        self._places: dict[int, Tensor] = {}

    def ran(self, length: int, device: torch.device) -> Tensor | None:
        """Mask (rows, length) of the tokens of a sequence that ran, with or without text before the
        image; None for all."""
        if self.tokens is None:
            return None
        text = self.sequence.text if length == self.sequence.length else 0
        flags = torch.ones(len(self.tokens), length, dtype=torch.bool, device=device)
        flags[:, text : text + self.sequence.number] = False
        return flags.scatter_(1, self.tokens + text, True)

    # Blocks.
    def run(self, place: BlockInfo, args: dict, original: Callable[[dict], dict]) -> dict:
        """The block, on the chosen tokens."""
        if self.tokens is None:
            return original(args)
        if place.first:
            self._places = {}
        out = original(self._narrowed(place, args))
        return {**out, "img": self._widened(place, out["img"])} if place.last else out

    def _rows(self, text: int) -> Tensor:
        """Places (rows, M) of the computed tokens in a sequence with `text` tokens before the
        image."""
        assert self.tokens is not None
        found = self._places.get(text)
        if found is not None:
            return found
        device, rows, end = self.tokens.device, len(self.tokens), text + self.sequence.number
        before = torch.arange(text, device=device).expand(rows, -1)
        after = torch.arange(end, end + self.sequence.extra, device=device).expand(rows, -1)
        self._places[text] = torch.cat((before, self.tokens + text, after), 1)
        return self._places[text]

    def _narrowed(self, place: BlockInfo, args: dict) -> dict:
        """The block's arguments for the chosen tokens only."""
        args = dict(args)
        if place.first:
            args["img"] = take(args["img"], self._rows(self.sequence.before(place)))
        if args.get("pe") is not None:
            args["pe"] = self._narrowed_positions(args["pe"])
        vec = args.get("vec")
        if isinstance(vec, Tensor) and vec.ndim == 4 and vec.shape[1] > 1:
            args["vec"] = self._narrowed_times(vec)
        return args

    def _narrowed_times(self, vec: Tensor) -> Tensor:
        """Modulation (rows, T, 6, C) of Wan 2.2, whose frames may have noise levels of their own ->
        (rows, K, 6, C)."""
        assert self.tokens is not None
        frame = self.tokens // -(-self.sequence.number // vec.shape[1])
        return vec.gather(1, frame[:, :, None, None].expand(-1, -1, *vec.shape[2:]))

    def _narrowed_positions(self, pe: Tensor) -> Tensor:
        """Rotary positions (1 or rows, ..., length, ...) of the computed tokens; all blocks share
        one tensor."""
        if self._positions is None or self._positions[0] is not pe:
            axis = 1 + list(pe.shape[1:]).index(self.sequence.length)
            rows = self._rows(self.sequence.text)
            if pe.shape[0] == 1 and len(self.images) == 1:  # all streams share one image's tokens
                rows = rows[:1]
            each = pe.expand(len(rows), *pe.shape[1:]) if pe.shape[0] == 1 else pe
            parts = [each[i].index_select(axis - 1, rows[i]) for i in range(len(rows))]
            self._positions = pe, torch.stack(parts)
        return self._positions[1]

    def _widened(self, place: BlockInfo, img: Tensor) -> Tensor:
        text = self.sequence.before(place)
        rows = self._rows(text)
        out = img.new_zeros(
            img.shape[0], text + self.sequence.number + self.sequence.extra, img.shape[2]
        )
        return out.scatter_(1, rows[:, :, None].expand(-1, -1, img.shape[2]), img)

    # Attention.
    def attend(
        self,
        go: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        named: dict,
        at: tuple[int, int],
        axis: int,
    ) -> Tensor:
        """One attention of the current block: keep its keys and values, or complete them from the
        cache. go: attention of (q, k, v, the host's arguments, how the keys lie); axis of tokens;
        at: (block, n-th attention in it)."""
        count, seq = len(self.images), self.sequence
        lay = seq.lay(q.shape[axis], self.tokens)
        if self.tokens is None:
            for chunk, stream in enumerate(self.streams):
                of = slice(chunk * count, (chunk + 1) * count)
                self.store.write(stream, at, self.images, k[of], v[of], axis, lay.text)
            if at == (self.mass_at, 0) and self.regions is not None:
                self._report_mass(
                    received_mass(
                        q, k, axis, named["heads"], slice(lay.text, lay.text + seq.number)
                    )
                )
            return go(q, k, v, named, lay)
        rows, total = self._rows(lay.text), lay.text + seq.number + seq.extra
        mask, parts = self._mask(named.get("mask"), rows, total, lay.text), []
        for chunk, stream in enumerate(self.streams):
            of = slice(chunk * count, (chunk + 1) * count)
            keys = self.store.merge(
                stream, at, self.images, k[of], v[of], rows[of], lay.text, total
            )
            seen = _for_keys(_of_rows(mask, of), keys, rows[of], q.dtype)
            some = replace(lay, tokens=self.tokens[of], chunk=chunk)
            parts.append(
                go(q[of], keys.k, keys.v, named if seen is None else {**named, "mask": seen}, some)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _report_mass(self, mass: Tensor) -> None:
        """mass (rows, L) of all keys; the image's part goes to the regions."""
        assert self.regions is not None
        text = mass.shape[1] - self.sequence.number - self.sequence.extra
        for row in range(len(mass)):
            image = self.images[row % len(self.images)]
            self.regions.attended(
                image, mass[row, text : text + self.sequence.number], len(self.streams)
            )

    def _mask(self, mask: Tensor | None, rows: Tensor, total: int, text: int) -> Tensor | None:
        """The attention mask (..., queries, keys) for the computed queries and all keys."""
        if mask is None:
            return None
        if (
            mask.shape[-1] == rows.shape[1] != total
        ):  # made for the computed tokens only: text, then nothing masked
            image = mask.new_full((*mask.shape[:-1], total - text), mask.dtype == torch.bool)
            mask = torch.cat((mask[..., :text], image), -1)
        if mask.ndim < 2 or mask.shape[-2] != total:  # one line for all queries
            return mask
        flat = mask.reshape(-1, total, total)
        flat = flat.expand(len(rows), -1, -1) if flat.shape[0] == 1 else flat
        return take(flat, rows).view(len(rows), *([1] * (mask.ndim - 3)), -1, total)


def received_mass(
    q: Tensor, k: Tensor, axis: int, heads: int, asking: slice, samples: int = 64
) -> Tensor:
    """Mean attention (rows, L) that each key gets from about `samples` queries spread over those
    that are `asking`; axis of tokens 1 for (rows, L, heads * D), 2 for (rows, heads, L, D)."""
    q, k = (heads_first(t, heads, axis == 2) for t in (q, k))
    q = q[:, :, asking]
    few = q[:, :, :: max(1, q.shape[2] // samples)].float()
    return ((few * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)).softmax(-1).mean((1, 2))


def _for_keys(
    mask: Tensor | None, keys: AttendedKV, rows: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """The mask for keys that are not the whole sequence: fresh tokens, then pools with their
    bias."""
    if keys.bias is None and not keys.fresh_only:
        return mask
    if mask is not None:
        block_table = rows.view(len(rows), *([1] * (mask.ndim - 2)), rows.shape[1]).expand(
            -1, *mask.shape[1:-1], -1
        )
        mask = mask.expand(len(rows), *mask.shape[1:]).gather(-1, block_table)
    if keys.bias is None:
        return mask
    if mask is None:
        mask = torch.zeros(len(rows), 1, 1, rows.shape[1], dtype=dtype, device=rows.device)
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    bias = keys.bias.to(mask).view(len(rows), *([1] * (mask.ndim - 2)), -1)
    return torch.cat((mask, bias.expand(*mask.shape[:-1], -1)), -1)


def take(values: Tensor, rows: Tensor) -> Tensor:
    """values (B, L, C), rows (B, M) -> (B, M, C)."""
    return values.gather(1, rows[:, :, None].expand(-1, -1, values.shape[2]))


def _of_rows(mask: Tensor | None, rows: slice) -> Any:
    return mask if mask is None or mask.shape[0] == 1 or mask.ndim < 3 else mask[rows]
