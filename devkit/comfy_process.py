"""ComfyUI inside the test process: imported once, with its command line set first."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from devkit.base_folder import make_base_folder
from devkit.device import has_gpu
from devkit.server import host_arguments


@dataclass(frozen=True)
class Comfy:
    """The imported host."""

    tree: Path
    base: Path
    version: str
    nodes: ModuleType

    def load_pack(self, folder: Path) -> ModuleType:
        """Load a node pack by the host's own loader; raise with the host's words if it does not
        load."""
        records = _Records()
        logging.getLogger().addHandler(records)
        try:
            loaded = asyncio.run(self.nodes.load_custom_node(str(folder)))
        finally:
            logging.getLogger().removeHandler(records)
        if not loaded:
            raise AssertionError(
                f"ComfyUI {self.version} does not load {folder.name}:\n{records.text()}"
            )
        return sys.modules[str(folder).replace(".", "_x_")]

    def load_core_nodes(self, file_name: str) -> ModuleType:
        """Load nodes of the host that are not in nodes.py, e.g.
        load_core_nodes("nodes_easycache.py")."""
        path = self.tree / "comfy_extras" / file_name
        if not asyncio.run(self.nodes.load_custom_node(str(path), module_parent="comfy_extras")):
            raise AssertionError(f"ComfyUI {self.version} does not load {path}")
        return sys.modules[os.path.splitext(str(path))[0]]

    def run_node(self, node_id: str, **inputs: Any) -> tuple:
        """Run a node as the executor would; returns its outputs (V1 and V3 nodes)."""
        node = self.nodes.NODE_CLASS_MAPPINGS.get(node_id)
        if node is None:
            raise KeyError(
                f"node {node_id} is not loaded; loaded packs offer {sorted(self.pack_nodes())}"
            )
        with torch.inference_mode():
            if hasattr(node, "GET_SCHEMA"):
                return tuple(node.PREPARE_CLASS_CLONE(None).execute(**inputs).args)
            return tuple(getattr(node(), node.FUNCTION)(**inputs))

    def pack_nodes(self) -> list[str]:
        """Ids of all nodes that come from packs."""
        nodes = self.nodes.NODE_CLASS_MAPPINGS.items()
        return [
            name
            for name, node in nodes
            if "custom_nodes." in getattr(node, "RELATIVE_PYTHON_MODULE", "")
        ]


class _Records(logging.Handler):
    """Collects log records while a pack loads."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())

    def text(self) -> str:
        """All messages."""
        return "\n".join(self.records)


def host_tree() -> Path:
    """The ComfyUI tree that dev.py named, or an error that says how to run the tests."""
    tree = os.environ.get("RAPID_HOST_TREE")
    if not tree or not (Path(tree) / "nodes.py").is_file():
        raise RuntimeError(
            f"RAPID_HOST_TREE is {tree!r}: integration tests need the folder of a ComfyUI release; "
            "run them by `python3 dev.py test tests/integration`"
        )
    return Path(tree)


def import_comfy(base: Path) -> Comfy:
    """Import ComfyUI with `base` as its base folder; once per process, since its settings are
    global."""
    tree = host_tree()
    make_base_folder(base)
    # ComfyUI reads its command line while it is imported.
    arguments, sys.argv = (
        sys.argv,
        ["main.py", *host_arguments(base, has_gpu(Path(sys.executable)))],
    )
    sys.path.insert(0, str(tree))
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
        nodes = importlib.import_module("nodes")
        version = importlib.import_module("comfyui_version").__version__
    finally:
        sys.argv = arguments
    return Comfy(tree, base, version, nodes)


def load_everything(base: Path) -> Comfy:
    """ComfyUI with this pack, the demo pack and the core's own extra nodes that benchmarks compare
    with."""
    comfy = import_comfy(base)
    for name in ("rapid", "rapid_demo"):
        comfy.load_pack(comfy.base / "custom_nodes" / name)
    for name in ("nodes_easycache.py", "nodes_flux.py"):
        comfy.load_core_nodes(name)
    return comfy
