"""Attention by itself: what a choice of tiles keeps of it, and how long it takes; see
`benchmarks.sparse`."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from demo.world import world_of
from evaluation.subjects import Subject
from rapid_core.attention_cost import PAIR, tiles_kept
from rapid_core.engine.sparse import (
    KeyLayout,
    ResidualAccess,
    SparseAttention,
    SparseResidual,
    Tiles,
    heads_first,
)
from rapid_core.engine.sparse.backends import MEASURED
from rapid_core.engine.sparse.select import choose_tiles, estimated_mass
from rapid_core.reasons import text as words
from rapid_core.types import Reason, Sparsity

DENSITIES = (0.5, 0.25)
RECORDED = (4, 14, 24)  # evaluations that are looked at: early, in the middle, late
FIRST_SEED = 3000  # of development prompts
HIDDEN = 512  # channels of the attentions that are timed


# What attention keeps.
@dataclass(frozen=True)
class Recorded:
    """One attention of a demo model over text and image tokens."""

    q: Tensor
    """(H, L, D)."""
    k: Tensor
    text: int
    """Tokens before the image's."""


def recorded(subject: Subject, size: int, number: int) -> Iterator[Recorded]:
    """Every attention over image tokens in three evaluations of `number` development prompts."""
    from comfy.patcher_extension import WrappersMP

    attentions: list[Recorded] = []
    tokens = (size // 16) ** 2
    evaluation = -1

    def count(executor: Any, *args: Any, **named: Any) -> Any:
        nonlocal evaluation
        evaluation += 1
        return executor(*args, **named)

    def override(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any) -> Tensor:
        heads = named["heads"] if "heads" in named else args[0]
        ready = named.get("skip_reshape", False)
        q_tall, k_tall = (heads_first(t, heads, ready) for t in (q, k))
        both = q_tall.shape[2] == k_tall.shape[2] >= tokens
        if evaluation in RECORDED and both:
            text = q_tall.shape[2] - tokens
            attentions.append(Recorded(q_tall[0].float().clone(), k_tall[0].float().clone(), text))
        return func(q, k, v, *args, **named)

    model = subject.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "record", count)
    options = model.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = override
    texts = world_of(subject.weights).prompts(number, "dev").prompts()
    for i, prompt in enumerate(texts):
        evaluation = -1
        subject.sample(model, prompt, FIRST_SEED + i, size, subject.family.steps)
        yield from attentions
        attentions.clear()


def kept_mass(attention: Recorded, size: int) -> dict[tuple[str, float], float]:
    """Share of the attention mass of the queries in tiles of `size` tokens that each selection
    keeps at each density, text included."""
    text = attention.text
    side = math.isqrt(attention.q.shape[1] - text)
    tiles = Tiles.of((1, side, side), size)
    places = tiles.walk + text
    whole = tiles.number * size
    pairs = tiles.number // PAIR
    queries = pairs * PAIR * size
    order = torch.cat((places[:whole], torch.arange(text), places[whole:]))
    q = attention.q[:, places[:queries]]
    k = attention.k[:, order]
    scale = q.shape[2] ** -0.5
    mass = torch.stack([_mass(q[h], k[h], scale, size, whole) for h in range(len(q))])
    fixed = 1 - mass.sum(2).mean().item()  # goes to text and the rest, which are always attended to
    cells = torch.stack((tiles.walk // side, tiles.walk % side), 1)[:whole]
    middle = cells.view(-1, size, 2).float().mean(1)
    centre = middle[: pairs * PAIR].view(pairs, PAIR, 2).mean(1)
    always = k.shape[1] - whole
    scores = {
        "ours": estimated_mass(q[None], k[None], always, scale, size)[0],
        "window": -torch.cdist(centre, middle).expand(len(q), -1, -1),
        "random": torch.rand(mass.shape, generator=torch.Generator().manual_seed(0)),
        "oracle": mass,
    }
    own = torch.arange(pairs * PAIR).view(pairs, PAIR)
    shares = {}
    for name, score in scores.items():
        for density in DENSITIES:
            count = tiles_kept(density, tiles.number)
            chosen = choose_tiles(score[None], count, own)[0]
            shares[name, density] = fixed + mass.gather(2, chosen).sum(2).mean().item()
    return shares


def _mass(q: Tensor, k: Tensor, scale: float, size: int, whole: int) -> Tensor:
    """Mean mass (query tiles, key tiles) of one head, q and k (L, D) tile by tile."""
    mass = (q @ k.T * scale).softmax(1)[:, :whole]
    return mass.view(-1, PAIR * size, whole // size, size).sum(3).mean(1)


def masses(subject: Subject, size: int, number: int, tile: int) -> list[dict[str, Any]]:
    """Mean kept mass over all attentions, selection by selection, and the worst ratio to the
    oracle."""
    shares: dict[tuple[str, float], list[float]] = defaultdict(list)
    for attention in recorded(subject, size, number):
        for key, value in kept_mass(attention, tile).items():
            shares[key].append(value)
    rows = []
    for (name, density), values in shares.items():
        best = shares["oracle", density]
        rows.append(
            dict(
                model=subject.family.kind,
                size=size,
                tile=tile,
                selection=name,
                density=density,
                mass=mean(values),
                of_oracle=mean(values) / mean(best),
                worst_of_oracle=min(a / b for a, b in zip(values, best, strict=True)),
                attentions=len(values),
            )
        )
    return rows


# How long attention takes.
def clock(
    tokens: int, head_size: int, text: int, repetitions: int, backends: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Seconds of attention with selection beside dense attention, at hidden 512, interleaved;
    medians. compensation: what stands in for tiles that are not attended to; with "predict" their
    choice is the measurement's and not part of it."""
    from comfy.ldm.modules.attention import optimized_attention

    heads = HIDDEN // head_size
    generator = torch.Generator().manual_seed(0)
    shape = (1, heads, text + tokens, head_size)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    named = dict(heads=heads, skip_reshape=True)
    side = math.isqrt(tokens)
    tiles = Tiles.of((1, side, side))

    def attend(attention: SparseAttention) -> Tensor:
        return attention(torch_attention, q, k, v, named, KeyLayout(text, 0))

    dense = {"host": optimized_attention, "torch": torch_attention}
    runs: dict[tuple[str, float, str], Callable[[], Any]] = {
        (name, 1.0, ""): partial(function, q, k, v, **named) for name, function in dense.items()
    }
    for backend in backends:
        for density in DENSITIES:
            for compensation in ("none", "means", "predict"):
                attention = sparse_attention(tiles, density, backend, compensation, attend)
                runs[backend, density, compensation] = partial(attend, attention)
    seconds = timed(runs, repetitions)
    fastest = min(median(seconds[name, 1.0, ""]) for name in dense)
    return [
        dict(
            device="cpu",
            tokens=tokens,
            head_size=head_size,
            text=text,
            backend=backend,
            density=density,
            compensation=compensation,
            seconds=median(times),
            speedup_measured=fastest / median(times),
        )
        for (backend, density, compensation), times in seconds.items()
    ]


def sparse_attention(
    tiles: Tiles,
    density: float,
    backend: str,
    compensation: str,
    attend: Callable[[SparseAttention], Any],
) -> SparseAttention:
    """A sparse attention; where differences to dense attention are kept, `attend` has measured
    them."""
    how = Sparsity(compensation=compensation)
    make = partial(SparseAttention, tiles, density, backend, how.uses_means, refuse)
    if not how.keeps_residual:
        return make()
    access = partial(ResidualAccess, SparseResidual(), (("cond",),), (0,), (1.0,), density)
    attend(make(residual=access(measures=True)))
    return make(residual=access(measures=False))


def refuse(reason: Reason) -> None:
    """No attention that is timed may turn out dense."""
    raise RuntimeError(words(reason))


def timed(
    runs: dict[tuple[str, float, str], Callable[[], Any]], repetitions: int
) -> dict[tuple[str, float, str], list[float]]:
    """Seconds of each, in turn; the first round warms up."""
    seconds: dict[tuple[str, float, str], list[float]] = {key: [] for key in runs}
    for repetition in range(repetitions + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if repetition:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def torch_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **named: Any) -> Tensor:  # noqa: ARG001 the host's form
    """PyTorch's own, in the host's form."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def ship(rows: list[dict[str, Any]]) -> None:
    """Write the table that `auto` chooses by: sparse attention with means of what is not attended
    to, as nodes use it."""
    names = ("device", "head_size", "tokens", "density", "backend")
    chosen = [
        {**{name: row[name] for name in names}, "speedup": round(row["speedup_measured"], 2)}
        for row in rows
        if row["compensation"] == "means"
    ]
    lines = ",\n ".join(json.dumps(row) for row in chosen)
    MEASURED.write_text(
        f'{{"machine": "x86_64 CPU, one thread, float32",\n "rows": [\n {lines}]}}\n',
        encoding="utf-8",
    )
