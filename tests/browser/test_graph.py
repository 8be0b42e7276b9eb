"""RAPID in ComfyUI's own page: found by search, run, reported on, kept over a reload, in both renderers."""

import json

import pytest

from devkit.base_folder import REPOSITORY
from rapid_testing import examples

# Milliseconds to compile the sources and run them, without their imports and exports, which other scripts need as well.
COMPILED = """async sources => { const bare = s => s.replace(/^import .*$/gm, "").replace(/^export /gm, "")
  .replaceAll("import.meta.url", "location.href");
  const began = performance.now(); new Function("app", "api", sources.map(bare).join("\\n"))(
  { registerExtension() {} }, {}); return performance.now() - began }"""
LEVELS = {"run": "computed", "hold": "not computed", "reuse": "blocks reused"}


def example(name, size=128, **changes):
    """An example of a demo model in small, size in pixels; changes: node id = inputs."""
    nodes = examples.api(name)
    nodes["latent"]["inputs"].update(width=size, height=size)
    nodes["sample"]["inputs"].update(steps=10)
    for node, inputs in changes.items():
        nodes[node]["inputs"].update(inputs)
    return nodes


def shown(page):
    """What the panel shows: totals, cells as (class, share, hover text) by row, remarks and maps."""
    return page.do("""() => { const root = document.querySelector(".rapid-report"); const texts = name =>
      [...root.querySelectorAll(name)].map(e => e.textContent); return {
        text: root.textContent, totals: texts(".totals"), alerts: texts(".alert"), remarks: texts("li"),
        rows: [...root.querySelectorAll(".row")].map(row => [...row.children].map(c =>
          [c.className, Number(c.dataset.share), c.title])),
        maps: [...root.querySelectorAll("img")].map(i => [i.complete, i.naturalWidth, i.naturalHeight]) } }""")


def record_of(page):
    """The record in the API's outputs."""
    return json.loads(page.outputs("RAPID_Report")["rapid_record"][0])


def check_panel(page):
    """The panel says what the API's record says."""
    record, panel = record_of(page), shown(page)
    totals, images = record["totals"], record["shape"][0]
    assert panel["totals"][0].startswith(f"{totals['computed']} of {totals['evaluations']} evaluations computed")
    assert f"{totals['held']} left out, {totals['speedup_allowed']:.2f}x by FLOPs" in panel["totals"][0]
    assert len(panel["rows"]) == images and all(len(row) == len(record["evaluations"]) for row in panel["rows"])
    for image, row in enumerate(panel["rows"]):
        for (name, share, hover), evaluation in zip(row, record["evaluations"], strict=True):
            assert name.split()[:2] == ["cell", evaluation["levels"][image]] and share == evaluation["share"][image]
            words = LEVELS[evaluation["levels"][image]] if share in (0, 1) else f"computed {100 * share:.0f} % of"
            assert hover.startswith(f"evaluation {evaluation['index'] + 1}, sigma ") and words in hover
    return record, panel


def test_nodes_are_found_by_what_people_look_for_and_dragged_in(graph):
    page = graph()
    page.add("teacache", "RAPID Cache Reuse", 200, 200)
    page.add("speed up", "RAPID Accelerate", 600, 200)
    page.add("ras", "RAPID Region Adaptive", 1000, 200)
    kinds = page.do("() => app.graph._nodes.map(n => n.comfyClass)")
    assert kinds == ["RAPID_CacheReuse", "RAPID_Accelerate", "RAPID_RegionAdaptive"]


@pytest.mark.parametrize("vue, palette", [(False, "dark"), (True, "light")], ids=["litegraph-dark", "nodes2-light"])
def test_an_example_runs_and_the_report_shows_what_the_api_says(graph, picture, vue, palette):
    page = graph(**{"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": palette})
    page.load(example("demo_region", 256))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    record, panel = check_panel(page)
    assert record["totals"]["partial"] and len(panel["maps"]) == 1
    page.page.wait_for_function("() => [...document.querySelectorAll('.rapid-report img')].every(i => i.naturalWidth)")
    page.shot(picture(f"demo_output/report_{palette}.png"), "RAPID_Report")
    mine = [line for line in page.said if line[0] == "error" and "rapid" in " ".join(line)]
    assert mine == []


def test_a_batch_has_a_row_for_every_image_and_its_record_can_be_copied(graph):
    page = graph()
    page.load(example("demo_flux", latent={"batch_size": 3}))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    record, panel = check_panel(page)
    assert len(panel["rows"]) == 3 and panel["maps"] == [] and record["totals"]["held"]  # no tokens were chosen
    page.do("() => [...document.querySelectorAll('.rapid-report button')][0].click()")
    page.page.wait_for_function("() => document.querySelector('.rapid-report button').textContent === 'Copied'")
    assert json.loads(page.do("() => navigator.clipboard.readText()")) == record


def test_the_node_tells_how_the_run_goes_on(graph):
    page = graph()
    page.load(example("demo_flux"))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    kind = next(kind for kind in ("RAPID_CacheReuse", "RAPID_Accelerate")
                if page.do("k => app.graph._nodes.some(n => n.comfyClass === k)", kind))  # fmt: skip
    text = page.do("kind => { const n = app.graph._nodes.find(n => n.comfyClass === kind); "
                   "return n.widgets.find(w => w.name === '$$node-text-preview')?.value }", kind)  # fmt: skip
    totals = record_of(page)["totals"]
    assert text.startswith(f"step 10 of 10: {totals['held']} of 10 evaluations not computed")
    assert text.endswith(f"{totals['speedup_allowed']:.1f}x so far")


def test_a_reload_keeps_the_workflow_and_its_report(graph):
    page = graph()
    page.load(example("demo_region", 256))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    before = shown(page)
    page.page.wait_for_timeout(1500)  # the page keeps its workflow a moment after a change
    page.open()
    page.look_at("RAPID_Report", ".rapid-report .row")
    after = shown(page)
    assert after["rows"] == before["rows"] and after["totals"] == before["totals"]
    workflow = page.do("() => app.graph.serialize()")
    assert "rapid_report" not in json.dumps([node.get("widgets_values") for node in workflow["nodes"]])


def test_in_a_subgraph_the_report_is_shown_too(graph):
    page = graph()
    page.load(example("demo_flux"))
    page.do("() => { const some = app.graph._nodes.filter(n => n.comfyClass.startsWith('RAPID_')); "
            "app.canvas.selectItems(some); app.graph.convertToSubgraph(new Set(some)) }")  # fmt: skip
    assert not page.do("() => app.graph._nodes.some(n => n.comfyClass?.startsWith('RAPID_'))")
    page.run()
    page.do("() => { const n = app.graph._nodes.find(n => n.subgraph); app.canvas.openSubgraph(n.subgraph, n) }")
    page.look_at("RAPID_Report", ".rapid-report .row")
    assert shown(page)["totals"][0].startswith(f"{record_of(page)['totals']['computed']} of 10")


def test_a_run_that_failed_does_not_pass_for_the_one_before(graph):
    page = graph()
    page.load(example("demo_flux"))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    page.do("() => { const n = app.graph._nodes.find(n => n.type === 'UNETLoader'); n.widgets[0].value = "
            "'lumina.safetensors' }")  # which takes a loader of its own
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .alert.run")
    assert "The latest run failed in" in shown(page)["alerts"][0]


def test_the_packs_scripts_load_fast_and_say_nothing(graph):
    page = graph()
    entries = page.do("() => performance.getEntriesByType('resource').map(e => e.name).filter(name => "
                      "name.includes('/extensions/rapid/')).map(name => name.split('/').pop())")  # fmt: skip
    scripts = sorted(path.name for path in (REPOSITORY / "web").glob("*.js"))
    assert {*scripts, "report.css"} <= set(entries)
    assert page.do(COMPILED, [(REPOSITORY / "web" / name).read_text(encoding="utf-8") for name in scripts]) < 50
    assert not [line for line in page.said if "/extensions/rapid/" in " ".join(line)]
