"""Checks of workflows in API form against the nodes that ComfyUI has registered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VALUES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
# Inputs whose options are the files that happen to be there, and how the names of such files may
# end.
FILES = {
    ("UNETLoader", "unet_name"),
    ("CheckpointLoaderSimple", "ckpt_name"),
    ("VAELoader", "vae_name"),
    ("CLIPLoader", "clip_name"),
    ("DualCLIPLoader", "clip_name1"),
    ("DualCLIPLoader", "clip_name2"),
    ("RAPID_LoadPolicy", "policy"),
    ("LTXAVTextEncoderLoader", "text_encoder"),
    ("LTXAVTextEncoderLoader", "ckpt_name"),
    ("LTXVAudioVAELoader", "ckpt_name"),
    ("RAPID_LoadLuminaNext", "model_name"),
    ("RAPID_LoadLuminaNextText", "text_encoder"),
    ("LoadImage", "image"),
}
ENDINGS = (".safetensors", ".png")


@dataclass(frozen=True)
class Slot:
    """An input of a node: its type, its options (None where any value is taken), its range and
    step."""

    type: str
    required: bool
    options: tuple | None = None
    least: float | None = None
    most: float | None = None
    step: int | None = None

    @classmethod
    def read(cls, declared: tuple, required: bool) -> Slot:
        """From an entry of INPUT_TYPES, old or new."""
        kind, more = declared[0], declared[1] if len(declared) > 1 else {}
        if isinstance(kind, list):
            return cls("COMBO", required, tuple(kind))
        if kind == DYNAMIC:
            return cls("COMBO", required, tuple(option["key"] for option in more["options"]))
        options = tuple(more["options"]) if kind == "COMBO" else None
        step = more.get("step") if kind == "INT" else None
        return cls(str(kind), required, options, more.get("min"), more.get("max"), step)

    def refuses(self, value: Any) -> str:
        """What is wrong with a value that is written into the widget; empty where nothing is."""
        if self.options is not None:
            return (
                "" if value in self.options else f"{value!r} is none of {list(self.options)[:20]}"
            )
        kind = next((kind for kind in self.type.split(",") if kind in VALUES), None)
        if kind is None:
            return f"{value!r} is written where a link to {self.type} is needed"
        if not isinstance(value, VALUES[kind]) or isinstance(value, bool) != (kind == "BOOLEAN"):
            return f"{value!r} is no {self.type}"
        if (self.least is not None and value < self.least) or (
            self.most is not None and value > self.most
        ):
            return f"{value!r} is outside {self.least} .. {self.most}"
        if self.step and (value - (self.least or 0)) % self.step:
            return f"{value!r} is no multiple of {self.step} above {self.least or 0}"
        return ""


def slots(node: type) -> dict[str, Slot]:
    """Inputs of a registered node by name."""
    declared = node.INPUT_TYPES()
    return {
        name: Slot.read(entry, part == "required")
        for part in ("required", "optional")
        for name, entry in declared.get(part, {}).items()
    }


def fits(given: str, wanted: str) -> bool:
    """Whether an output of one type may be linked to an input of another; several types are joined
    by commas."""
    given, wanted = (set(str(kind).split(",")) for kind in (given, wanted))
    return bool(given & wanted) or "*" in given | wanted


def problems(graph: dict, registered: dict[str, type], files: bool = False) -> list[str]:
    """All that is wrong with a workflow. files: names of model files have to be among those that
    are there."""
    unknown = [
        f"{name}: no node {node['class_type']} is registered"
        for name, node in graph.items()
        if node["class_type"] not in registered
    ]
    if unknown:
        return unknown
    found = [
        f"{name}.{wrong}" for name in graph for wrong in _of_node(graph, name, registered, files)
    ]
    useful = _reaching_output(graph, registered)
    return found + [
        f"{name}: nothing that is shown or saved comes from it"
        for name in graph
        if name not in useful
    ]


def _of_node(graph: dict, name: str, registered: dict[str, type], files: bool) -> Iterator[str]:
    kind, given = graph[name]["class_type"], graph[name]["inputs"]
    there = slots(registered[kind])
    for key, slot in there.items():
        if slot.required and key not in given:
            yield f"{key}: is required"
    for key, value in given.items():
        if key not in there:
            yield f"{key}: there is no such input; {kind} has {', '.join(there)}"
        elif isinstance(value, list):
            wrong = _link(graph, value, there[key], registered)
        elif (kind, key) in FILES and not files:
            wrong = "" if str(value).endswith(ENDINGS) else there[key].refuses(value)
        else:
            wrong = there[key].refuses(value)
        if key in there and wrong:
            yield f"{key}: {wrong}"


def _link(graph: dict, link: list, slot: Slot, registered: dict[str, type]) -> str:
    source, number = link
    if source not in graph:
        return f"is linked to {source}, which is not in the workflow"
    kind = graph[source]["class_type"]
    outputs = registered[kind].RETURN_TYPES
    if not 0 <= number < len(outputs):
        return f"is linked to output {number} of {source}; {kind} has {len(outputs)}"
    if not fits(outputs[number], slot.type):
        return f"takes {slot.type}; output {number} of {source} is {outputs[number]}"
    return ""


def _reaching_output(graph: dict, registered: dict[str, type]) -> set[str]:
    """Nodes from which a path of links leads to an output node."""
    todo = [
        name
        for name, node in graph.items()
        if getattr(registered[node["class_type"]], "OUTPUT_NODE", False)
    ]
    reached: set[str] = set()
    while todo:
        name = todo.pop()
        if name in graph and name not in reached:
            reached.add(name)
            todo += [
                value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)
            ]
    return reached
