"""What published models would take of a card and of its arithmetic, counted without one.

    python3 dev.py bench gpu --fake [--models flux_dev ...]

The model's class runs in the real ComfyUI in its real size on fake tensors, which have shapes and no
numbers; sampler, latents and decisions are real. Counted: FLOPs by torch's counter beside
`rapid_core.cost`, and what is still held after each evaluation that the full run does not hold,
beside what the plan announced to the host's loader."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from evaluation.real_sizes import RealModel

MIB = 2**20
DTYPE = torch.bfloat16
STEPS = 8  # few, since every one costs the same: enough for histories to fill
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
    given. flops: of each call, in order; counting: whether they are counted, which takes a while."""

    def __init__(self, forward: Callable, mode: FakeTensorMode):
        self.forward = forward
        self.mode = mode
        self.counting = False
        self.flops: list[int] = []

    def __call__(self, x: Any, *args: Any, **named: Any) -> Any:
        with self.mode:
            fake_x, fake_args, fake_named = tree_map(self._fake, (x, args, named))
            counter: AbstractContextManager = nullcontext()
            if self.counting:
                counter = FlopCounterMode(display=False)
            with sdpa_kernel(SDPBackend.MATH), counter as counted:
                self.forward(fake_x, *fake_args, **fake_named)
        if self.counting:
            self.flops.append(counted.get_total_flops())
        return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, x)

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


def held_after(model: Any, real: RealModel, steps: int) -> list[int]:
    """Bytes that are held after each evaluation of a run."""
    sizes: list[int] = []
    with Held() as held:
        sample(model, real, steps, callback=lambda *_: sizes.append(held.bytes))
    return sizes


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


def memory(
    comfy: Any, name: str, real: RealModel, cases: Sequence[str] = (), steps: int = STEPS
) -> list[dict[str, Any]]:
    """What each case holds that the full run does not, beside what it announced."""
    model, _ = fake_model(real)
    full = held_after(model, real, steps)
    rows = []
    for case in cases or CASES:
        patched = with_node(comfy, model, *CASES[case])
        told = announced_by(patched)
        sizes = held_after(patched, real, steps)
        record = record_of(patched)
        kept = max(ours - theirs for ours, theirs in zip(sizes, full, strict=True))
        rows.append(
            dict(
                model=name,
                case=case,
                announced=max(told, default=0),
                held=kept,
                recorded=record.bytes,
                skipped=int(record.totals["skipped"]),
                partial=int(record.totals["partial"]),
                notes=[note.code for note in record.notes],
            )
        )
    return rows


def flops(comfy: Any, name: str, real: RealModel) -> list[dict[str, Any]]:
    """FLOPs of one conditioning: all tokens, half of them, and without the blocks."""
    model, forward = fake_model(real)
    forward.counting = True
    rows = []
    for case in ("accelerate 2x", "region, last value", "reuse"):
        patched = with_node(comfy, model, *CASES[case])
        forward.flops.clear()
        sample(patched, real, STEPS, cfg=1.0)
        record = record_of(patched)
        called = [e for e in record.evaluations if e.modes[0] != "skip"]
        for evaluation, counted in zip(called, forward.flops, strict=True):
            kind = evaluation.modes[0]
            if kind == "run" and evaluation.token_share[0] < 1:
                kind = "half of the tokens"
            cost = evaluation.cost[0]
            row = dict(model=name, kind=kind, counted=counted, cost=cost if cost > 1 else None)
            if kind not in [known["kind"] for known in rows]:
                rows.append(row)
    return rows


def weights(real: RealModel) -> dict[str, float]:
    """Size of a model."""
    model, _ = fake_model(real)
    tensors = list(model.model.diffusion_model.state_dict().values())
    return {
        "parameters": float(sum(t.numel() for t in tensors)),
        "weight_bytes": float(sum(t.numel() * t.element_size() for t in tensors)),
    }


def count(comfy: Any, name: str, real: RealModel, log: Callable[[str], None]) -> dict[str, Any]:
    """All of one model; what cannot be counted has its reason in place of it."""
    found: dict[str, Any] = {"model": name, "title": real.title}
    parts: dict[str, Callable[[], Any]] = {
        "weights": lambda: weights(real),
        "flops": lambda: flops(comfy, name, real),
        "memory": lambda: memory(comfy, name, real),
    }
    for part, counted in parts.items():
        try:
            found[part] = counted()
        except Exception as error:
            found[f"{part}_failed"] = f"{type(error).__name__}: {error}"[:300]
        log(f"{name}, {part}: {found.get(part) or found[f'{part}_failed']}")
    return found
