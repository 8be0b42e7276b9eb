"""The templates as tests compare them: in API form, as the page opens them, and as text."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from devkit.templates import api, template

__all__ = ["api", "completed", "described", "opened"]


def opened(twin: str) -> dict[str, Any]:
    """A template as the page opens it, by the name of its API twin."""
    return json.loads(template(twin).path.read_text(encoding="utf-8"))


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
