"""ComfyUI in this process: its nodes, the user's packs, and a way to run a workflow."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar


def find_tree(given: Path | None) -> Path:
    """The ComfyUI folder: the given one, or the one in whose custom_nodes this pack lies. Raises
    SystemExit."""
    for tree in [given] if given else Path(__file__).resolve().parents:
        if (tree / "nodes.py").is_file() and (tree / "comfy").is_dir():
            return tree
    raise SystemExit(
        f"no ComfyUI in {given or 'the folders above this script'}; name it with --comfyui PATH"
    )


class Host:
    """The imported host; once per process. arguments: ComfyUI's own, e.g. ["--cpu"]; packs: node
    packs to load, or None for all in custom_nodes."""

    def __init__(self, tree: Path, arguments: list[str], packs: list[Path] | None = None):
        command_line = sys.argv
        sys.argv = ["main.py", *arguments]  # read while it is imported
        sys.path.insert(0, str(tree))
        try:
            importlib.import_module("comfy.options").enable_args_parsing()
            # Before `nodes`, which puts the folder of another `utils` first.
            importlib.import_module("utils.extra_config")
            self.nodes: Any = importlib.import_module("nodes")
            importlib.import_module("comfy_extras")
        finally:
            sys.argv = command_line
        asyncio.run(self._load(tree, packs))
        # Of every run's own; ours are above them.
        utils: Any = importlib.import_module("comfy.utils")
        utils.PROGRESS_BAR_ENABLED = False

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


class Hook:
    """A node that training puts into a workflow: it hands on what a function makes of a value, anew
    every time."""

    RETURN_TYPES = ("*",)
    FUNCTION = "run"
    CATEGORY = "RAPID/training"
    functions: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    """By name, while a workflow runs; a value whose name is not there is handed on as it is."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"name": ("STRING",)}, "optional": {"value": ("*",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        return float("nan")  # unlike itself, so that its output is never taken from a cache

    def run(self, name: str, value: Any = None) -> tuple:
        function = self.functions.get(name)
        return (value if function is None else function(value),)


HOOK = "RAPIDTrainingHook"


def hook(name: str, link: tuple[str, int] | None = None) -> dict:
    """A hook as a node of a workflow in API form. link: where its value comes from."""
    value = {} if link is None else {"value": list(link)}
    return {"class_type": HOOK, "inputs": {"name": name, **value}}


class _NoServer:
    """What the executor sends progress to where nobody is connected."""

    client_id = None
    last_node_id = None

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        return


class Executor:
    """The host's executor, which keeps the outputs of nodes whose inputs do not change. One a
    workflow, so that none forgets another's."""

    def __init__(self) -> None:
        self._executor: Any = None  # made by the first run: the host is imported by then

    def run(
        self, prompt: dict[str, dict], node: str, functions: Mapping[str, Callable[[Any], Any]]
    ) -> None:
        """Run a node of a prompt in API form, and what it depends on. functions: of hooks, by name.
        Raises what a node raises; ValueError for one that is not installed."""
        known = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
        known.setdefault(HOOK, Hook)
        for one in prompt.values():
            if one["class_type"] not in known:
                raise ValueError(
                    f"node {one['class_type']} of the workflow is not installed here; install its "
                    "pack"
                )
        if self._executor is None:
            self._executor = _executor()
        self._executor.error = None
        Hook.functions = functions
        try:
            self._executor.execute(prompt, "rapid training", execute_outputs=[node])
        finally:
            Hook.functions = {}
        if self._executor.error is not None:
            raise self._executor.error


def _executor() -> Any:
    execution = importlib.import_module("execution")

    class PromptExecutor(execution.PromptExecutor):
        error: BaseException | None = None

        def handle_execution_error(
            self,
            prompt_id: str,
            prompt: dict,
            current_outputs: Any,
            executed: Any,
            error: dict,
            ex: BaseException,
        ) -> None:
            """Keep the exception, which the host would tell its page."""
            self.error = ex

    # All kinds of cache sizes that some version asks for; the cache is the classic one, which has
    # none.
    sizes = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    return PromptExecutor(_NoServer(), execution.CacheType.CLASSIC, sizes)


def family_of(model: Any) -> Any:
    """The architecture of a model. Raises ValueError for one that RAPID does not know."""
    from rapid_core.architectures import describe

    network = model.model.diffusion_model
    architecture = describe(network)
    if architecture is None:
        raise ValueError(
            f"policies need a model family that RAPID knows; this one is {type(network).__name__}"
        )
    return architecture


def size_of(model: Any) -> dict[str, Any]:
    """What a policy's file says of the model it is for. Raises ValueError as `family_of`."""
    architecture = family_of(model)
    width = architecture.width(model.model.diffusion_model)
    return {"architecture": architecture.family, "hidden": width}


def weights_of(model: Any) -> dict[str, str]:
    """What a policy's file says of the weights that it was made for, by which it is found; nothing
    where they cannot be looked at."""
    from rapid_core.comfy.model_key import weights_of as fingerprint

    weights = fingerprint(model)
    return {} if weights is None else {"weights": weights}


def attach(model: Any, policy: Any) -> Any:
    """A clone of a model with a policy; the host has to be started before this is imported."""
    from rapid_core.comfy.chain import attach as attach_policy

    return attach_policy(model, policy)


def last_record(model: Any) -> Any:
    """Record of the latest run of a model with a policy."""
    from rapid_core.comfy.chain import chain_of

    chain = chain_of(model)
    assert chain is not None
    return chain.log.records[-1]


def equivalent_steps(record: Any, image: int = 0) -> float:
    """Cost of an image's run in full evaluations."""
    return sum(e.cost[image] / max(e.full_cost[image], 1.0) for e in record.evaluations)


def cost_share(record: Any, image: int = 0) -> float:
    """Cost of an image's run as a share of the full run's."""
    full_cost = sum(e.full_cost[image] for e in record.evaluations)
    return sum(e.cost[image] for e in record.evaluations) / max(1.0, full_cost)
