"""Caches of packs that no longer load: ComfyUI offers RAPID Cache Reuse in their place in old
workflows.

Their thresholds mean something else, so Cache Reuse comes with its defaults. Nothing happens to
nodes that are there."""

from comfy_api.latest import ComfyAPI, io

from ..rapid_core.comfy.progress import running_server
from .cache_reuse import CacheReuse

# Node id: its widgets in their order. Of ComfyUI-TeaCache, ComfyUI-MagCache and Comfy-WaveSpeed.
ORPHANS = {
    "TeaCache": ["model_type", "rel_l1_thresh", "start_percent", "end_percent", "cache_device"],
    "MagCache": [
        "model_type",
        "magcache_thresh",
        "retention_ratio",
        "magcache_K",
        "start_step",
        "end_step",
    ],
    "ApplyFBCacheOnModel": [
        "object_to_patch",
        "residual_diff_threshold",
        "start",
        "end",
        "max_consecutive_cache_hits",
    ],
}


def replacements() -> list[io.NodeReplace]:
    """What ComfyUI is to be told: node ids and what becomes of their inputs."""
    inputs = [
        {"new_id": slot.id, "old_id": "model"}
        if slot.id == "model"
        else {"new_id": slot.id, "set_value": slot.default}
        for slot in CacheReuse.GET_SCHEMA().inputs
    ]
    outputs = [{"new_idx": 0, "old_idx": 0}]
    new = CacheReuse.GET_SCHEMA().node_id
    return [io.NodeReplace(new, old, widgets, inputs, outputs) for old, widgets in ORPHANS.items()]


async def adopt() -> None:
    """Tell a running server; scripts that load nodes without one have no workflows to open."""
    if running_server() is not None:
        for replacement in replacements():
            await ComfyAPI().node_replacement.register(replacement)
