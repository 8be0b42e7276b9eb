"""Subgraph blueprints, which the page offers among its nodes: `subgraphs/<name>.json`.

python -m devkit.blueprints     make them anew from a template's nodes"""

from __future__ import annotations

import copy
import json
import uuid
from pathlib import Path
from typing import Any

from devkit.base_folder import REPOSITORY
from devkit.templates import api, numbers, template, write

FOLDER = REPOSITORY / "subgraphs"
NAME = "Fast sampling"
FROM = "z_image"  # the template whose nodes are in it
INNER = ("accelerate", "sample", "report")
INPUT, OUTPUT = -10, -20  # ids of a subgraph's own ends
# (name outside, node, input) of what comes in and of what is set outside.
SOCKETS = (
    ("model", "accelerate", "model"),
    ("positive", "sample", "positive"),
    ("negative", "sample", "negative"),
    ("latent_image", "sample", "latent_image"),
)
WIDGETS = (
    ("speedup", "accelerate", "speedup"),
    ("seed", "sample", "seed"),
    ("steps", "sample", "steps"),
    ("cfg", "sample", "cfg"),
    ("sampler_name", "sample", "sampler_name"),
    ("scheduler", "sample", "scheduler"),
    ("denoise", "sample", "denoise"),
)
OUTPUTS = (("latent", "report", 0), ("record", "report", 3))
DESCRIPTION = (
    "KSampler with RAPID Accelerate before it and RAPID Report behind it. Skips sampling steps that can "
    "be predicted; speedup is the one thing to set."
)


def number_of(name: str) -> str:
    """An id that stays the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"rapid blueprint {NAME} {name}"))


def fast_sampling() -> dict[str, Any]:
    """The blueprint: RAPID Accelerate, KSampler and RAPID Report as one node."""
    workflow = json.loads(template(FROM).path.read_text(encoding="utf-8"))
    ids = numbers(api(FROM))
    found = {node["id"]: node for node in workflow["nodes"]}
    nodes = {name: copy.deepcopy(found[ids[name]]) for name in INNER}
    for place, node in enumerate(nodes.values()):
        node["id"], node["pos"], node["order"] = place + 1, [420 * place, 0], place
        for slot in node["inputs"]:
            slot["link"] = None
        for slot in node["outputs"]:
            slot["links"] = []
    links: list[dict[str, Any]] = []

    def link(source: int, output: int, target: int, slot: int, kind: str) -> int:
        links.append(
            {
                "id": len(links) + 1,
                "origin_id": source,
                "origin_slot": output,
                "target_id": target,
                "target_slot": slot,
                "type": kind,
            }
        )
        return len(links)

    def slot_of(name: str, key: str) -> int:
        return next(i for i, slot in enumerate(nodes[name]["inputs"]) if slot["name"] == key)

    def join(source: str, output: int, target: str, key: str) -> None:
        place = slot_of(target, key)
        given, taken = nodes[source]["outputs"][output], nodes[target]["inputs"][place]
        number = link(nodes[source]["id"], output, nodes[target]["id"], place, given["type"])
        given["links"].append(number)
        taken["link"] = number

    inputs = []
    for place, (name, node, key) in enumerate((*SOCKETS, *WIDGETS)):
        slot = nodes[node]["inputs"][slot_of(node, key)]
        slot["link"] = link(INPUT, place, nodes[node]["id"], slot_of(node, key), slot["type"])
        inputs.append(
            {
                "id": number_of(f"input {name}"),
                "name": name,
                "type": slot["type"],
                "linkIds": [slot["link"]],
                "pos": [-160, 20 + 20 * place],
            }
        )
    join("accelerate", 0, "sample", "model")
    join("accelerate", 0, "report", "model")
    join("sample", 0, "report", "latent")
    outputs = []
    for place, (name, node, output) in enumerate(OUTPUTS):
        slot = nodes[node]["outputs"][output]
        number = link(nodes[node]["id"], output, OUTPUT, place, slot["type"])
        slot["links"].append(number)
        outputs.append(
            {
                "id": number_of(f"output {name}"),
                "name": name,
                "type": slot["type"],
                "linkIds": [number],
                "pos": [1300, 20 + 20 * place],
            }
        )
    kind = number_of("subgraph")
    subgraph = {
        "id": kind,
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": len(nodes),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": NAME,
        "description": DESCRIPTION,
        "category": "RAPID",
        "inputNode": {"id": INPUT, "bounding": [-280, 0, 140, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [1280, 0, 120, 80]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": links,
        "extra": {"workflowRendererVersion": "LG"},
    }
    outside = [{k: one[k] for k in ("name", "type")} | {"link": None} for one in inputs]
    for one in outside[len(SOCKETS) :]:
        one["widget"] = {"name": one["name"]}
    node = {
        "id": 1,
        "type": kind,
        "pos": [0, 0],
        "size": [300, 320],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": outside,
        "outputs": [{k: one[k] for k in ("name", "type")} | {"links": []} for one in outputs],
        "properties": {"proxyWidgets": [[str(nodes[node]["id"]), key] for _, node, key in WIDGETS]},
        "widgets_values": [],
        "title": NAME,
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {
            "BlueprintDescription": DESCRIPTION,
            "BlueprintSearchAliases": ["rapid", "faster", "speed up", "accelerate", "加速"],
        },
    }


def path_of(name: str) -> Path:
    """Where ComfyUI looks for a pack's blueprint (app/subgraph_manager.py)."""
    return FOLDER / f"{name}.json"


def main() -> None:
    """Write the blueprint."""
    FOLDER.mkdir(exist_ok=True)
    write(fast_sampling(), path_of(NAME))
    print(path_of(NAME))


if __name__ == "__main__":
    main()
