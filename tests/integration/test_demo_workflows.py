"""The example workflows on the demo models, through a real server's API."""

import copy
import json
import threading

import numpy
import pytest
from PIL import Image

from demo.run import MODES, graph_for
from devkit.base_folder import REPOSITORY
from devkit.client import WorkflowError
from rapid_testing.texts import text

pytestmark = pytest.mark.server


def workflow(kind: str, **changes) -> dict:
    """The example workflow at 128 px; changes are {"node.input": value}."""
    path = REPOSITORY / "example_workflows" / "api" / f"demo_{kind}.json"
    graph = copy.deepcopy(json.loads(path.read_text(encoding="utf-8")))
    graph["latent"]["inputs"].update(width=128, height=128)
    for key, value in changes.items():
        node, name = key.split(".")
        graph[node]["inputs"][name] = value
    return graph


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_the_example_draws_a_picture_and_reports(server, kind, tmp_path):
    outputs = server.client.run(workflow(kind))
    (picture,) = server.client.save_images(outputs, tmp_path)
    assert picture.stat().st_size > 1000
    record = json.loads(outputs["report"]["rapid_record"][0])
    totals = record["totals"]
    assert (record["format"], record["version"]) == ("rapid-record", 2)
    assert record["status"] == "finished"
    assert totals["computed"] + totals["skipped"] == totals["evaluations"] == 28
    assert totals["skipped"] > 5 and totals["speedup_theoretical"] > 1.2
    assert f"{totals['computed']} of 28 evaluations computed" in outputs["report"]["text"][0]


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_the_demo_draws_a_full_picture_and_one_of_half_of_the_steps(server, kind, tmp_path):
    drawn = {}
    for name, mode in MODES.items():
        graph = graph_for(kind, text("red", kind), 0, mode, name)
        graph["latent"]["inputs"].update(width=128, height=128)
        outputs = server.client.run(graph)
        server.client.save_images(outputs, tmp_path)
        drawn[name] = outputs["report"]
    assert not drawn["full"].get("rapid_record")
    totals = json.loads(drawn["rapid"]["rapid_record"][0])["totals"]
    assert (totals["computed"], totals["evaluations"]) == (14, 28)


def test_the_policy_example_follows_its_schedule_and_says_what_it_is(server, tmp_path):
    outputs = server.client.run(workflow("policy"))
    (picture,) = server.client.save_images(outputs, tmp_path)
    assert picture.stat().st_size > 1000
    record = json.loads(outputs["report"]["rapid_record"][0])
    assert record["totals"]["computed"] == 7
    assert [note["code"] for note in record["notes"]] == ["policy_given"]
    assert record["policies"][0]["source"] == "demo-flux-gaps.safetensors"
    assert record["totals"]["speedup_theoretical"] == pytest.approx(28 / 7, rel=1e-3)
    assert "base_model: flux.safetensors" in outputs["about"]["text"][0]


def test_a_policy_of_another_model_is_refused(server):
    others = {
        "model.unet_name": "sd3.safetensors",
        "positive.model": "sd3",
        "negative.model": "sd3",
    }
    with pytest.raises(WorkflowError, match="sd3"):
        server.client.run(workflow("policy", **others))


def test_the_region_example_draws_a_picture_and_a_map(server, tmp_path):
    outputs = server.client.run(workflow("region"))
    pictures = server.client.save_images(outputs, tmp_path)
    assert sorted(Image.open(path).size for path in pictures) == [(128, 128), (128, 128 + 24)]
    record = json.loads(outputs["report"]["rapid_record"][0])
    assert record["totals"]["partial"] > 10 and record["grid"] == [1, 8, 8]


def pixels(client, graph, folder):
    """The picture that a workflow saves, (H, W, 3)."""
    (path,) = client.save_images(client.run(graph), folder)
    return numpy.asarray(Image.open(path).convert("RGB"))


def in_this_process(comfy, graph):
    """The same workflow by calling its nodes one by one, in a process that has run nothing else of
    it."""
    done = {}

    def output(name):
        if name not in done:
            node = graph[name]
            inputs = {
                k: output(v[0])[v[1]] if isinstance(v, list) else v
                for k, v in node["inputs"].items()
            }
            done[name] = comfy.run_node(node["class_type"], **inputs)
        return done[name]

    picture = output("decode")[0][0]
    return (picture * 255).clamp(0, 255).byte().numpy()


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_after_other_runs_the_picture_is_that_of_a_fresh_process(
    server, comfy_host, pack, demo_pack, tmp_path, kind
):
    comfy_host.load_core_nodes("nodes_flux.py")
    comfy_host.load_core_nodes("nodes_sd3.py")
    graph = workflow(kind, **{"sample.seed": 3})
    changes = [
        {"sample.steps": 9},
        {"sample.seed": 4},
        {"latent.width": 192},
        {"latent.batch_size": 2},
        {"positive.text": "flat red background"},
    ]
    for change in changes:
        server.client.run(workflow(kind, **{"sample.seed": 3, **change}))
    got = pixels(server.client, {**graph, "save": {**graph["save"]}}, tmp_path)
    assert (got == in_this_process(comfy_host, graph)).all()


def test_one_line_an_image_of_a_batch(server, tmp_path):
    lines = f"{text('red')}\n{text('blue')}"
    graph = workflow("flux", **{"positive.text": lines, "latent.batch_size": 2})
    outputs = server.client.run(graph)
    assert len(server.client.save_images(outputs, tmp_path)) == 2
    record = json.loads(outputs["report"]["rapid_record"][0])
    assert all(len(e["modes"]) == 2 for e in record["evaluations"])


def test_an_unknown_word_is_named(server):
    with pytest.raises(WorkflowError, match="'xylophone'"):
        server.client.run(
            workflow("flux", **{"positive.text": "flat red background, big xylophone center"})
        )


def test_a_setting_out_of_range_is_refused(server):
    with pytest.raises(WorkflowError, match="speedup"):
        server.client.run(workflow("flux", **{"accelerate.speedup": 0.5}))


def test_an_interrupted_workflow_leaves_the_next_one_right(server, tmp_path):
    client = server.client
    right = pixels(client, workflow("sd3", **{"sample.seed": 11}), tmp_path / "right")
    job = client.submit(
        workflow("sd3", **{"sample.seed": 12, "latent.width": 512, "latent.height": 512})
    )
    timer = threading.Timer(1.0, client.interrupt)
    timer.start()
    with pytest.raises(WorkflowError, match="interrupted"):
        client.wait(job)
    again = workflow("sd3", **{"sample.seed": 11, "save.filename_prefix": "again"})
    assert (pixels(client, again, tmp_path / "again") == right).all()


def test_an_empty_latent_of_another_channel_count_is_corrected_as_without_the_pack(server):
    graph = workflow("flux")
    graph["latent"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 128, "height": 128, "batch_size": 1},
    }
    graph["sample"]["inputs"]["denoise"] = 1.0
    outputs = server.client.run(graph)  # the host itself corrects empty latents
    assert json.loads(outputs["report"]["rapid_record"][0])["shape"][1] == 16
