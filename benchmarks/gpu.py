"""What the pack saves on a card, on models of real sizes with random weights; and, without one, what
they would take of it.

    python3 dev.py bench gpu [--models z_image ...] [--minutes 8] [--device cuda] [--tiny] [--out DIR]
    python3 dev.py bench gpu --fake

Seconds of the full run, of RAPID Accelerate at 2x and 3x and of Region Adaptive, in turn and with a
full run before and after, synchronised; theoretical beside measured speed-up; peak memory and keys
and values beside what was announced; how often the host waited for the device. Then single kernels:
attention by each backend, and the merge of keys and values. Writes <out>/gpu.json.

The budget of time is shared by the models that are left: where it is short they take fewer steps,
down to 8, and what does not fit into it is named as not measured. A model that cannot be built or
run is a row with its reason. --tiny takes the same classes in small, for a test on a CPU. --fake
counts memory and FLOPs on fake tensors instead (`benchmarks.announced`), into
<out>/gpu_announced.json, and goes on with what is there already."""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.announced import reason
from devkit.comfy_process import import_comfy

MIB = 2**20
FEWEST_STEPS = 8  # below, nothing is skipped
# A run with warm_up and refresh_interval about as in the paper's schedule: few evaluations in full.
REGION: dict[str, Any] = dict(
    preset="custom",
    keep_ratio=0.25,
    error_threshold=0.0,
    warm_up=0.13,
    tail=0.0,
    refresh_interval=8,
    kv_cache="predict",
)
ACCELERATE: dict[str, Any] = dict(policy_file="none", learn=False)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "2x": ("RAPID_Accelerate", {**ACCELERATE, "speedup": 2.0}),
    "3x": ("RAPID_Accelerate", {**ACCELERATE, "speedup": 3.0}),
    "region": ("RAPID_RegionAdaptive", REGION),
}
COUNTED = ("2x", "region")  # whose waits are counted, in a run of FEWEST_STEPS
# Evaluations of a model: two full runs, about 0.5, 0.33 and 0.6 of one, and those that are counted.
RUNS = 3.5
OTHERS = 12
SHORT = "the budget of time is spent"


class Budget:
    """Seconds that are left."""

    def __init__(self, minutes: float):
        self.end = time.perf_counter() + 60 * minutes

    @property
    def left(self) -> float:
        """May be negative."""
        return self.end - time.perf_counter()


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Of one call."""
    settle(device)
    start = time.perf_counter()
    run()
    settle(device)
    return time.perf_counter() - start


def peak_of(run: Callable[[], float], device: torch.device) -> tuple[float, int | None]:
    """Seconds of a run, and the most bytes that it had on the card beside what was there before;
    None on a CPU."""
    if device.type != "cuda":
        return run(), None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    seconds = run()
    return seconds, torch.cuda.max_memory_allocated(device) - before


class ModelBench:
    """One model."""

    def __init__(self, comfy: Any, real: Any, device: torch.device, dtype: torch.dtype):
        from benchmarks import announced  # the host is importable only now

        self.tools = announced
        self.comfy = comfy
        self.real = real
        self.device = device
        self.model = real.build(device, dtype)
        self.steps = real.steps

    def timed(self, model: Any, steps: int) -> float:
        """Seconds of a sampling run."""
        return seconds_of(partial(self.tools.sample, model, self.real, steps), self.device)

    def fit(self, share: float) -> float | None:
        """Take as many steps as `share` seconds allow; the seconds of an evaluation, or None where
        not even the fewest fit."""
        self.timed(self.model, 1)  # warms up
        each = self.timed(self.model, 2) / 2
        affordable = math.floor((share / max(each, 1e-9) - OTHERS) / RUNS)
        if affordable < FEWEST_STEPS:
            return None
        self.steps = min(self.real.steps, affordable)
        return each

    def rows(self, budget: Budget) -> list[dict[str, Any]]:
        """A row a method, with full runs before and after all of them."""
        before, peak = peak_of(partial(self.timed, self.model, self.steps), self.device)
        rows: list[dict[str, Any]] = [
            dict(method="full", steps=self.steps, seconds=before, peak_mib=mib(peak))
        ]
        rows += [self.row(name, before, peak, budget) for name in METHODS]
        after = self.timed(self.model, self.steps) if budget.left > before else before
        full = (before + after) / 2
        rows[0]["seconds_again"] = after
        for row in rows:
            if row.get("seconds") and row["method"] != "full":
                row["speedup_measured"] = full / row["seconds"]
                theoretical = row["speedup_theoretical"]
                row["of_theoretical"] = row["speedup_measured"] / theoretical
        return rows

    def row(self, name: str, full: float, peak: int | None, budget: Budget) -> dict[str, Any]:
        """One method; with the reason where it was not measured."""
        row: dict[str, Any] = dict(method=name, steps=self.steps)
        if budget.left < full:
            return {**row, "not_measured": SHORT}
        try:
            patched = self.tools.with_node(self.comfy, self.model, *METHODS[name])
            told = self.tools.announced_by(patched)
            row["seconds"], own = peak_of(partial(self.timed, patched, self.steps), self.device)
            record = self.tools.record_of(patched)
            totals = record.totals
            row |= dict(
                speedup_theoretical=totals["speedup_theoretical"],
                computed=totals["computed"],
                partial=totals["partial"],
                announced_mib=mib(max(told, default=0)),
                held_mib=mib(record.bytes),
                peak_mib=mib(own),
                peak_over_full_mib=None if own is None or peak is None else mib(own - peak),
                notes=[str(note) for note in record.notes],
            )
            if name in COUNTED and budget.left > full:
                row["waits"] = self.waits(name)
        except Exception as error:
            row["not_measured"] = reason(error)
        return row

    def waits(self, name: str) -> dict[str, Any]:
        """How often the host waited in a short run: the most in one evaluation, and where."""
        from evaluation.synchronisations import count_waits, watched

        patched = self.tools.with_node(self.comfy, self.model, *METHODS[name])
        weights = self.model.model.diffusion_model.state_dict().values()
        with count_waits(self.device, weights) as waits:
            self.tools.sample(watched(patched, waits), self.real, FEWEST_STEPS)
        return dict(
            evaluations=waits.evaluation,
            most_of_ours=waits.most(),
            ours=waits.places(),
            others=waits.places(ours=False),
        )


def mib(size: int | None) -> float | None:
    """Bytes as MiB."""
    return None if size is None else round(size / MIB, 1)


def models(comfy: Any, args: argparse.Namespace, budget: Budget) -> list[dict[str, Any]]:
    """All models that were asked for, one at a time."""
    from evaluation.real_sizes import REAL, TINY, free

    table = TINY if args.tiny else REAL
    found = []
    for number, name in enumerate(args.models):
        entry: dict[str, Any] = dict(model=name, title=REAL[name].title)
        share = budget.left / (len(args.models) - number)
        bench = None
        if budget.left <= 0:
            entry["not_measured"] = SHORT
        else:
            try:
                bench = ModelBench(comfy, table[name], args.device, args.dtype)
                each = bench.fit(share)
                entry["seconds_an_evaluation"] = each
                if each is None:
                    entry["not_measured"] = f"{SHORT} before {FEWEST_STEPS} steps of each method"
                else:
                    entry["rows"] = bench.rows(budget)
            except Exception as error:
                entry["not_measured"] = reason(error)
        bench = None
        free(args.device)
        found.append(entry)
        print(json.dumps(entry), flush=True)
    return found


# Single kernels.
def kernels(args: argparse.Namespace, budget: Budget) -> list[dict[str, Any]]:
    """Attention of FLUX.1 dev at 1024 px, and the merge of its keys and values."""
    size = (2, 64, 256, 16) if args.tiny else (24, 128, 4096, 512)
    rows = []
    for name, measure in {**attentions(args, *size), **merges(args, *size)}.items():
        row: dict[str, Any] = dict(kernel=name)
        if budget.left <= 0:
            row["not_measured"] = SHORT
        else:
            try:
                row["milliseconds"] = 1000 * measure()
            except Exception as error:
                row["not_measured"] = reason(error)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def median_of(run: Callable[[], Any], device: torch.device, repetitions: int = 10) -> float:
    """Seconds of a call, the first two left out: there kernels are compiled."""
    seconds = [seconds_of(run, device) for _ in range(repetitions + 2)]
    return median(seconds[2:])


def attentions(
    args: argparse.Namespace, heads: int, head: int, tokens: int, text: int
) -> dict[str, Callable[[], float]]:
    """Dense attention, and sparse attention by each backend at two densities."""
    from rapid_core.engine.sparse import BACKENDS, KeyLayout, SparseAttention, Tiles
    from rapid_core.reasons import text as words

    device = args.device
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, heads, text + tokens, head)
    q, k, v = (
        torch.randn(shape, generator=generator, device=device, dtype=args.dtype) for _ in range(3)
    )

    def dense(q: Any, k: Any, v: Any, **_named: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2)

    def refused(why: Any) -> None:
        raise RuntimeError(words(why))

    side = math.isqrt(tokens)
    tiles = Tiles.of((1, side, side), 16 if args.tiny else 64).to(device)
    named = dict(heads=heads, skip_reshape=True)

    def sparse(backend: str, density: float) -> float:
        means = BACKENDS[backend].means
        attention = SparseAttention(tiles, density, backend, means, refused)
        run = partial(attention, dense, q, k, v, named, KeyLayout(text, 0))
        return median_of(run, device)

    found: dict[str, Callable[[], float]] = {
        "attention, dense": lambda: median_of(partial(dense, q, k, v), device)
    }
    for backend in BACKENDS:
        for density in (0.5, 0.25):
            found[f"attention, {backend}, density {density:g}"] = partial(sparse, backend, density)
    return found


def merges(
    args: argparse.Namespace, heads: int, head: int, tokens: int, text: int
) -> dict[str, Callable[[], float]]:
    """Half of the image's tokens merged into the keys and values of one attention."""
    from rapid_core.engine.kv import KVStore, Merge, Write, missing
    from rapid_core.reasons import text as words
    from rapid_core.types import KVKind

    device = args.device
    total = text + tokens
    ones = partial(torch.ones, device=device, dtype=args.dtype)
    whole = [ones(1, heads, total, head) for _ in range(2)]
    chosen = torch.arange(0, tokens, 2, device=device)
    rows = torch.cat((torch.arange(text, device=device), chosen + text))[None]
    fresh = [ones(1, heads, rows.shape[1], head) for _ in range(2)]
    cond = (0, "prompt")

    def merge(kind: Any) -> float:
        why = missing(kind, device.type)
        if why is not None:
            raise RuntimeError(words(why))
        store = KVStore(1, kind, tokens)
        for sigma in (1.0, 0.9):
            store.tick(cond, [0], [sigma], None, device)
            store.write(cond, 0, Write([0], whole[0], whole[1], 2, text))
        store.tick(cond, [0], [0.8], chosen[None], device)
        given = Merge([0], fresh[0], fresh[1], rows, text, total)
        return median_of(lambda: store.merge(cond, 0, given), device)

    return {f"merge, {kind.value}": partial(merge, kind) for kind in KVKind}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Where it was measured."""
    about: dict[str, Any] = dict(
        torch=torch.__version__,
        device=args.device.type,
        name=platform.processor() or platform.machine(),
        dtype=str(args.dtype).removeprefix("torch."),
        tiny=args.tiny,
    )
    if args.device.type == "cuda":
        facts = torch.cuda.get_device_properties(args.device)
        about |= dict(name=facts.name, memory_gib=round(facts.total_memory / 2**30, 1))
        about["cuda"] = torch.version.cuda
    return about


def fake(comfy: Any, args: argparse.Namespace) -> None:
    """Memory and FLOPs without a card, into <out>/gpu_announced.json, and goes on with what is there already."""
    from benchmarks import announced
    from evaluation.real_sizes import REAL, TINY

    table = TINY if args.tiny else REAL
    path = args.out / "gpu_announced.json"
    content: dict[str, Any] = {"torch": torch.__version__, "rows": []}
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["torch"] == content["torch"]:
            content = known
    rows = {row["model"]: row for row in content["rows"]}

    def keep() -> None:
        content["rows"] = [rows[name] for name in table if name in rows]
        save(path, content)

    for name in args.models:
        found = rows.setdefault(name, {"model": name, "title": table[name].title})
        announced.count(comfy, table[name], found, keep, lambda line: print(line, flush=True))


def save(path: Path, content: Any) -> None:
    """As JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("z_image", "flux_dev", "sd35_large", "qwen_image", "ltx2", "wan_14b")
    flags.add_argument("--models", nargs="+", choices=names, default=names)
    flags.add_argument("--minutes", type=float, default=8.0, help="budget of time (default 8)")
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--tiny", action="store_true", help="the same classes, in small")
    flags.add_argument("--fake", action="store_true", help="count on fake tensors, without a card")
    flags.add_argument("--out", type=Path, default=Path("bench_output"))
    return flags


def run(comfy: Any, args: argparse.Namespace) -> None:
    """Measure, and write what was measured, also where the rest fails."""
    args.device = torch.device(args.device)
    if args.device.type == "cuda" and args.device.index is None:
        args.device = torch.device("cuda", torch.cuda.current_device())
    args.dtype = torch.bfloat16 if args.device.type == "cuda" else torch.float32
    args.out.mkdir(parents=True, exist_ok=True)
    if args.fake:
        fake(comfy, args)
        return
    budget = Budget(args.minutes)
    content: dict[str, Any] = {"machine": machine(args)}
    with torch.inference_mode():
        # Few seconds, and what nobody knows yet: first.
        content["kernels"] = kernels(args, budget)
        save(args.out / "gpu.json", content)
        content["models"] = models(comfy, args, budget)
    content["seconds"] = round(60 * args.minutes - budget.left, 1)
    save(args.out / "gpu.json", content)


def main() -> None:
    flags = parser()
    flags.add_argument("--base", type=Path, required=True)
    args = flags.parse_args()
    if not (args.fake or args.tiny) and args.device == "cpu":
        flags.error(
            "--device cpu was given or no GPU was found: models of real sizes need a card. "
            "Give --tiny to try the script, or --fake to count without one."
        )
    comfy = import_comfy(args.base)
    comfy.load_pack(comfy.base / "custom_nodes" / "rapid")
    run(comfy, args)


if __name__ == "__main__":
    main()
