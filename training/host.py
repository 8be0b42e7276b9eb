"""ComfyUI in this process: its nodes, the user's packs, and a way to run one node."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import sys
from pathlib import Path
from typing import Any

import torch


def find_tree(given: Path | None) -> Path:
    """The ComfyUI folder: the given one, or the one in whose custom_nodes this pack lies. Raises
    SystemExit."""
    here = Path(__file__).resolve().parents
    for tree in (
        [given] if given else [folder for folder in here if (folder / "nodes.py").is_file()]
    ):
        if (tree / "nodes.py").is_file() and (tree / "comfy").is_dir():
            return tree
    raise SystemExit(
        f"no ComfyUI in {given or 'the folders above this script'}; name it with --comfyui PATH"
    )


class Host:
    """The imported host; once per process. arguments: ComfyUI's own, e.g. ["--cpu"]; packs: node
    packs to load, or None for all in custom_nodes."""

    def __init__(self, tree: Path, arguments: list[str], packs: list[Path] | None = None):
        given, sys.argv = sys.argv, ["main.py", *arguments]  # read while it is imported
        sys.path.insert(0, str(tree))
        try:
            importlib.import_module("comfy.options").enable_args_parsing()
            importlib.import_module(
                "utils.extra_config"
            )  # before `nodes` puts the folder of another `utils` first
            self.nodes: Any = importlib.import_module("nodes")
            importlib.import_module("comfy_extras")
        finally:
            sys.argv = given
        asyncio.run(self._load(tree, packs))
        importlib.import_module(
            "comfy.utils"
        ).PROGRESS_BAR_ENABLED = False  # of every run's own; ours are above them

    async def _load(self, tree: Path, packs: list[Path] | None) -> None:
        server = importlib.import_module("server")
        if getattr(server.PromptServer, "instance", None) is None:  # packs add their routes to it
            server.PromptServer(asyncio.get_running_loop())
        extra = importlib.import_module("utils.extra_config")
        given = importlib.import_module("comfy.cli_args").args.extra_model_paths_config or []
        for path in [tree / "extra_model_paths.yaml", *map(Path, itertools.chain(*given))]:
            if path.is_file():
                extra.load_extra_path_config(str(path))
        if packs is None:
            await self.nodes.init_extra_nodes(init_api_nodes=False)
            return
        for path in sorted((tree / "comfy_extras").glob("nodes_*.py")):
            await self.nodes.load_custom_node(str(path), module_parent="comfy_extras")
        for path in packs:
            await self.nodes.load_custom_node(str(path))

    def policies(self) -> Path:
        """Where policies belong."""
        return Path(importlib.import_module("folder_paths").models_dir) / "rapid_policies"

    def run(self, class_type: str, inputs: dict[str, Any]) -> tuple:
        """Outputs of a node, called as the host's executor does: with hidden inputs, dynamic ones
        nested, values that the page has wrapped unwrapped. Raises ValueError for one that is not
        installed."""
        node = self.nodes.NODE_CLASS_MAPPINGS.get(class_type)
        if node is None:
            raise ValueError(
                f"node {class_type} of the workflow is not installed here; install its pack"
            )
        return call(node, class_type, inputs)


def call(node: Any, class_type: str, inputs: dict[str, Any]) -> tuple:
    """Outputs of a node class of the host, V1 or V3."""
    plain = {
        k: v["__value__"] if isinstance(v, dict) and "__value__" in v else v
        for k, v in inputs.items()
    }
    lists, _, v3 = importlib.import_module("execution").get_input_data(plain, node, class_type)
    given = (
        lists
        if getattr(node, "INPUT_IS_LIST", False)
        else {k: values[-1] for k, values in lists.items()}
    )
    with torch.inference_mode():
        if hasattr(node, "GET_SCHEMA"):
            instance = node.PREPARE_CLASS_CLONE(v3)
            given = importlib.import_module("comfy_api.latest._io").build_nested_inputs(given, v3)
        else:
            instance = node()
        found = getattr(instance, node.FUNCTION)(**given)
        found = asyncio.run(found) if inspect.isawaitable(found) else found
    if isinstance(found, dict):
        found = found.get("result", ())
    return tuple(getattr(found, "args", None) or found)


def family_of(model: Any) -> Any:
    """The architecture of a model. Raises ValueError for one that RAPID does not know."""
    from rapid_core.architectures import describe

    network = model.model.diffusion_model
    found = describe(network)
    if found is None:
        raise ValueError(
            f"policies need a model family that RAPID knows; this one is {type(network).__name__}"
        )
    return found


def size_of(model: Any) -> dict[str, Any]:
    """What a policy's file says of the model it is for. Raises ValueError as `family_of`."""
    found = family_of(model)
    return {"architecture": found.family, "hidden": found.width(model.model.diffusion_model)}


def attach(model: Any, policy: Any) -> Any:
    """A clone of a model with a policy; the host has to be started before this is imported."""
    from rapid_core.comfy.chain import attach as attached

    return attached(model, policy)


def last_record(model: Any) -> Any:
    """Record of the latest run of a model with a policy."""
    from rapid_core.comfy.chain import chain_of

    return chain_of(model).log.records[-1]
