"""What a model is known by, out of what ComfyUI shows of it: a few of its weights, its patches, and
how it is sampled. The same file gives the same in another process and on another device."""

from __future__ import annotations

import hashlib
import inspect
import json
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from comfy.utils import get_attr
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor
from torch.nn import Module

from ..calibration.model_key import ModelKey, size_class
from ..engine.plan import HostFacts
from ..reasons import ReasonCode
from ..types import Reason
from .blocks import LayerHook
from .facts import evaluated
from .functions import maker_of, settings_of

TENSORS = 16  # of a model, whose values are looked at
VALUES = 64  # of a tensor; neighbours, so that a file on a disk is read at one place
HEX = 16  # digits of a fingerprint
SHORT = 4  # of that of a node's settings, which people see
MODEL = "diffusion_model"


def key_of(guider: Any, facts: HostFacts) -> ModelKey | Reason:
    """What the model of a guider that is about to sample is known by; why it cannot be told, where
    its weights cannot be looked at. Raises nothing."""
    try:
        patcher = guider.model_patcher
        conds = {name: guider.conds[name] for name in evaluated(guider, facts.sampler)}
        return ModelKey(
            family=facts.model_name,
            architecture=facts.architecture.family if facts.architecture else "",
            weights=_weights(patcher),
            patches=_patches(patcher, conds),
            sampler=facts.sampler,
            guidance=_guidance(guider, conds),
            turns=" ".join(map(maker_of, _functions(guider))),
            size=size_class(_sides(facts)),
            references=any(c.get("reference_latents") for listed in conds.values() for c in listed),
            sigmas=facts.sigmas,
        )
    except Exception as error:
        return Reason(ReasonCode.NOT_LEARNED, why=f"{type(error).__name__}: {error}")


def weights_of(patcher: Any) -> str | None:
    """Fingerprint of a model's weights without patches, 16 hex digits; None where they cannot be
    looked at. Raises nothing."""
    try:
        return _weights(patcher)
    except Exception:
        return None


def _sides(facts: HostFacts) -> Sequence[int]:
    """Sides of a latent without batch and channels; numbers in each part of a packed one."""
    return [part.stop - part.start for part in facts.parts] or facts.shape[2:]


# Options of a model where nodes put functions that change guidance, or what is sampled.
FUNCTIONS = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
    "denoise_mask_function",
)


def _functions(guider: Any) -> list[Any]:
    """What is there of a guider's run."""
    found = (guider.model_options.get(name) or () for name in FUNCTIONS)
    return [f for some in found for f in (some if isinstance(some, (list, tuple)) else [some])]


def _guidance(guider: Any, conds: Mapping[str, Sequence[dict]]) -> str:
    """Class of a guider and its scales: some have several, and all call them cfg or alike. Then those
    that distilled models are told (FluxGuidance), and nodes that change guidance, each with a
    fingerprint of its settings."""
    scales = [
        f"{value:g}"
        for name, value in sorted(vars(guider).items())
        if name.startswith("cfg") and isinstance(value, (int, float))
    ]
    told = [cond.get("guidance") for listed in conds.values() for cond in listed]
    distilled = {f"{float(value):g}" for value in told if isinstance(value, numbers.Real)}
    nodes = [f"{maker_of(f)}#{_fingerprint(_settings(f))[:SHORT]}" for f in _functions(guider)]
    return " ".join(
        [type(guider).__name__, *scales, *(f"guidance={d}" for d in sorted(distilled)), *nodes]
    )


def _settings(function: Any) -> Any:
    """Settings of the node that made a function as JSON has them, without tensors, which may be of the
    picture that is drawn."""
    settings = settings_of(function).items()
    return _content({name: value for name, value in settings if not isinstance(value, Tensor)})


# Weights.


@dataclass(frozen=True)
class _Layout:
    """A model's parameters, whatever is in them."""

    shapes: str
    """Fingerprint of all names and shapes."""
    chosen: tuple[str, ...]
    """Names of those whose values are looked at."""


# By the model that all clones of a patcher share. Values are read anew for every run, so that weights
# that were loaded into the same model, in place, are told from those before.
_LAYOUTS: WeakKeyDictionary[Module, _Layout] = WeakKeyDictionary()


def _weights(patcher: Any) -> str:
    """Fingerprint of a model's weights as its file has them. Raises what a model raises whose
    parameters cannot be looked at, and ValueError for one without any."""
    if patcher.model not in _LAYOUTS:
        _LAYOUTS[patcher.model] = _layout(patcher)
    layout = _LAYOUTS[patcher.model]
    modules = _replaced_modules(patcher)
    values = [_values(_original(patcher, name, modules)).hex() for name in layout.chosen]
    return _fingerprint([layout.shapes, *values])


def _layout(patcher: Any) -> _Layout:
    """Names and shapes of all parameters, without dtypes: the host keeps a file's weights at what
    suits the device."""
    modules = _replaced_modules(patcher)
    names = [
        name
        for name, _ in get_attr(patcher.model, MODEL).named_parameters(prefix=MODEL)
        if not any(name.startswith(f"{place}.") for place in modules)
    ]
    for place, module in modules.items():
        names += [name for name, _ in module.named_parameters(prefix=place)]
    if not names:
        raise ValueError("a model without weights")
    shapes = {name: tuple(_original(patcher, name, modules).shape) for name in sorted(names)}
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    # By a hash of the name: at even distances they might be the same layer of every block.
    chosen = sorted(matrices or names, key=_fingerprint)[:TENSORS]
    return _Layout(_fingerprint(shapes), tuple(chosen))


def _original(patcher: Any, name: str, modules: Mapping[str, Module]) -> Tensor:
    """A parameter as it was loaded: while a model with patches is loaded, its own or another
    clone's, patched weights stand in their place, and the patcher keeps the originals."""
    if name in patcher.backup:
        return patcher.backup[name].weight
    if name in patcher.hook_backup:
        return patcher.hook_backup[name][0]
    for place, module in modules.items():
        if name.startswith(f"{place}."):
            return get_attr(module, name[len(place) + 1 :])
    return get_attr(patcher.model, name)


def _replaced_modules(patcher: Any) -> dict[str, Module]:
    """The model's own modules, by their places, where an object patch stands now."""
    return {
        place: module
        for place, module in patcher.object_patches_backup.items()
        if isinstance(module, Module) and f"{place}.".startswith(f"{MODEL}.")
    }


def _values(tensor: Tensor) -> bytes:
    """Some values from the middle of a tensor of any kind, on any device. Numbers are taken as
    bfloat16 has them, so that a file gives the same whether the host keeps it as it is, in float32 or
    in bfloat16; rounded to fewer bits than that, they are others. Packed ones (GGUF) are taken as
    they are."""
    tensor = getattr(tensor, "_qdata", tensor)  # of the host's quantized tensors
    row = tensor.detach().as_subclass(Tensor)
    if not row.numel():
        return b""
    while row.ndim > 1:
        row = row[len(row) // 2]
    row = row.reshape(-1)
    start = max(0, (len(row) - VALUES) // 2)
    row = row[start : start + VALUES]
    # The host fills with zeros, once it loads the model, what the file did not have.
    row = torch.zeros_like(row, device="cpu") if row.is_meta else row.cpu()
    if row.is_floating_point():
        row = row.to(torch.bfloat16)
    return row.contiguous().view(torch.uint8).numpy().tobytes()


# Patches.


def _patches(patcher: Any, conds: Mapping[str, Sequence[dict]]) -> str:
    """Fingerprint of what changes the weights, or the modules, of a model in a run; empty where
    nothing does. RAPID's own hooks do not."""
    found = {
        "weights": _content(patcher.patches),
        "wrappers": _content(patcher.weight_wrapper_patches),
        "hooks": _hooks(conds),
        "objects": _objects(patcher),
        "injections": {
            name: [_content(_injected(injection)) for injection in injections]
            for name, injections in patcher.injections.items()
        },
        "loras": _content(getattr(patcher.model.diffusion_model, "loras", None)),  # Nunchaku's
    }
    found = {name: patches for name, patches in found.items() if patches}
    return _fingerprint(found) if found else ""


def _hooks(conds: Mapping[str, Sequence[dict]]) -> list:
    """Hooks of conditionings: where each one is, its strength, when, and its weights."""
    hooks = [
        (name, place, hook)
        for name, listed in conds.items()
        for place, cond in enumerate(listed)
        for hook in getattr(cond.get("hooks"), "hooks", ())
    ]
    return [
        [
            name,
            place,
            type(hook).__name__,
            getattr(hook, "_strength_model", None),  # without what the current keyframe makes of it
            [
                (k.strength, k.start_percent, k.guarantee_steps)
                for k in hook.hook_keyframe.keyframes
            ],
            _once(hook.hook_ref, getattr(hook, "weights", None)),
        ]
        for name, place, hook in hooks
    ]


def _objects(patcher: Any) -> dict:
    """What stands for modules of the model, or for their methods; not where it is the same module,
    compiled."""
    return {
        place: _content(patch)
        for place, patch in sorted(patcher.object_patches.items())
        if f"{place}.".startswith(f"{MODEL}.")
        and not isinstance(patch, LayerHook)
        and getattr(patch, "_orig_mod", None) is not _own(patcher, place)
    }


def _own(patcher: Any, place: str) -> Any:
    """What a model has itself where an object patch is."""
    own = patcher.object_patches_backup.get(place)
    return get_attr(patcher.model, place) if own is None else own


def _injected(injection: Any) -> Any:
    """What an injection brings: the adapters of a LoRA that the host puts beside the weights
    (bypass), or else the function that does it."""
    function = injection.inject
    seen = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    return getattr(seen.get("self"), "adapters", function)


# By what has them: an adapter, or the reference that all clones of a hook share. A LoRA has a thousand
# tensors.
_CONTENTS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def _once(owner: Any, value: Any) -> str:
    """Fingerprint of the content of a value that is the same for as long as its owner lives."""
    if owner not in _CONTENTS:
        _CONTENTS[owner] = _fingerprint(_content(value))
    return _CONTENTS[owner]


def _content(value: Any) -> Any:
    """A part of a patch as JSON has it, the same in every process: tensors by shape and some values,
    functions by name."""
    if isinstance(value, Tensor):
        return [list(value.shape), _values(value).hex()]
    if isinstance(value, WeightAdapterBase):
        return _once(value, [value.name, value.weights])
    if isinstance(value, Module):
        return [type(value).__name__, _content(dict(value.named_parameters()))]
    if isinstance(value, Mapping):
        pairs = [(str(_content(name)), _content(inner)) for name, inner in value.items()]
        return sorted(pairs, key=lambda pair: pair[0])
    if isinstance(value, (list, tuple)):
        return [_content(inner) for inner in value]
    if isinstance(value, numbers.Real):
        return float(value)
    if value is None or isinstance(value, str):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _fingerprint(value: Any) -> str:
    """Of anything that JSON has."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:HEX]
