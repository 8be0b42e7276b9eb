"""One image of a batch by itself: everything that the host has prepared for the batch, cut down to
its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfy.conds import CONDConstant, CONDCrossAttn, CONDList, CONDNoiseShape, CONDRegular
from torch import Tensor


@contextmanager
def slice_batch(model: Any, image: int, batch: int, arguments: dict) -> Iterator[dict]:
    """Arguments for the sampler's `model` (KSamplerX0Inpaint around a guider) that evaluate one
    image of a batch alone; model and guider are as before afterwards. Raises ValueError for what
    cannot be split."""
    if batch == 1:
        yield arguments
        return
    guider = model.inner_model
    changed = [(guider, name, _cut(conds, image)) for name, conds in _prepared(guider).items()]
    changed += [
        (model, name, row(getattr(model, name), image)) for name in ("noise", "latent_image")
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    try:
        for owner, name, value in changed:
            setattr(owner, name, value)
        yield {**arguments, "denoise_mask": row(arguments.get("denoise_mask"), image)}
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def row(value: Any, image: int) -> Any:
    """An image's row of a batched tensor; the host repeats what has fewer rows than the batch."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    at = image % value.shape[0]
    return value[at : at + 1]


def _prepared(guider: Any) -> dict[str, Any]:
    """Attributes of a guider that hold conditions as the host prepared them: `conds`, and what its
    kind has besides."""
    found = {
        n: v for n, v in vars(guider).items() if n != "original_conds" and v and _holds_conds(v)
    }
    if "conds" not in found:  # the host would give every image the first one's
        raise cannot("the guider's conditions are of a kind that it does not know")
    return found


def _holds_conds(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(_holds_conds(v) for v in value.values())
    return isinstance(value, list) and all(
        isinstance(c, dict) and "model_conds" in c for c in value
    )


def _cut(conds: Any, image: int) -> Any:
    if isinstance(conds, dict):
        return {name: _cut(some, image) for name, some in conds.items()}
    return [_one(cond, image) for cond in conds]


def _one(cond: dict, image: int) -> dict:
    _check(cond)
    out = {
        **cond,
        "model_conds": {name: _value(name, c, image) for name, c in cond["model_conds"].items()},
    }
    return {**out, "mask": row(cond["mask"], image)} if "mask" in cond else out


def _value(name: str, value: Any, image: int) -> Any:
    if type(value) is CONDConstant:
        return value
    if type(value) is CONDList:
        return CONDList([row(part, image) for part in value.cond])
    if type(value) in (CONDRegular, CONDNoiseShape, CONDCrossAttn):
        return type(value)(row(value.cond, image))
    raise cannot(
        f"the condition {name} ({type(value).__name__}) is of a kind that it does not know"
    )


def _check(cond: dict) -> None:
    """Raise ValueError for parts of a condition that keep the batch, or the way through the noise
    levels, to themselves."""
    control = cond.get("control")
    while control is not None:
        hints = [
            getattr(control, "cond_hint_original", None),
            *getattr(control, "extra_concat_orig", ()),
        ]
        most = max((len(hint) for hint in hints if isinstance(hint, Tensor)), default=1)
        if most > 1:
            raise cannot(f"a ControlNet has {most} hint images")
        control = getattr(control, "previous_controlnet", None)
    hooks = getattr(cond.get("hooks"), "hooks", ())
    if any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks):
        raise cannot("a hook's keyframes have passed when the first is done")


def cannot(why: str) -> ValueError:
    """An error about a batch that cannot be run image by image."""
    return ValueError(
        f"RAPID Policy Sampler: images of a batch are sampled one after another, and {why}. "
        "Set the batch size to 1."
    )
