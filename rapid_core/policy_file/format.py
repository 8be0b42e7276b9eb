"""Policy files: safetensors with metadata that says what a policy is for, how it was made and what
it measured.

Format `rapid-policy` version 1. Metadata values are strings; lists and numbers among them are JSON.
Everything is checked when a file is read; an error names the file, the field, what was given and
what is accepted."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..architectures import FAMILIES

FORMAT = "rapid-policy"
VERSION = "1"
KINDS = ("schedule", "threshold", "heads", "gaps")
MAX_SPEEDUP = 6.0  # that RAPID Accelerate offers
MAX_BUDGET = 20  # speed-up that a file may be made for
MAX_BYTES = 64 * 2**20  # heads of real models are 3 to 16 MiB
MAX_SHOWN = 80  # characters of a value in an error
REQUIRED = ("architecture", "base_model", "budgets", "reward", "training_command", "licence")


class PolicyError(ValueError):
    """A policy file that cannot be used; names the file and the field, what was given and what is
    accepted."""


@dataclass(frozen=True)
class PolicyFile:
    """A policy as it was read."""

    path: Path
    kind: str
    """One of KINDS."""
    architecture: str
    """Family of the models that it is for; of kind "gaps" a model's class, where it is of none."""
    budgets: tuple[float, ...]
    """Speed-ups that it was made for, rising."""
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def base_model(self) -> str:
        """What it was trained on."""
        return self.metadata["base_model"]

    def field_error(self, field: str, problem: str) -> PolicyError:
        """An error about a field."""
        return PolicyError(f"policy {self.path.name}: {field} {problem}")

    def refusal(self, field: str, value: Any, accepted: str) -> PolicyError:
        """An error about a field with this value."""
        return self.field_error(field, f"= {shown(value)}; accepted is {accepted}")

    def json(self, field: str) -> Any:
        """A metadata value that is JSON. Raises PolicyError where it is missing or is not."""
        if field not in self.metadata:
            raise self.field_error(field, "is missing from the metadata")
        text = self.metadata[field]
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:  # or an integer of thousands of digits
            raise self.field_error(field, f"= {shown(text)} is not JSON ({error})") from None

    def whole(self, field: str, low: int, high: int) -> int:
        """A metadata value that is a whole number from low to high. Raises PolicyError."""
        value = self.json(field)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refusal(field, value, f"a whole number from {low} to {high}")
        return value

    def tensor(
        self, field: str, shape: tuple[int | None, ...], dtype: torch.dtype | None = None
    ) -> Tensor:
        """A tensor of this shape (None: any length), without NaN or infinity. Raises
        PolicyError."""
        if field not in self.tensors:
            raise self.field_error(field, "is missing from the tensors")
        tensor = self.tensors[field]
        same = len(tensor.shape) == len(shape) and all(
            expected in (None, length) for expected, length in zip(shape, tensor.shape, strict=True)
        )
        if not same:
            accepted = " x ".join("any" if length is None else str(length) for length in shape)
            raise self.field_error(
                field, f"has shape {tuple(tensor.shape)}; accepted is {accepted}"
            )
        if dtype is not None and tensor.dtype != dtype:
            raise self.field_error(field, f"has type {tensor.dtype}; accepted is {dtype}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise self.field_error(
                field,
                "holds NaN or infinite values; the file is damaged or its training went wrong",
            )
        return tensor


def shown(value: Any) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether a JSON value is a number from low to high; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def read(path: Path) -> PolicyFile:
    """A policy file, with what all kinds have in common checked. Raises PolicyError."""
    with _opened(path) as (file, metadata):
        # Copies: on Windows a file that is still mapped cannot be replaced.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    kind = metadata.get("kind", "")
    architecture = metadata.get("architecture", "")
    return _checked(PolicyFile(path, kind, architecture, (), metadata, tensors))


def read_metadata(path: Path) -> dict[str, str]:
    """What a policy file says of itself; of that only the format is checked. Raises PolicyError."""
    with _opened(path) as (_, metadata):
        return metadata


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """An open policy file and its metadata. Raises PolicyError, also for what goes wrong while it is
    read."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise PolicyError(f"policy {path.name}: cannot be read ({error.strerror})") from None
    if size > MAX_BYTES:
        raise PolicyError(
            f"policy {path.name}: {size / 2**20:.0f} MiB; accepted is at most "
            f"{MAX_BYTES // 2**20} MiB. Is this a model?"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_format(path, metadata)
            yield file, metadata
    except (SafetensorError, OSError) as error:
        raise PolicyError(
            f"policy {path.name}: not a whole safetensors file ({error}); fetch it again"
        ) from None


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    for field, accepted in (("format", FORMAT), ("version", VERSION)):
        if metadata.get(field) != accepted:
            given = f"= {shown(metadata[field])}" if field in metadata else "is missing"
            raise PolicyError(f"policy {path.name}: {field} {given}; accepted is {accepted!r}")


def _checked(file: PolicyFile) -> PolicyFile:
    if file.kind not in KINDS:
        raise file.refusal("kind", file.kind, f"one of {', '.join(KINDS)}")
    for field in REQUIRED:
        if not file.metadata.get(field):
            raise file.field_error(field, "is missing from the metadata")
    # What gaps cost is seen on models of any family.
    if file.architecture not in FAMILIES and file.kind != "gaps":
        raise file.refusal("architecture", file.architecture, f"one of {', '.join(FAMILIES)}")
    budgets = file.json("budgets")
    speedups = isinstance(budgets, list) and all(is_number(b, 1, MAX_BUDGET) for b in budgets)
    if not speedups or not budgets or sorted(set(budgets)) != budgets:
        accepted = f"a rising list of speed-ups from 1 to {MAX_BUDGET}"
        raise file.refusal("budgets", budgets, accepted)
    return replace(file, budgets=tuple(map(float, budgets)))


def write(
    path: Path, kind: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> PolicyFile:
    """Write a policy file and read it back. metadata: strings as they are, everything else as JSON.
    Raises PolicyError for what could not be read again, OSError or SafetensorError where nothing can
    be written; a file that was there before is then left as it is."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
    }
    body = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")  # others may write it, too
    try:
        about = {"format": FORMAT, "version": VERSION, "kind": kind, **texts}
        part.write_bytes(save(body, about))  # `save_file` leaves them to their owner alone
        file = read(part)
        part.replace(path)
    except PolicyError as error:
        raise PolicyError(str(error).replace(part.name, path.name)) from None
    finally:
        part.unlink(missing_ok=True)
    return replace(file, path=path)
