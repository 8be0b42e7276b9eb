"""Policy files: safetensors with metadata that says what a policy is for, how it was made and what
it measured.

Format `rapid-policy` version 1. Metadata values are strings; lists and numbers among them are JSON.
Everything is checked when a file is read, and an error names the file and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..architectures import FAMILIES

FORMAT, VERSION = "rapid-policy", "1"
KINDS = ("schedule", "threshold", "heads")
MOST_SPEEDUP = 6.0  # that RAPID Accelerate offers
LARGEST = 64 * 2**20  # bytes; heads of real models are 3 to 16 MiB
REQUIRED = ("architecture", "base_model", "budgets", "reward", "training_command", "licence")


class PolicyError(ValueError):
    """A policy file that cannot be used; says which file and field, what was found and what to
    do."""


@dataclass(frozen=True)
class PolicyFile:
    """A policy as it was read. metadata: all strings; budgets: speed-ups it was made for,
    rising."""

    path: Path
    kind: str
    architecture: str
    budgets: tuple[float, ...]
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

    def field_error(self, field: str, said: str) -> PolicyError:
        """An error about a field."""
        return PolicyError(f"policy {self.path.name}: {field} {said}")

    def number(self, field: str) -> Any:
        """A metadata value that is JSON."""
        try:
            return json.loads(self.metadata[field])
        except KeyError:
            raise self.field_error(field, "is missing from the metadata") from None
        except (
            ValueError,
            RecursionError,
        ) as error:  # not JSON, or an integer of thousands of digits
            raise self.field_error(
                field, f"= {self.metadata[field][:80]!r} is not JSON ({error})"
            ) from None

    def tensor(
        self, field: str, shape: tuple[int | None, ...], dtype: torch.dtype | None = None
    ) -> Tensor:
        """A tensor of this shape (None: any length), without NaN or infinity."""
        if field not in self.tensors:
            raise self.field_error(field, "is missing from the tensors")
        found = self.tensors[field]
        if len(found.shape) != len(shape) or any(
            w not in (None, n) for w, n in zip(shape, found.shape, strict=True)
        ):
            wanted = " x ".join("any" if n is None else str(n) for n in shape)
            raise self.field_error(field, f"has shape {tuple(found.shape)}; wanted is {wanted}")
        if dtype is not None and found.dtype != dtype:
            raise self.field_error(field, f"has type {found.dtype}; wanted is {dtype}")
        if found.is_floating_point() and not torch.isfinite(found).all():
            raise self.field_error(
                field,
                "holds NaN or infinite values; the file is damaged or its training went wrong",
            )
        return found


def read(path: Path) -> PolicyFile:
    """A policy file, with what all kinds have in common checked. Raises PolicyError."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise PolicyError(f"policy {path.name}: cannot be read ({error.strerror})") from None
    if size > LARGEST:
        raise PolicyError(
            f"policy {path.name}: {size / 2**20:.0f} MiB; a policy has at most {LARGEST // 2**20} MiB. "
            "Is this a model?"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_format(path, metadata)
            # Copies: on Windows a file that is still mapped cannot be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise PolicyError(
            f"policy {path.name}: not a whole safetensors file ({error}); fetch it again"
        ) from None
    return _checked(
        PolicyFile(
            path, metadata.get("kind", ""), metadata.get("architecture", ""), (), metadata, tensors
        )
    )


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    for field, wanted in (("format", FORMAT), ("version", VERSION)):
        if metadata.get(field) != wanted:
            found = repr(metadata[field]) if field in metadata else "missing"
            raise PolicyError(
                f"policy {path.name}: {field} is {found}; this version of RAPID reads {wanted!r}"
            )


def _checked(file: PolicyFile) -> PolicyFile:
    if file.kind not in KINDS:
        raise file.field_error("kind", f"= {file.kind!r}; known are {', '.join(KINDS)}")
    for field in REQUIRED:
        if not file.metadata.get(field):
            raise file.field_error(field, "is missing from the metadata")
    if file.architecture not in FAMILIES:
        raise file.field_error(
            "architecture", f"= {file.architecture!r}; known are {', '.join(FAMILIES)}"
        )
    budgets = file.number("budgets")
    fine = isinstance(budgets, list) and budgets and all(map(_speed, budgets))
    if not fine or sorted(set(budgets)) != budgets:
        raise file.field_error(
            "budgets", f"= {budgets!r}; wanted is a rising list of speed-ups from 1 to 20"
        )
    return PolicyFile(
        file.path,
        file.kind,
        file.architecture,
        tuple(map(float, budgets)),
        file.metadata,
        file.tensors,
    )


def _speed(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= 20


def write(
    path: Path, kind: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> PolicyFile:
    """Write a policy file and read it back. metadata: strings as they are, everything else as JSON.
    Raises PolicyError for what could not be read again; a file that was there before is then left
    as it is."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    body = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(body, part, {"format": FORMAT, "version": VERSION, "kind": kind, **texts})
    try:
        found = read(part)
    except PolicyError as error:
        part.unlink()
        raise PolicyError(str(error).replace(part.name, path.name)) from None
    part.replace(path)
    return replace(found, path=path)
