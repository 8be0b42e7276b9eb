"""What a calibration keeps until its file is written, so that one that was interrupted goes on: figures
in `<name>.calibration.json`, and the latents of full pictures in `<name>.calibration.latents` (a
safetensors file, by another ending, since files of that one are policies here)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .plans import Figures

VERSION = 1


class State:
    """The state of one calibration.

    folder: where its file will be; name: the file's, without ending; inputs: fingerprint of all that
    decides the pictures; steps: of its runs."""

    def __init__(self, folder: Path, name: str, inputs: str, steps: int):
        self.path = folder / f"{name}.calibration.json"
        self.latents_path = folder / f"{name}.calibration.latents"
        self.inputs = inputs
        self.steps = steps

    def read(self) -> tuple[Figures, dict[int, Tensor]]:
        """What was drawn before of the same inputs, and latents by number; nothing where there is
        none, or it cannot be read. Full pictures whose latent is lost are drawn again."""
        figures = self._figures()
        latents = self._latents()
        for number in [number for number in figures.tables if number not in latents]:
            figures.lose(number)
        return figures, {number: latents[number] for number in figures.tables}

    def _figures(self) -> Figures:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["version"] == VERSION and found["inputs"] == self.inputs:
                return Figures.from_json(found["figures"], self.steps)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        return Figures()

    def _latents(self) -> dict[int, Tensor]:
        """By number; a name has the inputs in it, since the two files are not written at once."""
        try:
            found = load(self.latents_path.read_bytes())  # not mapped: it will be replaced
        except (OSError, SafetensorError, ValueError):
            return {}
        prefix = f"{self.inputs}."
        return {
            int(name.removeprefix(prefix)): tensor
            for name, tensor in found.items()
            if name.startswith(prefix)
        }

    def check(self) -> None:
        """Raise OSError where nothing can be kept. What another calibration of this name has kept stays
        until the first picture of this one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = _part_of(self.path)
        try:
            part.write_bytes(b"can this be written?")
        finally:
            part.unlink(missing_ok=True)

    def write(self, figures: Figures) -> None:
        """Keep figures. Raises OSError."""
        kept = {"version": VERSION, "inputs": self.inputs, "figures": figures.to_json()}
        _replace(self.path, json.dumps(kept).encode())

    def write_latents(self, latents: Mapping[int, Tensor]) -> None:
        """Keep latents by number. Raises OSError."""
        named = {f"{self.inputs}.{n}": tensor.contiguous() for n, tensor in latents.items()}
        _replace(self.latents_path, save(named))

    def remove(self) -> None:
        """The calibration's file is written. Raises OSError."""
        self.path.unlink(missing_ok=True)
        self.latents_path.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    """A file that is there whole or as it was before. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    """A name beside a file that nobody else has."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
