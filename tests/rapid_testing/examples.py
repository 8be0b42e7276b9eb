"""Example workflows in API form, made ready for ComfyUI's page: numbered nodes, and a note of the
files they need."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from devkit.base_folder import REPOSITORY

FOLDER = REPOSITORY / "example_workflows"
# Folders of models/ by loader and input.
FILES = {
    "unet_name": "diffusion_models",
    "model_name": "diffusion_models",
    "text_encoder": "text_encoders",
    "ckpt_name": "checkpoints",
    "vae_name": "vae",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "lora_name": "loras",
    "policy": "rapid_policies",
}

SMALL = ("taesd3", "taef1")  # names of VAEs that are several files


def names() -> list[str]:
    """Examples by name."""
    return sorted(path.stem for path in (FOLDER / "api").glob("*.json"))


def api(name: str) -> dict[str, Any]:
    """An example in API form."""
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def numbered(graph: dict[str, Any]) -> dict[str, Any]:
    """The same graph with numbers for names of nodes, each after those it takes from."""
    order: list[str] = []

    def visit(node: str) -> None:
        if node in order:
            return
        for value in graph[node]["inputs"].values():
            if isinstance(value, list):
                visit(value[0])
        order.append(node)

    for node in graph:
        visit(node)
    ids = {node: str(i + 1) for i, node in enumerate(order)}

    def moved(inputs: dict[str, Any]) -> dict[str, Any]:
        return {k: [ids[v[0]], v[1]] if isinstance(v, list) else v for k, v in inputs.items()}

    return {ids[node]: {**graph[node], "inputs": moved(graph[node]["inputs"])} for node in order}


def completed(graph: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """A graph with the defaults that a page fills in for inputs that are not given. info: the
    server's object_info."""

    def defaults(kind: str) -> dict[str, Any]:
        given = info[kind]["input"]
        some = {**given.get("required", {}), **given.get("optional", {})}
        return {
            name: rest[0]["default"]
            for name, (_, *rest) in some.items()
            if rest and "default" in rest[0]
        }

    return {
        i: {**node, "inputs": {**defaults(node["class_type"]), **node["inputs"]}}
        for i, node in graph.items()
    }


def files(graph: dict[str, Any]) -> list[str]:
    """Model files that a graph loads, as folder/name."""
    return sorted(
        {
            f"{FILES[name]}/{value}"
            for node in graph.values()
            for name, value in node["inputs"].items()
            if name in FILES and isinstance(value, str) and value not in SMALL
        }
    )


def note(graph: dict[str, Any], text: str) -> str:
    """What a note beside the graph says, as Markdown."""
    kinds = {node["class_type"] for node in graph.values()}
    demo = "RAPIDDemoPrompt" in kinds
    policies = [file for file in files(graph) if file.startswith("rapid_policies/")]
    lines = "\n".join(f"- `models/{file}`" for file in files(graph) if file not in policies)
    what = (
        "It needs the demo's nodes and files, which `python3 dev.py serve` brings along:"
        if demo
        else "Model files, of Alpha-VLLM/Lumina-Next-SFT-diffusers, google/gemma-2b and SDXL:"
        if "RAPID_LoadLuminaNext" in kinds
        else "Model files, as ComfyUI's own templates have them:"
    )
    where = [
        f"The policy, `{file.partition('/')[2]}`, comes with the pack."
        if demo
        else f"Make the policy file, `models/{file}`, and choose it in RAPID Load Policy."
        for file in policies
    ]
    return "\n\n".join([text, f"{what}\n\n{lines}", *where])


def addresses() -> dict[str, dict[str, str]]:
    """Where ComfyUI's own templates have model files from, by file: url, and directory in
    models/."""
    return json.loads((Path(__file__).parent / "model_files.json").read_text(encoding="utf-8"))


def with_addresses(workflow: dict[str, Any]) -> dict[str, Any]:
    """A UI workflow whose loaders say where their files can be had, so that the page offers those
    that are missing."""
    known = addresses()
    for node in workflow["nodes"]:
        found = [
            {"name": value, **known[value]}
            for value in node.get("widgets_values") or []
            if isinstance(value, str) and value in known
        ]
        if found:
            node["properties"]["models"] = found
    return workflow


def described(graph: dict[str, Any]) -> list[str]:
    """Every node as text, with what it takes from instead of names, sorted: the same for graphs
    that are one but for names and titles of nodes."""
    known: dict[str, str] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            made = text(value[0])
            return [
                f"{made.split(' ')[0]} {hashlib.blake2b(made.encode(), digest_size=4).hexdigest()}",
                value[1],
            ]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def text(node: str) -> str:
        if node not in known:
            inputs = {name: plain(value) for name, value in graph[node]["inputs"].items()}
            known[node] = f"{graph[node]['class_type']} {json.dumps(inputs, sort_keys=True)}"
        return known[node]

    return sorted(text(node) for node in graph)


def picture_path(name: str) -> Path:
    """An example's thumbnail."""
    return FOLDER / f"{name}.jpg"
