"""The sparse suite: what sparse attention keeps, how long it takes, and what it does to pictures.

    python3 dev.py bench sparse [--parts mass clock quality] [--models flux sd3] [--prompts 64] [--out DIR]
                                [--methods sparse cache_reuse ...] [--cost-of demo|flux-dev|sd3-medium] [--quick]

mass: on attention inputs recorded from the demo models, the attention mass that this selection keeps, beside a local
window, random tiles and the best possible. clock: attention with selection against the host's own and PyTorch's, one
thread, interleaved. quality: pictures at densities, beside Cache Reuse, Region Adaptive and fewer steps at equal cost.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.costs import PUBLISHED, published
from benchmarks.region import ALL, COLUMNS, at_cost, cost_on_dev, own_cost
from benchmarks.rows import markdown, write
from benchmarks.subject import Subject
from benchmarks.suite import Method, Scale, Suite, picked
from demo.measure import prompts
from devkit.comfy_process import load_everything
from rapid_core.actions import LEFT_OUT, Sparsity
from rapid_core.cost import PAIR, tiles_kept
from rapid_core.engine.sparse import Lay, Ledger, LeftOut, SparseAttention, Tiles, heads_first
from rapid_core.engine.sparse.backends import MEASURED
from rapid_core.engine.sparse.select import estimated_mass, keep

DENSITIES = (0.5, 0.25)
LEVELS = (0.5, 0.25, 0.125)  # of the quality part, and of learned policies
LOOKS = {4: "early", 14: "middle", 24: "late"}  # evaluations that are recorded
NODE: dict[str, Any] = dict(start_percent=0.0, end_percent=1.0, dense_first=1, dense_last=0, backend="gather",
                            left_out="forecast", refresh_interval=2, memory_limit=0.0)  # fmt: skip


# What attention keeps.
def recorded(subject: Subject, size: int, number: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Queries and keys (H, L, D) of every attention over image tokens in three evaluations of `number` development
    prompts, and how many tokens stand before the image."""
    found: list[tuple[Tensor, Tensor, int]] = []
    tokens, evaluation = (size // 16) ** 2, [-1]

    def count(executor: Any, *args: Any, **named: Any) -> Any:
        evaluation[0] += 1
        return executor(*args, **named)

    def override(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any) -> Tensor:
        heads, ready = named.get("heads", args[0] if args else None), named.get("skip_reshape", False)
        tall = [heads_first(t, heads, ready) for t in (q, k)]
        if evaluation[0] in LOOKS and tall[0].shape[2] == tall[1].shape[2] >= tokens:
            found.append((tall[0][0].float().clone(), tall[1][0].float().clone(), tall[0].shape[2] - tokens))
        return func(q, k, v, *args, **named)

    from comfy.patcher_extension import WrappersMP

    model = subject.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "record", count)
    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = override
    for i, text in enumerate(prompts(number, "dev").prompts()):
        evaluation[0] = -1
        subject.sample(model, text, 3000 + i, size, subject.family.steps)
        yield from found
        found.clear()


def kept_mass(q: Tensor, k: Tensor, text: int, size: int) -> dict[tuple[str, float], float]:
    """Share of the attention mass of the queries in tiles that each selection keeps at each density, text included."""
    side = math.isqrt(q.shape[1] - text)
    tiles = Tiles.of((1, side, side), size)
    places, whole = tiles.walk + text, tiles.number * size
    order = torch.cat((places[:whole], torch.arange(text), places[whole:]))
    q, k, always = q[:, places[:whole]], k[:, order], q.shape[1] - whole
    scale, heads, pairs = q.shape[2] ** -0.5, q.shape[0], tiles.number // PAIR
    q = q[:, : pairs * PAIR * size]
    mass = torch.stack([(q[h] @ k[h].T * scale).softmax(1)[:, :whole].view(pairs, PAIR * size, -1, size).sum(3).mean(1)
                        for h in range(heads)])  # fmt: skip
    fixed = 1 - mass.sum(2).mean().item()  # goes to text and the rest, which are always attended to
    middle = torch.stack((tiles.walk // side, tiles.walk % side), 1)[:whole].view(-1, size, 2).float().mean(1)
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
    """Mean kept mass over all attentions, selection by selection, and the worst ratio to the oracle."""
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for q, k, text in recorded(subject, size, number):
        for key, value in kept_mass(q, k, text, tile).items():
            found[key].append(value)
    rows = []
    for (name, density), values in found.items():
        ratios = [a / b for a, b in zip(values, found["oracle", density], strict=True)]
        rows.append(dict(model=subject.family.kind, size=size, tile=tile, selection=name, density=density,
                         mass=mean(values), of_oracle=mean(values) / mean(found["oracle", density]),
                         worst_of_oracle=min(ratios), attentions=len(values)))  # fmt: skip
    return rows


# How long attention takes.
def clock(tokens: int, head_size: int, text: int, repetitions: int, backends: tuple[str, ...]) -> list[dict]:
    """Seconds of attention with selection beside dense attention, at hidden 512, interleaved; medians. left_out: what
    stands in for tiles that are left out; with "forecast" their choice is the measurement's and not part of it."""
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
                book = Ledger(book.store if book else LeftOut(), ("stream",), (0,), 1.0, density, measures)
            attention = SparseAttention(tiles, density, backend, how.pooled, say, ledger=book)
            run = partial(attention, torch_attention, q, k, v, named, Lay(text, 0))
            if measures:
                run()
        return run

    dense = {"host": optimized_attention, "torch": torch_attention}
    runs: dict[tuple, Callable[[], Any]] = {(name, 1.0, ""): partial(call, q, k, v, **named)
                                            for name, call in dense.items()}  # fmt: skip
    runs |= {(b, d, p): sparse(b, d, p) for b in backends for d in DENSITIES for p in ("dropped", "means", "forecast")}
    for run in runs.values():
        run()
    seconds: dict[tuple, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    fastest = min(median(seconds[name, 1.0, ""]) for name in dense)
    return [dict(device="cpu", tokens=tokens, head_size=head_size, text=text, backend=b, density=d, left_out=p,
                 seconds=median(s), speedup=fastest / median(s)) for (b, d, p), s in seconds.items()]  # fmt: skip


def torch_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **named: Any) -> Tensor:
    """PyTorch's own, in the host's form."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


# What it does to pictures.
def sparse(comfy: Any, density: float, **settings: Any) -> Callable[[Any], Any]:
    """The node's patch."""
    inputs = {**NODE, "tile": "16", **settings}  # 256 px are 16 x 16 tokens: 16 tiles of 16
    return lambda model: comfy.run_node("RAPID_SparseAttention", model=model, density=density, **inputs)[0]


def methods(comfy: Any, suite: Suite, number: int, levels: Sequence[float] = LEVELS) -> list[Method]:
    """Sparse attention, with and without what stands in for what is left out, and the others at its cost."""
    out = [Method("dense", "1.0")]
    for density in levels:
        target, own = f"{density:g}", sparse(comfy, density)
        out.append(Method("sparse", target, own))
        out += [Method(f"sparse_{kind}", target, sparse(comfy, density, left_out=kind)) for kind in LEFT_OUT[1:]]
        goal = suite.once(f"cost/{target}", partial(cost_on_dev, suite, own, min(2, number), cost))
        out += at_cost(comfy, suite, target, goal, number)
    return out


def cost(subject: Subject, size: int) -> Callable[[list], float]:
    """Cost on the demo model itself."""
    return own_cost(subject, size, Sparsity("gather", dense_first=NODE["dense_first"], tile=16))


def quality(comfy: Any, kinds: list[str], args: argparse.Namespace) -> str:
    """`<out>/sparse.json` and its table."""
    rows, scale = [], Scale(128, 10) if args.quick else Scale()
    for kind in kinds:
        suite = Suite("sparse", Subject(comfy, ALL[kind]), prompts(2 if args.quick else args.prompts), args.out, scale)
        suite.run(picked(methods(comfy, suite, *((2, LEVELS[1:2]) if args.quick else (8,))), args.methods))
        rows += suite.rows(cost(suite.subject, scale.size) if args.cost_of == "demo" else published(args.cost_of))
    write(args.out / "sparse.json", rows, {"torch": torch.__version__, "cost_of": args.cost_of})
    return markdown(rows, COLUMNS)


def run(comfy: Any, args: argparse.Namespace) -> None:
    """The chosen parts; each writes a JSON file."""
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with torch.inference_mode():
        if "mass" in args.parts:
            sizes = ((256, 1, 16),) if args.quick else ((512, 4, 64), (512, 4, 16), (1024, 1, 64))
            found = [row for kind in args.models for size, number, tile in sizes
                     for row in masses(Subject(comfy, ALL[kind]), size, number, tile)]  # fmt: skip
            save(args.out / "sparse_mass.json", found)
        if "clock" in args.parts:
            sizes = (256,) if args.quick else (256, 1024, 4096)
            found = [row for tokens in sizes for head_size in (64, 128)
                     for row in clock(tokens, head_size, 77, 1 if args.quick else 9, tuple(args.backends))]  # fmt: skip
            save(args.out / "sparse_clock.json", found)
            if args.ship:
                ship(found)
        if "quality" in args.parts:
            print(quality(comfy, args.models, args))


def ship(rows: list[dict]) -> None:
    """Write the table that `auto` chooses by: sparse attention with means of what is left out, as nodes use it."""
    names = ("device", "head_size", "tokens", "density", "backend", "speedup")
    chosen = [{n: r[n] if n != "speedup" else round(r[n], 2) for n in names} for r in rows if r["left_out"] == "means"]
    lines = ",\n ".join(json.dumps(r) for r in chosen)
    MEASURED.write_text(f'{{"machine": "x86_64 CPU, one thread, float32",\n "rows": [\n {lines}]}}\n', encoding="utf-8")


def save(path: Path, rows: list[dict]) -> None:
    """Rows as JSON, and on the screen."""
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps(row), flush=True)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--parts", nargs="+", choices=("mass", "clock", "quality"), default=["mass", "clock", "quality"])
    found.add_argument("--models", nargs="+", choices=sorted(ALL), default=["flux", "sd3"])
    found.add_argument("--backends", nargs="+", default=["gather"], help="of the clock")
    found.add_argument("--methods", nargs="+", help="draw these only, beside dense")
    found.add_argument("--prompts", type=int, default=64)
    found.add_argument("--out", type=Path, default=Path("bench_output"))
    found.add_argument("--cost-of", choices=("demo", *PUBLISHED), default="demo")
    found.add_argument("--ship", action="store_true", help="write the table that the node's `auto` chooses by")
    found.add_argument("--quick", action="store_true", help="in small: whether it runs, not how well")
    return found


def main() -> None:
    command = parser()
    command.add_argument("--base", type=Path, required=True)
    args = command.parse_args()
    run(load_everything(args.base), args)


if __name__ == "__main__":
    main()
