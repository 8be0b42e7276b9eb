"""Attention by itself: what a choice of tiles keeps of it, and how long it takes; see
`benchmarks.sparse`."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.subject import Subject
from demo.measure import prompts
from rapid_core.cost import PAIR, tiles_kept
from rapid_core.engine.sparse import (
    KeyLayout,
    ResidualAccess,
    SparseAttention,
    SparseResidual,
    Tiles,
    heads_first,
)
from rapid_core.engine.sparse.backends import MEASURED
from rapid_core.engine.sparse.select import estimated_mass, keep
from rapid_core.types import Sparsity

DENSITIES = (0.5, 0.25)
LOOKS = {4: "early", 14: "middle", 24: "late"}  # evaluations that are recorded


# What attention keeps.
def recorded(subject: Subject, size: int, number: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Queries and keys (H, L, D) of every attention over image tokens in three evaluations of
    `number` development prompts, and how many tokens stand before the image."""
    found: list[tuple[Tensor, Tensor, int]] = []
    tokens, evaluation = (size // 16) ** 2, [-1]

    def count(executor: Any, *args: Any, **named: Any) -> Any:
        evaluation[0] += 1
        return executor(*args, **named)

    def override(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any) -> Tensor:
        heads, ready = (
            named.get("heads", args[0] if args else None),
            named.get("skip_reshape", False),
        )
        tall = [heads_first(t, heads, ready) for t in (q, k)]
        if evaluation[0] in LOOKS and tall[0].shape[2] == tall[1].shape[2] >= tokens:
            found.append(
                (tall[0][0].float().clone(), tall[1][0].float().clone(), tall[0].shape[2] - tokens)
            )
        return func(q, k, v, *args, **named)

    from comfy.patcher_extension import WrappersMP

    model = subject.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "record", count)
    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = (
        override
    )
    for i, text in enumerate(prompts(number, "dev").prompts()):
        evaluation[0] = -1
        subject.sample(model, text, 3000 + i, size, subject.family.steps)
        yield from found
        found.clear()


def kept_mass(q: Tensor, k: Tensor, text: int, size: int) -> dict[tuple[str, float], float]:
    """Share of the attention mass of the queries in tiles that each selection keeps at each
    density, text included."""
    side = math.isqrt(q.shape[1] - text)
    tiles = Tiles.of((1, side, side), size)
    places, whole = tiles.walk + text, tiles.number * size
    order = torch.cat((places[:whole], torch.arange(text), places[whole:]))
    q, k, always = q[:, places[:whole]], k[:, order], q.shape[1] - whole
    scale, heads, pairs = q.shape[2] ** -0.5, q.shape[0], tiles.number // PAIR
    q = q[:, : pairs * PAIR * size]
    mass = torch.stack(
        [
            (q[h] @ k[h].T * scale)
            .softmax(1)[:, :whole]
            .view(pairs, PAIR * size, -1, size)
            .sum(3)
            .mean(1)
            for h in range(heads)
        ]
    )
    fixed = 1 - mass.sum(2).mean().item()  # goes to text and the rest, which are always attended to
    middle = (
        torch.stack((tiles.walk // side, tiles.walk % side), 1)[:whole]
        .view(-1, size, 2)
        .float()
        .mean(1)
    )
    centre = middle[: pairs * PAIR].view(pairs, PAIR, 2).mean(1)
    scores = {
        "ours": estimated_mass(q[None], k[None], always, scale, size)[0],
        "window": -torch.cdist(centre, middle).expand(heads, -1, -1),
        "random": torch.rand(mass.shape, generator=torch.Generator().manual_seed(0)),
        "oracle": mass,
    }
    own, out = torch.arange(pairs * PAIR).view(pairs, PAIR), {}
    for name, score in scores.items():
        for density in DENSITIES:
            chosen = keep(score[None], tiles_kept(density, tiles.number), own)[0]
            out[name, density] = fixed + mass.gather(2, chosen).sum(2).mean().item()
    return out


def masses(subject: Subject, size: int, number: int, tile: int) -> list[dict]:
    """Mean kept mass over all attentions, selection by selection, and the worst ratio to the
    oracle."""
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for q, k, text in recorded(subject, size, number):
        for key, value in kept_mass(q, k, text, tile).items():
            found[key].append(value)
    rows = []
    for (name, density), values in found.items():
        ratios = [a / b for a, b in zip(values, found["oracle", density], strict=True)]
        rows.append(
            dict(
                model=subject.family.kind,
                size=size,
                tile=tile,
                selection=name,
                density=density,
                mass=mean(values),
                of_oracle=mean(values) / mean(found["oracle", density]),
                worst_of_oracle=min(ratios),
                attentions=len(values),
            )
        )
    return rows


# How long attention takes.
def clock(
    tokens: int, head_size: int, text: int, repetitions: int, backends: tuple[str, ...]
) -> list[dict]:
    """Seconds of attention with selection beside dense attention, at hidden 512, interleaved;
    medians. left_out: what stands in for tiles that are left out; with "forecast" their choice is
    the measurement's and not part of it."""
    from comfy.ldm.modules.attention import optimized_attention

    side, heads = math.isqrt(tokens), 512 // head_size
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, text + tokens, head_size, generator=make) for _ in range(3))
    named = dict(heads=heads, skip_reshape=True)
    tiles = Tiles.of((1, side, side))

    def say(reason: str) -> None:
        raise RuntimeError(reason)

    def sparse(backend: str, density: float, left_out: str) -> Any:
        book, how = None, Sparsity(left_out=left_out)
        for measures in (True, False) if how.remembers else (False,):
            if how.remembers:
                book = ResidualAccess(
                    book.store if book else SparseResidual(),
                    ("stream",),
                    (0,),
                    1.0,
                    density,
                    measures,
                )
            attention = SparseAttention(tiles, density, backend, how.pooled, say, ledger=book)
            run = partial(attention, torch_attention, q, k, v, named, KeyLayout(text, 0))
            if measures:
                run()
        return run

    dense = {"host": optimized_attention, "torch": torch_attention}
    runs: dict[tuple, Callable[[], Any]] = {
        (name, 1.0, ""): partial(call, q, k, v, **named) for name, call in dense.items()
    }
    runs |= {
        (b, d, p): sparse(b, d, p)
        for b in backends
        for d in DENSITIES
        for p in ("dropped", "means", "forecast")
    }
    for run in runs.values():
        run()
    seconds: dict[tuple, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    fastest = min(median(seconds[name, 1.0, ""]) for name in dense)
    return [
        dict(
            device="cpu",
            tokens=tokens,
            head_size=head_size,
            text=text,
            backend=b,
            density=d,
            left_out=p,
            seconds=median(s),
            speedup=fastest / median(s),
        )
        for (b, d, p), s in seconds.items()
    ]


def torch_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **named: Any) -> Tensor:
    """PyTorch's own, in the host's form."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def ship(rows: list[dict]) -> None:
    """Write the table that `auto` chooses by: sparse attention with means of what is left out, as
    nodes use it."""
    names = ("device", "head_size", "tokens", "density", "backend", "speedup")
    chosen = [
        {n: r[n] if n != "speedup" else round(r[n], 2) for n in names}
        for r in rows
        if r["left_out"] == "means"
    ]
    lines = ",\n ".join(json.dumps(r) for r in chosen)
    MEASURED.write_text(
        f'{{"machine": "x86_64 CPU, one thread, float32",\n "rows": [\n {lines}]}}\n',
        encoding="utf-8",
    )
