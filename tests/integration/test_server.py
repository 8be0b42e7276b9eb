"""ComfyUI as users start it: a server that offers our nodes."""

import json

import pytest

from devkit.client import WorkflowError
from rapid_testing import examples

pytestmark = pytest.mark.server


def test_the_server_offers_our_nodes(server):
    offered = server.client.object_info()
    assert {"RAPID_CacheReuse", "RAPID_Report"} <= set(offered), server.log_tail()


def test_the_server_runs_a_workflow_and_gives_its_picture(server, tmp_path):
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 255},
        },
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "ground"},
        },
    }
    paths = server.client.save_images(server.client.run(graph, timeout=60), tmp_path)
    assert [path.read_bytes()[:8] for path in paths] == [b"\x89PNG\r\n\x1a\n"]


def test_a_failing_node_is_named(server):
    scale = {
        "image": ["1", 0],
        "upscale_method": "unknown",
        "width": 8,
        "height": 8,
        "crop": "disabled",
    }
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 0},
        },
        "2": {"class_type": "ImageScale", "inputs": scale},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    with pytest.raises(WorkflowError, match="ImageScale"):
        server.client.run(graph, timeout=60)


@pytest.mark.parametrize("orphan", ["TeaCache", "MagCache", "ApplyFBCacheOnModel"])
def test_caches_of_packs_that_do_not_load_are_replaced(server, orphan):
    graph = examples.api("demo_flux")
    (number,) = (
        i
        for i, node in graph.items()
        if node["class_type"] in ("RAPID_CacheReuse", "RAPID_Accelerate")
    )
    graph[number] = {
        "class_type": orphan,
        "inputs": {"model": graph[number]["inputs"]["model"], "model_type": "flux"},
    }
    graph["latent"]["inputs"].update(width=64, height=64)
    for node in graph.values():
        node.setdefault("_meta", {})  # the host's replacement counts on it
    outputs = server.client.run(graph, timeout=120)
    (policy,) = json.loads(outputs["report"]["rapid_record"][0])["policies"]
    assert (policy["technique"], policy["threshold"], policy["guard"]) == ("cache_reuse", 0.1, 0.5)
