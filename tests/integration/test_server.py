"""ComfyUI as users start it: a server that offers our nodes."""

import pytest

from devkit.client import WorkflowError

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


def test_a_node_of_another_pack_that_is_not_installed_is_refused_by_its_name(server):
    """The pack offers nothing in its place (and nothing answers with HTTP 500)."""
    graph = {
        "1": {"class_type": "TeaCache", "inputs": {"rel_l1_thresh": 0.4}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    with pytest.raises(WorkflowError, match="TeaCache"):
        server.client.run(graph, timeout=60)
