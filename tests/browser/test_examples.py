"""The example workflows in ComfyUI's page: they open, every node is known, and they are what their
API twins are.

`--pictures .` makes the workflows and their thumbnails anew from the API twins."""

import json
import uuid

import pytest
from PIL import Image, ImageOps

from rapid_testing import examples

WORDS = {
    "compare_full_and_rapid": (
        "Compare: full and RAPID. Z-Image is drawn twice from one seed, once with every step and "
        "once with half of them; RAPID Compare shows both over each other, with both times."
    ),
    "demo_compare": (
        "Compare: full and RAPID, on the FLUX-like demo model, from one seed. Nothing has to be "
        "downloaded."
    ),
    "demo_accelerate": (
        "RAPID Accelerate with a searched schedule on the FLUX-like demo model: a third of "
        "the steps is computed."
    ),
    "demo_flux": (
        "RAPID Accelerate on the FLUX-like demo model: half of the steps are computed. Nothing has "
        "to be downloaded."
    ),
    "demo_policy": (
        "RAPID Accelerate with a searched schedule on the FLUX-like demo model: a quarter "
        "of the steps is computed."
    ),
    "demo_region": (
        "RAPID Region Adaptive on the SD3-like demo model. The map shows which parts of the"
        " picture were computed how often."
    ),
    "demo_sd3": (
        "RAPID Accelerate on the SD3-like demo model: half of the steps are computed. Nothing has "
        "to be downloaded."
    ),
    "flux1_dev": "FLUX.1-dev with RAPID Accelerate: half of the steps are computed.",
    "flux1_kontext": (
        "Editing with FLUX.1 Kontext and RAPID Accelerate: half of the steps are computed."
    ),
    "lumina2": "Lumina Image 2 with RAPID Accelerate: half of the steps are computed.",
    "lumina_next": (
        "Lumina-Next with RAPID Region Adaptive as published (RAS): 30 steps, of which 24 compute half "
        "of the picture's tokens on average."
    ),
    "policy_flux1": (
        "FLUX.1-dev with a schedule that you searched on your own workflow. The help of "
        "RAPID Load Policy says how."
    ),
    "qwen_image": "Qwen-Image with RAPID Accelerate: half of the steps are computed.",
    "qwen_image_edit": (
        "Editing with Qwen-Image-Edit and RAPID Accelerate: half of the steps are computed."
    ),
    "sd3.5_large": (
        "Stable Diffusion 3.5 Large with RAPID Accelerate: half of the steps are computed."
    ),
    "wan2.2_t2v": (
        "Wan 2.2 text to video with RAPID Accelerate, one node and one report for each of "
        "its two models: half of the steps are computed.\n\n"
        "Each model starts its predictions anew. If details suffer, set `speedup` to 1.5 on"
        " both."
    ),
    "z_image": "Z-Image with RAPID Accelerate: half of the steps are computed.",
}
BY_HAND = ("lumina_next",)  # models in several files: the page offers single ones
SIZE = (600, 344)  # pixels of a thumbnail
LIMIT = 450_000  # bytes of all thumbnails, which travel with the pack

# Columns filled from top to bottom in the order of the run, as high as lets the whole fit a page at
# its largest.
MAKE = """async ([graph, text, id]) => {
  await app.loadApiJson(graph, "example");
  const note = LiteGraph.createNode("MarkdownNote");
  app.graph.add(note);
  note.widgets[0].value = text;
  note.size = [420, 210];
  const rest = app.graph._nodes.filter(n => n !== note).sort((a, b) => a.id - b.id);
  const graphKinds = rest.map(n => n.type);
  for (const node of rest) {
    if (node.type === "SaveImage") node.size = [320, 360]; // its picture
    // as high as they get to be: in the page they are as high as what they show
    if (node.type === "RAPID_Report") node.size = [380, graphKinds.includes("RAPID_RegionAdaptive") ? 620 : 380];
    if (node.type === "RAPID_Compare") node.size = [380, 600];
    if (node.type === "VAEDecode") node.size[0] = Math.max(180, node.size[0]); // its title
    if (/^RAPID_(Accelerate|CacheReuse|RegionAdaptive)$/.test(node.type)) node.size[1] += 60; // how the run goes on
  }
  const TITLE = 30, GAP = 40;
  const place = height => {
    let x = 0, y = 0, width = 0, lowest = 0;
    for (const node of [note, ...rest]) {
      if (y && y + TITLE + node.size[1] > height) [x, y, width] = [x + width + GAP, 0, 0];
      node.pos = [x, y + TITLE];
      y += TITLE + node.size[1] + GAP / 2;
      [width, lowest] = [Math.max(width, node.size[0]), Math.max(lowest, y)];
    }
    return Math.min(1.6 / (x + width), 1 / lowest);
  };
  const scales = [800, 950, 1100, 1250, 1400].map(height => [place(height), height]);
  place(scales.reduce((best, one) => one[0] > best[0] ? one : best)[1]);
  for (const node of rest) { // or a run with the node bypassed would have another seed
    const after = node.widgets?.find(w => w.name === "control_after_generate");
    if (after) after.value = "fixed";
  }
  const found = app.graph.serialize();
  found.id = id;
  for (const node of found.nodes) { delete node.properties.cnr_id; delete node.properties.ver; }
  return found;
}"""


# For its picture, some kinds of nodes side by side, away from all others.
ROW = """kinds => { let x = 0; for (const node of app.graph._nodes.filter(n => kinds.includes(n.comfyClass))) {
  node.pos = [x, 20000]; x += node.size[0] + 60; } }"""


def make(page, name, picture):
    """The workflow of an API twin, and its thumbnail."""
    graph = examples.numbered(examples.api(name))
    text, number = examples.note(graph, WORDS[name]), str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    workflow = examples.with_addresses(page.do(MAKE, [graph, text, number]))
    picture(f"example_workflows/{name}.json").write_text(
        json.dumps(workflow, indent=1) + "\n", encoding="utf-8"
    )
    kinds = {node["class_type"] for node in graph.values()}
    shown = [kind for kind in kinds if kind.startswith("RAPID_") and kind != "RAPID_Report"]
    if name.startswith("demo_"):  # nothing is missing: run it, and show what it says
        page.run()
        page.look_at("RAPID_Report", ".rapid-report .row")
        if "RAPID_RegionAdaptive" in kinds:
            page.page.wait_for_function(
                "() => document.querySelector('.rapid-report img')?.naturalWidth"
            )
        shown += ["RAPID_Report", "SaveImage"]
    else:
        shown += [
            kind
            for kind in kinds
            if "Sampler" in kind or kind in ("UNETLoader", "CheckpointLoaderSimple")
        ]
    page.do(ROW, shown)
    page.do(
        "() => app.graph._nodes.forEach(n => { n.has_errors = false })"
    )  # files are missing on this machine only
    page.shot(picture(f"example_workflows/{name}.png"), *shown)
    shot = Image.open(picture(f"example_workflows/{name}.png")).convert("RGB")
    picture(f"example_workflows/{name}.png").unlink()
    ImageOps.pad(shot, SIZE, Image.Resampling.LANCZOS, color=(26, 26, 26)).save(
        picture(f"example_workflows/{name}.jpg"), quality=85, optimize=True
    )


@pytest.mark.parametrize("name", examples.names())
def test_an_example_opens_and_is_its_api_twin(graph, server, picture, request, name):
    page = graph()
    if request.config.getoption("--pictures"):
        make(page, name, picture)
        page = graph()
    workflow = json.loads((examples.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    page.load(workflow)
    page.page.wait_for_function("n => app.graph._nodes.length === n", arg=len(workflow["nodes"]))
    kinds = page.do(
        "() => [app.graph._nodes.map(n => n.type), Object.keys(LiteGraph.registered_node_types)]"
    )
    assert set(kinds[0]) <= set(kinds[1])
    found, twin = page.do("async () => (await app.graphToPrompt()).output"), examples.api(name)
    assert examples.described(found) == examples.described(
        examples.completed(twin, server.client.object_info())
    )
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    demo = name.startswith("demo_")  # whose policies lie in the pack
    files = [
        file.removeprefix("rapid_policies/") if demo else file for file in examples.files(twin)
    ]
    assert all(f"{file}`" in note["widgets_values"][0] for file in files)
    offered = {
        model["name"]
        for node in workflow["nodes"]
        for model in node["properties"].get("models", [])
    }
    needed = {
        file.split("/", 1)[1]
        for file in examples.files(twin)
        if not file.startswith("rapid_policies/")
    }
    assert offered == (set() if demo or name in BY_HAND else needed)


def test_every_example_has_a_thumbnail_that_is_small(repository):
    paths = [examples.picture_path(name) for name in examples.names()]
    assert (
        {path.stem for path in examples.FOLDER.glob("*.json")}
        == set(examples.names())
        == set(WORDS)
    )
    assert all(Image.open(path).size == SIZE for path in paths)
    assert sum(path.stat().st_size for path in paths) < LIMIT


def test_examples_are_among_the_templates(server):
    found = json.loads(server.client._request("/workflow_templates"))
    assert set(found["rapid"]) == set(examples.names())


@pytest.mark.quick
def test_the_first_picture_comes_as_readme_says(graph):
    page = graph()
    for word in ("Templates", "rapid", "demo_flux"):
        page.page.get_by_text(word, exact=True).first.click()
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
