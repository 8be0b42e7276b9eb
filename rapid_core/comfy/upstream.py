"""What lies before a node in the workflow that runs."""

from __future__ import annotations

from typing import Any

PATCHES = ("RAPID_Accelerate", "RAPID_CacheReuse", "RAPID_RegionAdaptive", "RAPID_SparseAttention")
LATENTS = ("latent", "samples")  # in names of inputs that bring what another sampler made


def source(graph: Any, node: str, name: str) -> str | None:
    """Id of the node that an input of a node comes from. graph: the host's DynamicPrompt."""
    try:
        link = graph.get_node(node)["inputs"].get(name)
    except Exception:  # a node that the host does not know, of whatever class of error
        return None
    return str(link[0]) if isinstance(link, list) and len(link) == 2 else None


def patches_before(graph: Any, node: str | None) -> set[str]:
    """Ids of the RAPID nodes whose model comes to a node, itself included; what comes to it by way of
    another sampler's latent is not counted."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        try:
            what = graph.get_node(one)
        except Exception:
            continue
        if what["class_type"] in PATCHES:
            found.add(one)
        waiting += [
            source(graph, one, name)
            for name in what["inputs"]
            if not any(word in name for word in LATENTS)
        ]
    return found
