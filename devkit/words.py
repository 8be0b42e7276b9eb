"""What ComfyUI's interface says of the nodes, in locales/<language>/nodeDefs.json; English is made
from the schemas, Traditional Chinese of the Simplified.

After words of a node have changed: RAPID_HOST_TREE=<folder of a ComfyUI> python -m devkit.words"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from devkit.base_folder import REPOSITORY, make_base_folder, remove_base_folder
from devkit.comfy_process import import_comfy
from devkit.traditional import write as write_traditional


def path_of(language: str) -> Path:
    """Where ComfyUI looks for a language's words (app/custom_node_manager.py)."""
    return REPOSITORY / "locales" / language / "nodeDefs.json"


def words_of(nodes: Iterable[Any]) -> dict:
    """Words of nodes as the frontend expects them: inputs by their id, outputs by their place."""
    return {schema.node_id: of_schema(schema) for schema in (node.GET_SCHEMA() for node in nodes)}


def of_schema(schema: Any) -> dict:
    """Words of one node."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {slot.id: of_slot(slot, slot.id) for slot in schema.inputs},
        "outputs": {
            str(place): of_slot(slot, slot.get_io_type())
            for place, slot in enumerate(schema.outputs)
        },
    }


def of_slot(slot: Any, otherwise: str) -> dict:
    """Name and tooltip of an input or output; an input without a name shows its id, an output its
    type."""
    return {"name": slot.display_name or otherwise, "tooltip": slot.tooltip}


def nodes_of(pack: ModuleType) -> list[Any]:
    """Node classes of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes").NODES


def main() -> None:
    """Write locales/en/nodeDefs.json, help pages in English where the page looks for them first, and
    all that is in Traditional Chinese."""
    base = make_base_folder(Path(tempfile.mkdtemp(prefix="rapid-words-")))
    try:
        pack = import_comfy(base).load_pack(base / "custom_nodes" / "rapid")
        path = path_of("en")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(words_of(nodes_of(pack)), indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
        for page in (REPOSITORY / "web" / "docs").glob("*.md"):  # asked for by its language first
            (page.with_suffix("") / "en.md").write_bytes(page.read_bytes())
        write_traditional()
        print(f"{path}: {len(nodes_of(pack))} nodes")
    finally:
        remove_base_folder(base)


if __name__ == "__main__":
    main()
