"""What published models would take of a card and of its arithmetic, counted without one.

    python3 dev.py bench gpu --fake [--models flux_dev ...]

It goes on where it was stopped: what is in the file already, and did not fail, is not counted again.

The model's class runs in the real ComfyUI in its real size on fake tensors, which have shapes and no
numbers; sampler, latents and decisions are real. Counted: FLOPs by torch's counter beside
`rapid_core.cost`, and what is still held after each evaluation that the full run does not hold,
beside what the plan announced to the host's loader."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from evaluation.real_sizes import RealModel

MIB = 2**20
DTYPE = torch.bfloat16
STEPS = 28  # of RAPID Accelerate, whose runs pass the fake model over
STEPS_INSIDE = 8  # of the others, which run through it
CPU = torch.device("cpu")
# RAPID Accelerate's and Region Adaptive's inputs; the rest is as the nodes come.
ACCELERATE: dict[str, Any] = {"policy_file": "none", "learn": False}
REGION: dict[str, Any] = {
    "preset": "custom",
    "keep_ratio": 0.5,
    "error_threshold": 0.0,
    "memory_limit": 1000.0,  # what is kept is counted, not what this machine has room for
}
REUSE: dict[str, Any] = {"reuse_threshold": 10.0, "guard": 0.0, "level": "reuse"}
COUNTED = ("region, last value", "reuse")  # cases whose FLOPs are counted
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "accelerate 2x": ("RAPID_Accelerate", {**ACCELERATE, "speedup": 2.0}),
    "accelerate 3x": ("RAPID_Accelerate", {**ACCELERATE, "speedup": 3.0}),
    "reuse": ("RAPID_CacheReuse", REUSE),
    "region, predict": ("RAPID_RegionAdaptive", {**REGION, "kv_cache": "predict"}),
    "region, last value": ("RAPID_RegionAdaptive", {**REGION, "kv_cache": "last value"}),
    "region, 8 bit": ("RAPID_RegionAdaptive", {**REGION, "kv_cache": "8 bit"}),
}


class Held(TorchDispatchMode):
    """Bytes of all tensors that were made while it is on and are still there, and the most there
    ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _plain(t)}
        for tensor in tree_leaves(out):
            if _plain(tensor):
                self._made(tensor.untyped_storage(), before)
        return out

    def _made(self, storage: Any, before: set[int]) -> None:
        key = id(storage)
        if key in before or key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.bytes += size
        self.most = max(self.most, self.bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


class FakeForward:
    """A diffusion model's forward on fake tensors, from real arguments to a real result: what it was
    given.

    passing: whether the model is passed over, where nothing is asked about its inside. counting:
    whether its FLOPs are counted, by hand through plain matrix products, since the counter does not
    know the CPU's fused attention. flops: of each call."""

    def __init__(self, forward: Callable, mode: FakeTensorMode):
        self.forward = forward
        self.mode = mode
        self.passing = False
        self.counting = False
        self.flops: list[int] = []

    def __call__(self, x: Any, *args: Any, **named: Any) -> Any:
        if not self.passing:
            with self.mode:
                self._run(*tree_map(self._fake, (x, args, named)))
        return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, x)

    def _run(self, x: Any, args: tuple, named: dict) -> None:
        if not self.counting:
            self.forward(x, *args, **named)
            return
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.forward(x, *args, **named)
        self.flops.append(counter.get_total_flops())

    def _fake(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.mode.from_tensor(value) if real else value


def fake_model(real: RealModel, dtype: torch.dtype = DTYPE) -> tuple[Any, FakeForward]:
    """A MODEL of fake weights, and its forward."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    patcher = real.empty(CPU, dtype, mode)
    for module in patcher.model.modules():
        module.to = partial(_stay, module)  # the host sends weights to where they are already
    model = patcher.model.diffusion_model
    model.forward = FakeForward(model.forward, mode)
    return patcher, model.forward


def _stay(module: Any, *_args: Any, **_named: Any) -> Any:
    return module


def with_node(comfy: Any, model: Any, node: str, settings: dict[str, Any]) -> Any:
    """The model with a node on it, other inputs as they come; nothing is left out for safety, since
    predictions of no numbers are bad."""
    schema = comfy.nodes.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
    slots = {slot.id: getattr(slot, "default", None) for slot in schema.inputs}
    given = {name: value for name, value in slots.items() if value is not None}
    given |= {name: value for name, value in settings.items() if name in slots}
    (patched,) = comfy.run_node(node, model=model, **given)
    options = patched.model_options["transformer_options"]
    chain = options["rapid"]
    policies = tuple(replace(p, safe=False) if hasattr(p, "safe") else p for p in chain.policies)
    options["rapid"] = replace(chain, policies=policies)
    return patched


def sample(model: Any, real: RealModel, steps: int, **settings: Any) -> Any:
    """One sampling run, as KSampler does it."""
    import comfy.sample

    latent = real.latent()
    noise = comfy.sample.prepare_noise(latent, 0)
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            settings.pop("cfg", real.cfg),
            "euler",
            "simple",
            real.conditioning(0),
            real.conditioning(1),
            latent,
            disable_pbar=True,
            seed=0,
            **settings,
        )


@dataclass
class Followed:
    """A run, evaluation by evaluation."""

    held: list[int] = field(default_factory=list)
    """Bytes that are held after each."""
    calls: list[int] = field(default_factory=list)
    """Calls of the model so far."""


def follow(model: Any, forward: FakeForward, real: RealModel, steps: int) -> Followed:
    """One run."""
    followed = Followed()
    forward.flops.clear()
    with Held() as held:

        def seen(*_: Any) -> None:
            followed.held.append(held.bytes)
            followed.calls.append(len(forward.flops))

        sample(model, real, steps, callback=seen)
    return followed


def record_of(model: Any) -> Any:
    """The record of the latest run."""
    return model.model_options["transformer_options"]["rapid"].log.records[-1]


def announced_by(model: Any) -> list[int]:
    """A list to which each run of the model adds the bytes that it announces to the host."""
    from comfy.patcher_extension import WrappersMP

    seen: list[int] = []

    def prepare(executor: Callable, *args: Any, **named: Any) -> Any:
        wrappers = named.get("model_options", args[3] if len(args) > 3 else {})
        options = wrappers.get("transformer_options", {})
        some = options.get("wrappers", {}).get(WrappersMP.PREPARE_SAMPLING, {}).get("rapid", [])
        seen.extend(int(wrapper.extra) for wrapper in some)
        return executor(*args, **named)

    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "announced_by", prepare)
    return seen


def count_case(
    comfy: Any, model: Any, forward: FakeForward, real: RealModel, case: str, counting: bool = False
) -> dict[str, Any]:
    """What a case holds that the full run does not, beside what it announced; counting: and the
    FLOPs of one evaluation of each kind, of all conditionings, beside those that the pack counts."""
    node, settings = CASES[case]
    inside = node != "RAPID_Accelerate"  # nothing of it is kept between the blocks
    steps = STEPS_INSIDE if inside else STEPS
    forward.passing = True
    forward.counting = False
    full = follow(model, forward, real, steps).held
    forward.passing = not inside
    forward.counting = counting
    patched = with_node(comfy, model, node, settings)
    told = announced_by(patched)
    followed = follow(patched, forward, real, steps)
    record = record_of(patched)
    row = dict(
        case=case,
        announced=max(told, default=0),
        held=max(ours - theirs for ours, theirs in zip(followed.held, full, strict=True)),
        recorded=record.bytes,
        skipped=int(record.totals["skipped"]),
        partial=int(record.totals["partial"]),
        notes=[note.code for note in record.notes],
    )
    if counting:
        row["flops"] = flops_by_kind(record, followed.calls, forward.flops)
    return row


def flops_by_kind(record: Any, calls: Sequence[int], flops: Sequence[int]) -> list[dict[str, Any]]:
    """FLOPs of the first evaluation of each kind: as torch counts them, and as the pack does, None
    where it counts calls."""
    found: dict[str, dict[str, Any]] = {}
    for evaluation, (start, end) in zip(
        record.evaluations, itertools.pairwise((0, *calls)), strict=True
    ):
        kind = evaluation.modes[0]
        if kind == "run" and evaluation.token_share[0] < 1:
            kind = "some of the tokens"
        cost = evaluation.cost[0]
        row = dict(kind=kind, counted=sum(flops[start:end]), cost=cost if cost > 1e6 else None)
        if kind != "skip":
            found.setdefault(kind, row)
    return list(found.values())


def weights(model: Any) -> dict[str, int]:
    """Size of a model."""
    tensors = list(model.model.diffusion_model.state_dict().values())
    return {
        "parameters": sum(t.numel() for t in tensors),
        "weight_bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


def count(
    comfy: Any,
    real: RealModel,
    found: dict[str, Any],
    save: Callable[[], None],
    log: Callable[[str], None],
) -> None:
    """All of one model that `found` has not yet, case by case, each saved as it is known; what cannot
    be counted has its reason in place of it."""
    there = {row["case"]: row for row in found.setdefault("cases", []) if "failed" not in row}
    missing = [case for case in CASES if case not in there]
    if not missing and "parameters" in found:
        return
    found.pop("failed", None)
    try:
        model, forward = fake_model(real)
        found |= weights(model)
    except Exception as error:
        found["failed"] = reason(error)
    for case in missing if "failed" not in found else ():
        start = time.monotonic()
        try:
            there[case] = count_case(comfy, model, forward, real, case, case in COUNTED)
        except Exception as error:
            there[case] = {"case": case, "failed": reason(error)}
        found["cases"] = [there[name] for name in CASES if name in there]
        log(f"{real.title}: {there[case]}, {time.monotonic() - start:.0f} s")
        save()
    save()


def reason(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
