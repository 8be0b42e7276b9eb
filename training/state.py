"""The folder that training keeps its state in: it belongs to one workflow, the weights of its
model, its prompts and its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluation.files import write_text
from training.processes import broadcast_from_rank0, rank

VERSION = 4  # of what such a folder holds


def open_state(
    folder: Path, workflow: dict, prompts: Sequence[str], settings: dict[str, Any]
) -> None:
    """Make a state folder, or go on with it. Raises ValueError where it holds the state of
    something else: pictures and scores kept there would be taken for this one's."""
    text = json.dumps([workflow, list(prompts)], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    own = {"version": VERSION, "workflow and prompts": digest, **settings}
    own = json.loads(json.dumps(own))
    path = folder / "settings.json"
    if not path.is_file():
        write_text(path, json.dumps(own, indent=1) + "\n")
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept.get("version") != VERSION:
        raise ValueError(
            f"{folder} holds the state of a training by another version of this script, which cannot "
            "be gone on with; give another --state or --out, or delete it"
        )
    other = sorted(name for name in own.keys() | kept.keys() if own.get(name) != kept.get(name))
    if other:
        raise ValueError(
            f"{folder} holds the state of a training with other {', '.join(other)}; give another "
            "--state or --out, or delete it"
        )


class JsonCache:
    """What was measured, by name, in a JSON file, so that a training that was killed goes on where
    it was. alone: by this process for itself, not by all of them together."""

    def __init__(self, path: Path, alone: bool = False):
        self.path = path
        self.alone = alone
        self.values: dict[str, Any] = self._read() if alone else broadcast_from_rank0(self._read)

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value of a name, measured once."""
        if name not in self.values:
            self.values[name] = json.loads(json.dumps(measure()))  # as it will be read again
            if self.alone or rank() == 0:
                write_text(self.path, json.dumps(self.values))
        return self.values[name]
