"""The folder that training keeps its state in: it belongs to one workflow, its prompts and its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.files import write_text


def claim(folder: Path, workflow: dict, prompts: Sequence[str], settings: dict[str, Any]) -> None:
    """Make a state folder, or go on with it. Raises ValueError where it holds the state of something else: pictures and
    scores kept there would be taken for this one's."""
    text = json.dumps([workflow, list(prompts)], sort_keys=True)
    own = {"workflow and prompts": hashlib.blake2b(text.encode(), digest_size=12).hexdigest(), **settings}
    own = json.loads(json.dumps(own))
    path = folder / "settings.json"
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        other = sorted(name for name in own.keys() | kept.keys() if own.get(name) != kept.get(name))
        if other:
            raise ValueError(f"{folder} holds the state of a training with other {', '.join(other)}; give another "
                             "--state or --out, or delete it")  # fmt: skip
        return
    write_text(path, json.dumps(own, indent=1) + "\n")
