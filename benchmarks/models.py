"""Every diffusion model class of the host with every node that takes a model.

    python3 dev.py bench models [--only CLASS ...] [--out DIR]

Each class is built tiny, with random weights, and sampled by the host. `<out>/models.json` has a row
for each: what every node did, what it computed exactly, and why nothing where it did nothing; whether
a batch of two is two pictures, and whether conditionings in one call and in two give the same. What
fails is a row, too: `error` has the words. Random weights cannot be predicted, so the safety that
would have everything computed is lifted, and nothing here is about quality.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from devkit.comfy_process import Comfy, import_comfy
from evaluation.files import write_text

STEPS = 12
CFG = 3.0
EXACT = 1e-5  # of the largest value
SAME = 1e-3  # two pictures that differ in rounding only, after all steps
ANY_ERROR = 1e9

# Nodes by the names of their columns, and what differs from their defaults: what makes them act on
# tiny models, and on random weights.
NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "accelerate": ("RAPID_Accelerate", {}),
    "skip": ("RAPID_CacheReuse", {"reuse_threshold": 2.0, "guard": 0.0}),
    "reuse": ("RAPID_CacheReuse", {"reuse_threshold": 2.0, "guard": 0.0, "level": "reuse"}),
    "region": (
        "RAPID_RegionAdaptive",
        {"preset": "custom", "keep_ratio": 0.5, "error_threshold": 0.0},
    ),
    "sparse": (
        "RAPID_SparseAttention",
        {"density": 0.5, "backend": "gather", "tile": "16", "start_percent": 0.0},
    ),
}


WHOLE = ("accelerate", "skip")  # of NODES: all that there is to a UNet


class Bench:
    """The host with the pack in it, and what is measured of a class."""

    def __init__(self, comfy: Comfy, pack: ModuleType) -> None:
        self.comfy = comfy
        self.name = pack.__name__

    def module(self, name: str) -> ModuleType:
        """A module of the pack as the host loaded it."""
        return importlib.import_module(f"{self.name}.{name}")

    def patched(self, model: Any, node: str) -> Any:
        """The model with a node of NODES on it."""
        node_id, settings = NODES[node]
        schema = self.comfy.nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA()
        defaults = {
            slot.id: slot.default
            for slot in schema.inputs
            if getattr(slot, "default", None) is not None
        }
        return self.comfy.run_node(node_id, model=model, **{**defaults, **settings})[0]

    def record(self, model: Any) -> Any:
        """The record of a model's latest run."""
        return self.module("rapid_core.comfy.chain").chain_of(model).log.records[-1]

    @contextlib.contextmanager
    def safety_off(self) -> Iterator[None]:
        """Skip although predictions are bad."""
        actor = self.module("rapid_core.techniques.step_skip.schedule_actor")
        with (
            mock.patch.object(actor, "SAFE_ERROR", ANY_ERROR),
            mock.patch.object(actor, "SAFE_GAP", ANY_ERROR),
        ):
            yield

    def row(self, name: str) -> dict[str, Any]:
        """All that is measured of a class; what fails is told by `error`, of the class or a node."""
        from evaluation.host_models import TINY

        entry = TINY[name]
        row: dict[str, Any] = {
            "class": name,
            "known_as": entry.known_as,
            "kind": entry.kind,
            "note": entry.note,
            "error": None,
        }
        try:
            model = entry.model.build()
            network = model.model.diffusion_model
            row["model"] = type(network).__name__
            architecture = self.module("rapid_core.architectures").describe(network)
            row["family"] = None if architecture is None else architecture.family
            full = entry.model.sample(model, steps=STEPS, cfg=CFG)
        except Exception as error:
            row["error"] = said(error)
            return row
        with self.safety_off():
            for node in NODES if entry.kind != "UNet" else WHOLE:
                row[node] = guarded(self.of_node, entry.model, model, node, full)
            row["batch"] = guarded(self.of_batch, entry.model, model)
            row["cfg"] = guarded(self.of_cfg, entry.model, model, full)
        return row

    def of_node(self, tiny: Any, model: Any, node: str, full: list[torch.Tensor]) -> dict[str, Any]:
        """What a node did in a run, and why not more; `exact`: the largest error of what it computes
        in part or predicts, where that is known to be exact."""
        patched = self.patched(model, node)
        out = tiny.sample(patched, steps=STEPS, cfg=CFG)
        record = self.record(patched)
        acted = {
            "evaluations": record.totals["evaluations"],
            "skipped": record.totals["skipped"],
            "reused": record.totals["reused"],
            "partial": record.totals["partial"],
            "sparse": sum(evaluation.sparse for evaluation in record.evaluations),
        }
        found = {name: count for name, count in acted.items() if count}
        finite = all(part.isfinite().all() for part in out if part.numel())
        if not finite and all(part.isfinite().all() for part in full):
            found["error"] = "what was drawn is not finite"
        does = {"accelerate": "skipped", "skip": "skipped", "reuse": "reused", "region": "partial"}
        if not acted[does.get(node, "sparse")]:
            found["reason"] = self.why(record)
        elif node in ("reuse", "region", "sparse"):
            found["exact"] = self.exactness(tiny, model, node)
        return found

    def why(self, record: Any) -> dict[str, str]:
        """The reason that a run gives most often, as code and words."""
        reasons = [reason for row in record.evaluations for reason in row.reasons]
        reasons = [reason.params.get("why", reason) for reason in reasons] or list(record.notes)
        if not reasons:
            return {"code": "none", "text": "no reason was given"}
        code = Counter(reason.code for reason in reasons).most_common(1)[0][0]
        reason = next(reason for reason in reasons if reason.code == code)
        return {"code": code, "text": self.module("rapid_core.reasons").text(reason)}

    def exactness(self, tiny: Any, model: Any, node: str) -> float:
        """The largest error, as a share of the largest value, where it has to be none: the same
        latent twice, all of it, then in part (tokens, blocks passed over, all tiles attended to)."""
        from evaluation.probes import choosing, probe, run_twice, some_tokens

        types = self.module("rapid_core.types")
        attach = self.module("rapid_core.comfy.chain").attach
        replaced: list[Any] = []
        if node == "region":
            patched = choosing(self.module, model, some_tokens(0.5))
        elif node == "reuse":

            def reuses(observation: Any) -> Any:
                mode = types.Mode.REUSE if observation.index % 2 else types.Mode.RUN
                return types.Action(mode)

            patched = attach(model, probe(types, reuses, modes=frozenset(types.Mode)))
        else:
            attention = self.module("rapid_core.engine.sparse.attention")
            replaced = [
                mock.patch.object(attention.SparseAttention, "_unfit", lambda *_: None),
                mock.patch.object(attention, "tiles_kept", lambda _, tiles: tiles),
            ]

            def half(observation: Any) -> Any:
                return types.Action(density=0.5 if observation.index % 2 else 1.0)

            sparsity = types.Sparsity("gather", tile=16)
            patched = attach(model, probe(types, half, attention=sparsity))
        with contextlib.ExitStack() as stack:
            for patch in replaced:
                stack.enter_context(patch)
            first, second = run_twice(
                patched,
                (tiny.images, *tiny.latent),
                tiny.conditioning(0),
                tiny.conditioning(1),
                CFG,
                others=tiny.others,
            )
        if self.record(patched).evaluations[1].full:
            raise RuntimeError(f"the second evaluation was full: {self.why(self.record(patched))}")
        return difference([first], [second])

    def of_batch(self, tiny: Any, model: Any) -> dict[str, Any]:
        """How a batch of two differs from two pictures with RAPID Accelerate, and in a full run where
        it does; or why the host draws none."""
        try:
            tiny.sample(model, steps=1, cfg=CFG, batch=2)
        except Exception as error:
            return {"host": said(error)}
        found: dict[str, Any] = {}
        for name, one in (("accelerate", self.patched(model, "accelerate")), ("full", model)):
            both = tiny.sample(one, steps=STEPS, cfg=CFG, batch=2)
            alone = [tiny.sample(one, steps=STEPS, cfg=CFG, first=i) for i in range(2)]
            joined = [torch.cat(parts) for parts in zip(*alone, strict=True)]
            found[name] = difference(joined, both)
            if found["accelerate"] < SAME:
                break
        return found

    def of_cfg(self, tiny: Any, model: Any, full: list[torch.Tensor]) -> dict[str, Any]:
        """How conditionings that are called one by one differ from those of one call with RAPID
        Accelerate, and in a full run where they do; and whether both skip the same."""
        import comfy.samplers

        patched = self.patched(model, "accelerate")
        joined = tiny.sample(patched, steps=STEPS, cfg=CFG)
        modes = [row.modes for row in self.record(patched).evaluations]
        with mock.patch.object(comfy.samplers, "can_concat_cond", lambda a, b: a is b):
            found: dict[str, Any] = {
                "accelerate": difference(joined, tiny.sample(patched, steps=STEPS, cfg=CFG))
            }
            if found["accelerate"] >= SAME:
                found["full"] = difference(full, tiny.sample(model, steps=STEPS, cfg=CFG))
        same = modes == [row.modes for row in self.record(patched).evaluations]
        return {**found, "same_decisions": same}


def difference(wanted: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Largest difference of parts of latents, as a share of the largest value."""
    largest = max(
        ((a - b).abs().max() / a.abs().max()).item() for a, b in zip(wanted, other, strict=True)
    )
    return float(f"{largest:.2g}")


def guarded(measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What `measure` found, or the error in its place."""
    try:
        return measure(*given)
    except Exception as error:
        logging.exception("RAPID: %s", measure.__name__)
        return {"error": said(error)}


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def errors(row: dict[str, Any]) -> list[str]:
    """What failed of a row, in words."""
    parts = {"class": row, **{n: p for n, p in row.items() if isinstance(p, dict)}}
    return [f"{row['class']}, {name}: {p['error']}" for name, p in parts.items() if p.get("error")]


def run(host: Comfy, args: Namespace) -> str:
    """All rows; how many, and what failed."""
    import comfy.model_management

    from evaluation.host_models import here, unnamed

    bench = Bench(host, host.load_pack(host.base / "custom_nodes" / "rapid"))
    path = args.out / "models.json"
    rows: list[dict[str, Any]] = []
    if args.only and path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for name in args.only or here():
        row = bench.row(name)
        rows = [other for other in rows if other["class"] != name] + [row]
        rows.sort(key=lambda one: here().index(one["class"]))
        for line in errors(row):
            print(line, flush=True)
        comfy.model_management.unload_all_models()
        gc.collect()
        about = {"host": host.version, "torch": torch.__version__, "steps": STEPS, "cfg": CFG}
        text = json.dumps({**about, "unnamed": unnamed(), "rows": rows}, indent=1)
        write_text(path, text + "\n")
    failed = sum(bool(errors(row)) for row in rows)
    return f"{len(rows)} classes, {failed} with errors: {path}"


def main() -> None:
    """What `dev.py bench models` runs."""
    flags = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    flags.add_argument("--base", type=Path, required=True)
    flags.add_argument("--out", type=Path, default=Path("bench_output"))
    flags.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="these alone; rows of others in the file stay",
    )
    args = flags.parse_args()
    torch.set_num_threads(1)
    print(run(import_comfy(args.base), args))


if __name__ == "__main__":
    main()
