"""How often the host waits for its device, and where.

On CUDA torch itself warns of it. On a CPU nobody ever waits: there the tensors that would be on a
device are told from those of the host by where they come from, and what would make the host wait is
seen as it is called. A tensor is on the device where it was sent there (`to(device)`), was made
there (`device=...`), or came of one that is; a copy waits unless it is said not to
(`non_blocking`)."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OURS = ("rapid_core", "nodes")  # folders of the pack
CUDA_WORDS = "called a synchronizing"  # of torch's warning
_TORCH = str(Path(torch.__file__).parent)
_MARK = "_rapid_on_device"
# What reads values: by torch's operators, and by methods that go past them.
_READING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim")
_FETCHING = ("tolist", "numpy", "__array__", "cpu")
_FROM_NUMBERS = ("tensor", "as_tensor", "new_tensor")


@dataclass(frozen=True)
class Wait:
    """One time that the host waited."""

    kind: str
    """Name of what made it wait."""
    place: str
    """File and line that called it, "rapid_core/engine/run.py:111"."""
    ours: bool
    """Whether that is code of this pack."""


@dataclass
class Waits:
    """Of what was run."""

    by_evaluation: dict[int, list[Wait]] = field(default_factory=dict)
    """From 1 on; under 0 what was before the first evaluation and after the last."""
    evaluation: int = 0
    """How many evaluations have begun."""
    over: bool = False
    """Whether the last of them has ended."""

    def add(self, wait: Wait) -> None:
        """The host has waited."""
        place = 0 if self.over else self.evaluation
        self.by_evaluation.setdefault(place, []).append(wait)

    def next_evaluation(self) -> None:
        """An evaluation begins; what follows belongs to it, until the next one or `end`."""
        self.evaluation += 1
        self.over = False

    def end(self) -> None:
        """The sampler has ended."""
        self.over = True

    def of(self, ours: bool) -> list[int]:
        """How many there were in each evaluation, of this pack's code or of other's."""
        found = self.by_evaluation
        numbers = range(1, self.evaluation + 1)
        return [sum(wait.ours is ours for wait in found.get(i, ())) for i in numbers]

    def most(self) -> int:
        """The most of this pack's in one evaluation."""
        return max(self.of(ours=True), default=0)

    def places(self, ours: bool = True) -> dict[str, int]:
        """Within evaluations: how often at each place."""
        found = (w for i, some in self.by_evaluation.items() if i for w in some if w.ours is ours)
        return dict(Counter(f"{wait.place} {wait.kind}" for wait in found))


def place_of(file: str, line: int) -> tuple[str, bool]:
    """A place in a file as it is reported, and whether the file is this pack's."""
    parts = Path(file).parts
    for folder in OURS:
        if folder in parts and parts[-1] != "nodes.py":
            return f"{'/'.join(parts[parts.index(folder) :])}:{line}", True
    return f"{'/'.join(parts[-3:])}:{line}", False


@contextmanager
def count_waits(device: torch.device, on_device: Iterable[Tensor] = ()) -> Iterator[Waits]:
    """Count while the block runs. on_device: tensors that are on the device already, such as a
    model's weights; only a CPU has to be told."""
    waits = Waits()
    if device.type != "cuda":
        for tensor in on_device:
            _mark(tensor)
        with _Calls(waits), _Operators(waits):
            yield waits
        return
    before = torch.cuda.get_sync_debug_mode()
    shown = warnings.showwarning

    def seen(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        if CUDA_WORDS in str(message):
            waits.add(Wait("cuda", *_called_at()))
        else:
            shown(message, category, filename, lineno, *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = seen
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)


def watched(model: Any, waits: Waits) -> Any:
    """A clone of a MODEL whose evaluations are told to `waits`."""
    from comfy.patcher_extension import WrappersMP

    def evaluation(executor: Callable, *args: Any, **named: Any) -> Any:
        waits.next_evaluation()
        return executor(*args, **named)

    def sampler(executor: Callable, *args: Any, **named: Any) -> Any:
        out = executor(*args, **named)
        waits.end()
        return out

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "count_waits", sampler)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "count_waits", evaluation)
    return clone


def _is_on(value: Any) -> bool:
    return isinstance(value, Tensor) and getattr(value, _MARK, False)


def _mark(value: Any) -> None:
    if isinstance(value, Tensor):
        setattr(value, _MARK, True)


def _any_on(*values: Any) -> bool:
    return any(_is_on(leaf) for leaf in tree_leaves(values))


def _called_at() -> tuple[str, bool]:
    """Where, outside of torch and of this file, a call comes from."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in (__file__, warnings.__file__) and not file.startswith((_TORCH, "<")):
            return place_of(file, frame.f_lineno)
        frame = frame.f_back
    return "?", False


class _Operators(TorchDispatchMode):
    """Torch's operators: what reads values, and what comes of tensors on the device."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        on = _any_on(args, kwargs)
        if on and (name in _READING or self._waits_for_index(name, args)):
            self.waits.add(Wait(name, *_called_at()))
        out = func(*args, **kwargs)
        if on:
            for leaf in tree_leaves(out):
                _mark(leaf)
        return out

    @staticmethod
    def _waits_for_index(name: str, args: Any) -> bool:
        """Masks have to be counted before they can be indices; indices of the host's are copied."""
        if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return False
        numbers = name != "index" and args[2].numel() == 1  # filled, without counting
        given = [index for index in args[1] if index is not None]
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in given)
        copied = any(not _is_on(index) and index.ndim for index in given)
        return (masks and not numbers) or copied


class _Calls(TorchFunctionMode):
    """Torch's functions and methods: copies between host and device, which on a CPU are none."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        on = _any_on(args, kwargs)
        if name in ("to", "cuda", "type_as"):
            return self._sent(func, args, kwargs)
        if name == "copy_":
            self._copied(args, kwargs)
        if on and name in _FETCHING:
            self._wait(name)
        there = on or isinstance(kwargs.get("device"), torch.device)
        if name in _FROM_NUMBERS and there and not _is_on(args[1 if name == "new_tensor" else 0]):
            self._wait(name)
        out = func(*args, **kwargs)
        if name == "cpu":
            return out.detach() if on else out
        if there:
            for leaf in tree_leaves(out):
                _mark(leaf)
        return out

    def _wait(self, name: str) -> None:
        self.waits.add(Wait(name, *_called_at()))

    def _sent(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A tensor goes to a device, or comes from it: as a new one, even where nothing is
        copied."""
        tensor, *rest = args
        given = [*rest, *kwargs.values()]
        to_host = any(value == "cpu" for value in given if isinstance(value, str))
        to_device = any(isinstance(value, torch.device) or _is_on(value) for value in given)
        waits = not (kwargs.get("non_blocking") or True in rest[1:])
        out = func(*args, **kwargs)
        before = _is_on(tensor)
        if before and to_host:
            self._wait("to the host")
            return out.detach()
        if not before and to_device:
            if waits:
                self._wait("to the device")
            out = out.detach()
            _mark(out)
        elif before:
            _mark(out)
        return out

    def _copied(self, args: Any, kwargs: Any) -> None:
        into, source = args[:2]
        waits = not (kwargs.get("non_blocking") or True in args[2:])
        one = isinstance(source, Tensor) and not source.ndim and not _is_on(source)
        if waits and _is_on(into) != _is_on(source) and not one:
            self._wait("copy_")
