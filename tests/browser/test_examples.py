"""The templates in ComfyUI's page: they open, every node is known, they are what their API twins
are, and nothing lies over anything else in either renderer.

`--pictures .` makes the workflows and their thumbnails anew from the API twins."""

import copy
import io
import json

import pytest
from PIL import Image

from devkit import template_layout as layout
from devkit import thumbnails
from devkit.templates import FOLDER, TEMPLATES, api, complete, files, numbered, numbers, write
from rapid_testing import examples

BY_HAND = ("lumina_next",)  # models in several files: the page offers single ones
LIMIT = 450_000  # bytes of all thumbnails, which travel with the pack
BOTH = pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
ALL = pytest.mark.parametrize("one", TEMPLATES, ids=[one.twin for one in TEMPLATES])

MAKE = """async graph => {
  await app.loadApiJson(graph, "example");
  app.graph.add(LiteGraph.createNode("MarkdownNote"));
  for (const node of app.graph._nodes) { // or a second run would have another seed
    const after = node.widgets?.find(w => w.name === "control_after_generate");
    if (after) after.value = "fixed";
  }
  const found = app.graph.serialize();
  for (const node of found.nodes) { delete node.properties.cnr_id; delete node.properties.ver; }
  return found;
}"""
# What every node covers, in the graph's pixels: as LiteGraph draws it, or its element's own box.
BOXES = """vue => app.graph._nodes.map(n => {
  const [x, y, width, height] = [...n.getBounding()];
  if (!vue) return [n.id, x, y, width, height];
  const e = document.querySelector(`[data-node-id="${n.id}"]`);
  return [n.id, n.pos[0], n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, e.offsetWidth, e.offsetHeight];
})"""
WIRES = """() => [...app.graph.links.values()].map(l => {
  const from = app.graph.getNodeById(l.origin_id), to = app.graph.getNodeById(l.target_id);
  return [l.origin_id, l.target_id, [...from.getOutputPos(l.origin_slot)], [...to.getInputPos(l.target_slot)]];
})"""
SHOWN = """() => { app.canvas.ds.scale = 0.2; app.canvas.ds.offset = [300, 400];
  app.canvas.setDirty(true, true) }"""
DRAWN = '() => app.graph._nodes.every(n => document.querySelector(`[data-node-id="${n.id}"]`)?.offsetHeight > 20)'

# The blueprint's node in place of sampler, RAPID's node and report, with 20 steps and cfg 1.
INSTEAD = """() => { const f = kind => app.graph._nodes.find(n => n.type === kind);
  const b = app.graph._nodes.find(n => n.subgraph), s = f("KSampler"), d = f("VAEDecode");
  for (const name of ["positive", "negative", "latent_image"]) {
    const l = app.graph.getLink(s.inputs[s.findInputSlot(name)].link);
    app.graph.getNodeById(l.origin_id).connect(l.origin_slot, b, name);
  }
  f("UNETLoader").connect(0, b, "model");
  for (const kind of ["KSampler", "RAPID_Report", "RAPID_Accelerate"]) app.graph.remove(f(kind));
  b.connect(0, d, "samples");
  for (const [name, value] of [["cfg", 1], ["steps", 20], ["sampler_name", "euler"]]) {
    const w = b.widgets.find(w => w.name === name); w.value = value; w.callback?.(value);
  } }"""

HALF = [i % 2 == 0 for i in range(20)]
# Of templates whose models are not here: a name, and a few words.
CARDS = {
    "z_image": ("Z-Image", ("30 steps, half computed",)),
    "ltx2": ("LTX-2.3", ("video with sound", "half of the steps computed")),
    "wan2.2_t2v": ("Wan 2.2", ("video, both models", "half of the steps computed")),
    "qwen_image": ("Qwen-Image", ("20 steps, half computed",)),
    "qwen_image_edit": ("Qwen-Image-Edit", ("change a picture", "40 steps, half computed")),
    "flux2_dev": ("FLUX.2 dev", ("20 steps, half computed",)),
    "flux1_dev": ("FLUX.1 dev", ("20 steps, half computed",)),
    "flux1_kontext": ("FLUX.1 Kontext", ("change a picture", "20 steps, half computed")),
    "sd3.5_large": ("SD 3.5 Large", ("28 steps, half computed",)),
    "lumina2": ("Lumina Image 2", ("30 steps, half computed",)),
    "lumina_next": ("Lumina-Next", ("half of the picture", "in most steps")),
    "compare_full_and_rapid": ("Full | RAPID", ("one seed, two pictures", "times and closeness")),
    "calibrate": ("Calibrate", ("which steps matter", "for your model")),
    "region_mask": ("Region + mask", ("exact where you paint",)),
}


def without_rapid(graph):
    """The same workflow with RAPID's node passed by, so that every step is computed."""
    name = next(name for name in ("accelerate", "region") if name in graph)
    full = copy.deepcopy(graph)
    for node in full.values():
        if node["inputs"].get("model") == [name, 0]:
            node["inputs"]["model"] = graph[name]["inputs"]["model"]
    return full


def thumbnail(client, one):
    """The picture of a template in the page's list."""
    if one.twin in CARDS:
        name, lines = CARDS[one.twin]
        return thumbnails.card(name, lines, HALF if "computed" in lines[-1] else None)
    graph = api(one.twin)
    full, rapid = client.run(without_rapid(graph)), client.run(graph)
    pictures = [
        Image.open(io.BytesIO(client.image(outputs["save"]["images"][0])))
        for outputs in (full, rapid)
    ]
    report = rapid.get("report") or rapid["report_rapid"]
    totals = json.loads(report["rapid_record"][0])["totals"]
    words = [f"{totals['evaluations']} steps", f"{totals['computed']} computed"]
    if "save_map" in rapid:
        pictures[0] = pictures[1]
        shown = Image.open(io.BytesIO(client.image(rapid["save_map"]["images"][0])))
        pictures[1] = shown.crop((0, 0, shown.width, shown.width))
        words = ["RAPID", "yellow: every step"]
    return thumbnails.pair(*pictures, words)


def make(page, one, picture):
    """The workflow of an API twin, and its thumbnail."""
    workflow = complete(page.do(MAKE, numbered(api(one.twin))), one)
    write(workflow, picture(f"example_workflows/{one.path.name}"))
    thumbnail(page.server.client, one).save(
        picture(f"example_workflows/{one.picture.name}"), quality=88, optimize=True
    )


@ALL
def test_a_template_opens_and_is_its_api_twin(graph, server, picture, request, one):
    page = graph()
    if request.config.getoption("--pictures"):
        make(page, one, picture)
        page = graph()
    workflow, twin = examples.opened(one.twin), api(one.twin)
    page.load(workflow)
    page.page.wait_for_function("n => app.graph._nodes.length === n", arg=len(workflow["nodes"]))
    kinds = page.do(
        "() => [app.graph._nodes.map(n => n.type), Object.keys(LiteGraph.registered_node_types)]"
    )
    assert set(kinds[0]) <= set(kinds[1])
    assert all(page.do("() => app.graph._nodes.map(n => n.title)"))
    found = page.do("async () => (await app.graphToPrompt()).output")
    assert examples.described(found) == examples.described(
        examples.completed(twin, server.client.object_info())
    )
    offered = {
        model["name"]
        for node in workflow["nodes"]
        for model in node["properties"].get("models", [])
    }
    needed = {file.split("/", 1)[1] for file in files(twin)}
    assert offered == (set() if one.demo or one.twin in BY_HAND else needed)


@ALL
@BOTH
def test_nothing_lies_over_anything_else_in_the_page(graph, one, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    workflow = examples.opened(one.twin)
    page.do("() => { app.nodeOutputs = {} }")  # or a node shows the picture of one with its number
    page.load(workflow)
    page.page.wait_for_function("n => app.graph._nodes.length === n", arg=len(workflow["nodes"]))
    page.do(SHOWN)
    if vue:
        page.page.wait_for_function(DRAWN)
    page.page.wait_for_timeout(500)  # nodes find their size
    boxes = {
        int(number): layout.Box(x, y, x + width, y + height)
        for number, x, y, width, height in page.do(BOXES, vue)
    }
    wires = [
        layout.Wire(int(source), int(target), tuple(start), tuple(end))
        for source, target, start, end in page.do(WIRES)
    ]
    names = {number: name for name, number in numbers(api(one.twin)).items()}
    names[max(boxes)] = "note"
    frames = {frame["title"]: layout.frame_of(frame) for frame in workflow["groups"]}
    assert wires and layout.problems(boxes, wires, frames, names) == []
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    higher = {
        kinds[number]: box.bottom - box.top - layout.TITLE
        for number, box in boxes.items()
        if box.bottom - box.top - layout.TITLE > layout.HEIGHTS[kinds[number]]
    }
    assert {kind: high for kind, high in higher.items() if kind not in layout.FREE} == {}


def test_the_first_template_opens_at_a_zoom_at_which_text_is_drawn(graph):
    """In a window of a common size, out of the page's list as people open it. Nodes 2.0 draws its text
    at every zoom."""
    page = graph()
    with page.window(*layout.WINDOW):
        page.open_template("rapid", TEMPLATES[0].title)
        page.page.wait_for_function(
            "() => app.graph._nodes.some(n => n.comfyClass === 'RAPID_Report')"
        )
        scale, no_text = page.do("() => [app.canvas.ds.scale, app.canvas.low_quality]")
    assert not no_text
    workflow = json.loads(TEMPLATES[0].path.read_text(encoding="utf-8"))
    assert scale == pytest.approx(layout.opening_scale(workflow), abs=0.005)


def test_a_template_that_is_opened_as_a_file_begins_at_its_upper_left_corner(graph):
    """At a zoom at which text is drawn, to the right of the page's bar, below its tabs."""
    page = graph()
    workflow = examples.opened("wan2.2_t2v")  # the largest
    page.load(workflow)
    page.page.wait_for_function("n => app.graph._nodes.length === n", arg=len(workflow["nodes"]))
    (x, y), left, top, no_text = page.do(
        "() => { const bar = kind => document.querySelector(kind).getBoundingClientRect(); "
        "return [app.canvas.ds.convertOffsetToCanvas([0, 0]), bar('.side-tool-bar-container').right, "
        "bar('.workflow-tabs-container').bottom, app.canvas.low_quality] }"
    )
    assert not no_text
    assert left < x < left + 100 and top < y < top + 100


def test_every_template_has_a_thumbnail_that_is_small():
    for one in TEMPLATES:
        with Image.open(one.picture) as picture:
            assert picture.size == thumbnails.SIZE
    assert sum(one.picture.stat().st_size for one in TEMPLATES) < LIMIT


def test_templates_are_among_the_pages(server):
    found = json.loads(server.client._request("/workflow_templates"))
    assert sorted(found["rapid"]) == sorted(one.title for one in TEMPLATES)
    assert {path.name for path in FOLDER.iterdir()} >= {one.path.name for one in TEMPLATES}


@pytest.mark.quick
def test_the_first_picture_comes_as_readme_says(graph):
    page = graph()
    page.open_template("rapid", TEMPLATES[0].title)
    page.page.wait_for_function("() => app.graph._nodes.some(n => n.comfyClass === 'RAPID_Report')")
    page.run()
    page.page.wait_for_selector(
        ".rapid-report .row"
    )  # in view, at a size at which the page draws text
    panel = page.page.locator(".rapid-report")
    assert "of 28 evaluations computed" in panel.locator(".totals").inner_text()
    assert " s instead of about " in panel.locator(".headline").inner_text()
    (picture,) = page.outputs("SaveImage")["images"]
    assert picture["filename"].startswith("rapid_flux")


@BOTH
def test_the_blueprint_is_found_and_draws(graph, vue):
    """As people add it: found by a word, put down, connected in place of the sampler."""
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(api("demo_flux"))
    page.page.wait_for_function("() => app.graph._nodes.length === 11")
    page.add("fast sampling", "Fast sampling", 700, 500)
    page.do(INSTEAD)
    page.run()
    (saved,) = page.outputs("SaveImage")["images"]
    assert saved["filename"].startswith("rapid_flux")
    summary = page.outputs("RAPID_Report")["rapid_summary"][0]
    assert (summary["evaluations"], summary["computed"]) == (20, 10)
    assert [line for line in page.said if "/extensions/rapid/" in " ".join(line)] == []
