"""RAPID in ComfyUI's own page: found by search, run, reported on, kept over a reload, in both
renderers."""

import json
import re

import pytest

from devkit.base_folder import REPOSITORY
from rapid_testing import examples

# Milliseconds to compile the sources, run them and begin, without imports and exports, which others
# need as well.
COMPILED = """async sources => { const bare = s => s.replace(/^import .*$/gm, "").replace(/^export /gm, "")
  .replaceAll("import.meta.url", "location.href");
  const began = performance.now(); new Function("app", "api", sources.map(bare).join("\\n"))(
  { registerExtension: extension => extension.init?.() }, { addEventListener() {},
  fetchApi: async () => ({ json: async () => ({}) }) });
  return performance.now() - began }"""
# As the server's message that a node of a run has these outputs.
SAY = """async ([run, node, output]) => { const { api } = await import("/scripts/api.js");
  api.dispatchEvent(new CustomEvent("executed", { detail: { prompt_id: run, node, display_node: node, output } }));
  await new Promise(then => setTimeout(then, 500)) }"""
RENUMBER = """number => { const n = app.graph._nodes.find(n => n.comfyClass === "RAPID_Report"); n.id = number;
  app.graph._nodes_by_id[number] = n }"""
LINES = """() => app.graph._nodes.flatMap(n => (n.widgets ?? [])
  .filter(w => w.name === "$$node-text-preview").map(w => [n.id, w.value]))"""
HEARD = """async () => { const { api } = await import("/scripts/api.js"); window.heard = [];
  api.addEventListener("progress_text", ({ detail }) => window.heard.push(detail)) }"""
GREYED = """kind => app.graph._nodes.find(n => n.comfyClass === kind).widgets.filter(w => w.disabled)
  .map(w => w.name)"""
CHOOSE = """([kind, name, value]) => { const n = app.graph._nodes.find(n => n.comfyClass === kind);
  const w = n.widgets.find(w => w.name === name); w.value = value; w.callback?.(value) }"""
MODES = {"run": "computed", "skip": "skipped", "reuse": "blocks reused"}


def example(name, size=128, **changes):
    """An example of a demo model in small, size in pixels; changes: node id = inputs."""
    nodes = examples.api(name)
    nodes["latent"]["inputs"].update(width=size, height=size)
    nodes["sample"]["inputs"].update(steps=10)
    for node, inputs in changes.items():
        nodes[node]["inputs"].update(inputs)
    return nodes


def opened(name, size=128):
    """The same example as people open it: with an id of its own, by which the browser keeps its
    report."""
    workflow = examples.opened(name)
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 10  # seed, what becomes of it, steps
        if node["type"].startswith("Empty") and "Latent" in node["type"]:
            node["widgets_values"][:2] = [size, size]
    return workflow


def shown(page):
    """What the panel shows: totals, cells as (class, share, hover text) by row, remarks and
    maps."""
    return page.do("""() => { const root = document.querySelector(".rapid-report"); const texts = name =>
      [...root.querySelectorAll(name)].map(e => e.textContent); return {
        text: root.textContent, headline: texts(".headline"), closeness: texts(".closeness"),
        totals: texts(".totals"), alerts: texts(".alert"), remarks: texts("li"),
        rows: [...root.querySelectorAll(".row")].map(row => [...row.children].map(c =>
          [c.className, Number(c.dataset.share), c.title])),
        maps: [...root.querySelectorAll("img")].map(i => new URL(i.src).searchParams.get("filename")) } }""")


def record_of(page):
    """The record in the API's outputs."""
    return json.loads(page.outputs("RAPID_Report")["rapid_record"][0])


def check_panel(page):
    """The panel says what the API's record says."""
    record, panel = record_of(page), shown(page)
    totals, images = record["totals"], record["shape"][0]
    (few,) = page.outputs("RAPID_Report")["rapid_summary"]
    assert all(few[name] == totals[name] for name in ("seconds", "seconds_full", "skipped"))
    (headline,), (counts,) = panel["headline"], panel["totals"]
    assert headline.endswith(f", theoretical speed-up {totals['speedup_theoretical']:.2f}x")
    assert (" s instead of about " in headline) is (totals["seconds_full"] is not None)
    assert counts.startswith(
        f"{totals['computed']} of {totals['evaluations']} evaluations computed"
    )
    for name in ("reused", "skipped"):
        assert (f", {totals[name]} {name}" in counts) is (totals[name] > 0) is (name in counts)
    assert len(panel["rows"]) == images and all(
        len(row) == len(record["evaluations"]) for row in panel["rows"]
    )
    for image, row in enumerate(panel["rows"]):
        for (name, share, hover), evaluation in zip(row, record["evaluations"], strict=True):
            assert (
                name.split()[:2] == ["cell", evaluation["modes"][image]]
                and share == evaluation["token_share"][image]
            )
            words = (
                MODES[evaluation["modes"][image]]
                if share in (0, 1)
                else f"computed {100 * share:.0f} % of"
            )
            assert (
                hover.startswith(f"evaluation {evaluation['index'] + 1}, sigma ") and words in hover
            )
    return record, panel


def test_nodes_are_found_by_what_people_look_for_and_dragged_in(graph):
    page = graph()
    page.add("teacache", "RAPID Cache Reuse", 200, 200)
    page.add("speed up", "RAPID Accelerate", 600, 200)
    page.add("ras", "RAPID Region Adaptive", 1000, 200)
    kinds = page.do("() => app.graph._nodes.map(n => n.comfyClass)")
    assert kinds == ["RAPID_CacheReuse", "RAPID_Accelerate", "RAPID_RegionAdaptive"]


@pytest.mark.parametrize(
    "vue, palette", [(False, "dark"), (True, "light")], ids=["litegraph-dark", "nodes2-light"]
)
def test_an_example_runs_and_the_report_shows_what_the_api_says(graph, picture, vue, palette):
    page = graph(**{"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": palette})
    page.load(example("demo_region", 256))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    record, panel = check_panel(page)
    assert record["totals"]["partial"]
    assert panel["maps"] == [file["filename"] for file in page.outputs("RAPID_Report")["rapid_map"]]
    page.page.wait_for_function(
        "() => [...document.querySelectorAll('.rapid-report img')].every(i => i.naturalWidth)"
    )
    page.shot(picture(f"demo_output/report_{palette}.png"), "RAPID_Report")
    mine = [line for line in page.said if line[0] == "error" and "rapid" in " ".join(line)]
    assert mine == []


def test_a_batch_has_a_row_for_every_image_and_its_record_can_be_copied(graph):
    page = graph()
    page.load(example("demo_flux", latent={"batch_size": 3}))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    record, panel = check_panel(page)
    assert (
        len(panel["rows"]) == 3 and panel["maps"] == [] and record["totals"]["skipped"]
    )  # no tokens were chosen
    button = page.page.locator(".rapid-report button").first
    for plain in (
        False,
        True,
    ):  # over plain http, but for this machine's own address, pages have no clipboard object
        page.do("() => navigator.clipboard.writeText('')")
        if plain:
            page.do(
                "() => Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })"
            )
        page.do(
            "() => { const button = document.querySelector('.rapid-report button'); window.saidByButton = []; "
            "new MutationObserver(() => window.saidByButton.push(button.textContent)).observe(button, "
            "{ childList: true, characterData: true, subtree: true }) }"
        )  # it says so for a moment only
        button.click()
        page.page.wait_for_function("() => window.saidByButton.includes('Copied')")
        if plain:
            page.do("() => { delete navigator.clipboard }")
        assert json.loads(page.do("() => navigator.clipboard.readText()")) == record
        page.page.wait_for_function(
            "() => document.querySelector('.rapid-report button').textContent !== 'Copied'"
        )


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
@pytest.mark.parametrize("name", ["demo_flux", "demo_region"])
def test_the_node_tells_how_the_run_goes_on(graph, vue, name):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(example(name, sample={"seed": 11 + vue}))  # what the server has kept does not go on
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    kind = next(
        kind
        for kind in ("RAPID_Accelerate", "RAPID_RegionAdaptive")
        if page.do("k => app.graph._nodes.some(n => n.comfyClass === k)", kind)
    )
    totals = record_of(page)["totals"]
    did = f"{totals['partial']} in part" if totals["partial"] else f"{totals['skipped']} skipped"
    text = f"10/10 · {did} · {totals['speedup_theoretical']:.1f}x"
    page.look_at(kind)
    line = page.page.get_by_text(text, exact=True).filter(visible=True).first
    line.wait_for()
    assert line.evaluate(
        "e => { for (; e && !e.clientHeight; e = e.parentElement); "
        "return e.scrollHeight <= e.clientHeight + 1 }"
    )


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_a_bypassed_node_does_not_tell_of_the_run_before(graph, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(example("demo_flux", sample={"seed": 21 + vue}))
    page.run()
    page.look_at("RAPID_Accelerate")
    line = page.page.get_by_text("10/10 · ").filter(visible=True)
    line.first.wait_for()
    page.do("() => { app.graph._nodes.find(n => n.comfyClass === 'RAPID_Accelerate').mode = 4 }")
    page.run()
    page.page.wait_for_function("() => !document.body.innerText.includes('10/10 · ')")
    page.look_at("RAPID_Report", ".rapid-report")
    text = shown(page)["text"]
    assert re.match(r"RAPID: about [\d.]+ s for 10 steps, all of them computed in full", text)
    few = page.outputs("RAPID_Report")["rapid_summary"][0]
    assert few["full"] is True and few["seconds"] > 0 and few["evaluations"] == 10


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_a_line_does_not_go_to_the_node_of_its_number_in_another_workflow(graph, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    workflow, other = opened("demo_flux", 512), opened("demo_sd3")
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][:3] = [51 + vue, "fixed", 400]  # long enough
    page.load(workflow)
    (number,) = (node["id"] for node in workflow["nodes"] if node["type"] == "RAPID_Accelerate")
    page.do(HEARD)
    page.page.get_by_test_id("queue-button").click()
    page.page.wait_for_function(f"() => ({LINES})().length === 1")
    page.load(other)  # while it goes on
    heard = page.do("() => window.heard.length")
    assert str(page.node("RAPID_Accelerate")["id"]) == str(number)
    page.page.wait_for_function("n => window.heard.length > n + 1", arg=heard)
    assert page.do(LINES) == []
    page.load(workflow)  # and back: it is told again
    page.page.wait_for_function(f"() => ({LINES})().length === 1")
    page.do(
        "async () => { const { api } = await import('/scripts/api.js'); await api.interrupt(null) }"
    )
    page.page.wait_for_function(f"() => ({LINES})().length === 0")


def test_a_line_stays_where_the_run_of_another_workflow_ends_early(graph):
    page = graph()
    page.load(opened("demo_sd3"))
    page.run()
    other = page.latest
    page.load(opened("demo_flux"))
    broken(page, "KSampler", "seed", 71)  # else the server has it all
    page.run()
    page.page.wait_for_function(f"() => ({LINES})().length === 1")
    end = """async run => { const { api } = await import("/scripts/api.js");
      api.dispatchEvent(new CustomEvent("execution_interrupted", { detail: { prompt_id: run } }));
      await new Promise(then => setTimeout(then, 1000)) }"""
    page.do(end, other)
    assert len(page.do(LINES)) == 1
    page.do(end, page.latest)
    assert page.do(LINES) == []


def test_a_line_is_of_the_node_that_is_there_where_its_model_was_made_for_another_workflow(graph):
    """The server keeps what nodes gave, and does not ask how they are numbered."""
    page = graph()
    page.load(opened("demo_flux"))
    page.run()
    page.load(example("demo_flux", sample={"seed": 61}))  # the same nodes under other ids
    page.run()
    page.page.wait_for_function(f"() => ({LINES})().length === 1")
    ((node, text),) = page.do(LINES)
    assert node == "accelerate" and text.startswith("10/10 · ")


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_a_reload_keeps_the_workflow_and_its_report(graph, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(opened("demo_region", 256))
    before = page.do("() => app.graph.serialize()")
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    ran, panel = page.do("() => app.graph.serialize()"), shown(page)
    # A run is not an edit: nothing of it is in the workflow, its undo steps and the pictures that
    # carry it.
    assert [node["properties"] for node in ran["nodes"]] == [
        node["properties"] for node in before["nodes"]
    ]
    page.open()
    page.look_at("RAPID_Report", ".rapid-report .row")
    after = shown(page)
    assert (
        after["rows"] == panel["rows"]
        and after["totals"] == panel["totals"]
        and after["maps"] == panel["maps"]
    )
    assert "without token maps" in after["text"] and "without token maps" not in panel["text"]


def test_a_report_on_another_model_than_the_one_that_was_sampled_says_so(graph):
    page = graph()
    page.load(example("demo_flux", sample={"seed": 31}, report={"model": ["model", 0]}))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .text")
    said = shown(page)["text"]
    assert said.startswith("RAPID: this is not the model that was sampled")
    assert not any(character.isdigit() for character in said)
    assert page.outputs("RAPID_Report")["rapid_summary"] == []


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_a_report_is_as_high_as_what_it_shows_and_its_map_has_a_legend(graph, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    fits = """() => { const r = document.querySelector(".rapid-report");
      return r.clientHeight > 0 && r.scrollHeight <= r.clientHeight + 1
        && r.clientHeight - r.firstElementChild.offsetHeight < 40 }"""
    page.load(example("demo_region"))
    page.look_at("RAPID_Report", ".rapid-report .text")
    page.page.wait_for_function(fits)
    before = page.node("RAPID_Report")["size"][1]
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .map-legend")
    page.page.wait_for_function("() => document.querySelector('.rapid-report img')?.naturalWidth")
    page.page.wait_for_function(fits)
    assert page.node("RAPID_Report")["size"][1] > before + 150 and before < 260
    legend = page.page.locator(".rapid-report .map-legend").first
    assert legend.is_visible() and legend.inner_text().split() == ["never", "computed", "always"]


def test_the_line_speaks_the_users_language_and_goes_when_the_run_is_interrupted(graph):
    page = graph(**{"Comfy.Locale": "zh"})
    page.load(example("demo_flux", sample={"seed": 41}))
    page.run()
    value = """() => app.graph._nodes.find(n => n.comfyClass === "RAPID_Accelerate").widgets
      .find(w => w.name === "$$node-text-preview")?.value"""
    skipped = record_of(page)["totals"]["skipped"]
    page.page.wait_for_function(f"words => ({value})()?.startsWith(words)", arg="10/10 · ")
    line = page.do(value)
    assert line.startswith(f"10/10 · 跳过 {skipped} · ") and line.endswith(" 倍")
    page.do(
        """async run => { const { api } = await import("/scripts/api.js");
        api.dispatchEvent(new CustomEvent("execution_interrupted", { detail: { prompt_id: run } })) }""",
        page.latest,
    )
    page.page.wait_for_function(f"() => ({value})() === undefined")


def test_a_report_shows_nothing_of_other_workflows_or_broken_records(graph):
    page = graph()
    page.load(opened("demo_flux"))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    panel, output, own = shown(page), page.outputs("RAPID_Report"), page.latest
    number = page.node("RAPID_Report")["id"]
    page.do(SAY, [own, number, None])  # a cached node that has nothing to show
    page.do(SAY, [own, number, {"images": [{"filename": "a.png"}]}])
    record = json.loads(output["rapid_record"][0])
    for broken in (
        '{"a": NaN}',
        json.dumps({**record, "evaluations": [{}]}),
        json.dumps({"version": 2}),
    ):
        page.do(
            SAY,
            [own, number, {**output, "text": ["RAPID: euler on flux"], "rapid_record": [broken]}],
        )
        assert shown(page)["text"] == "RAPID: euler on flux"
    page.do(SAY, [own, number, output])
    assert shown(page)["totals"] == panel["totals"]
    page.load(opened("demo_policy"))  # its report has another number
    page.do(RENUMBER, number)
    page.look_at("RAPID_Report", ".rapid-report")
    before = shown(page)
    page.do(SAY, [own, number, output])
    assert before["totals"] == [] and shown(page) == before


def test_a_report_finds_its_workflow_where_the_run_ends_between_two_questions(graph):
    page = graph()
    page.load(opened("demo_flux"))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    output, own, number = page.outputs("RAPID_Report"), page.latest, page.node("RAPID_Report")["id"]
    page.open()  # what the page knew of the run is gone
    page.load(opened("demo_flux"))
    page.look_at("RAPID_Report", ".rapid-report .row")
    missed = []
    page.page.route(
        f"**/history/{own}", lambda route: (missed.append(1), route.fulfill(json={})), times=1
    )
    page.load(opened("demo_policy"))
    page.do(RENUMBER, number)
    page.look_at("RAPID_Report", ".rapid-report")
    page.do(SAY, [own, number, output])
    assert missed and shown(page)["totals"] == []


@pytest.mark.parametrize(
    "locale, words",
    [
        (
            "en",
            [
                "predicted closeness 43 dB: good",
                "predicted closeness 38 dB in the mean, 31 dB at worst: poor",
            ],
        ),
        ("zh", ["预计接近程度 43 dB：好", "预计接近程度平均 38 dB，最差 31 dB：差"]),
    ],
)
def test_a_predicted_closeness_is_shown_with_its_verdict(graph, locale, words):
    page = graph(**{"Comfy.Locale": locale})
    page.load(opened("demo_flux"))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    record, output = record_of(page), page.outputs("RAPID_Report")
    closeness = [[43.2], [None, 45.0, 31.0]]
    verdicts = [(43.2, 43.2, "good"), (38.0, 31.0, "poor")]
    for given, verdict, said in zip(closeness, verdicts, words, strict=True):
        told = dict(zip(("closeness", "closeness_worst", "verdict"), verdict, strict=True))
        changed = {**record, "closeness": given, "totals": {**record["totals"], **told}}
        output["rapid_record"] = [json.dumps(changed)]
        page.do(SAY, [page.latest, page.node("RAPID_Report")["id"], output])
        assert shown(page)["closeness"] == [said]


def test_the_panel_stays_when_the_graph_is_small(graph):
    page = graph()
    page.load(opened("demo_flux"))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    page.do(
        "() => { app.canvas.ds.scale = 0.4; const n = app.graph._nodes.find(n => n.comfyClass === "
        "'RAPID_Report'); app.canvas.centerOnNode(n); app.canvas.setDirty(true, true) }"
    )
    page.page.wait_for_timeout(1000)  # it would go now
    assert page.page.locator(".rapid-report .headline").is_visible()


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_a_workflow_saved_with_fewer_inputs_keeps_its_values_and_links(graph, vue):
    """As RAPID Accelerate was saved before it had modes: one value, and the policy's socket
    second."""
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    workflow = opened("demo_policy")
    (node,) = (node for node in workflow["nodes"] if node["type"] == "RAPID_Accelerate")
    speedup = node["widgets_values"][0]
    node["widgets_values"] = [speedup]
    kept = [i for i in node["inputs"] if i["name"] in ("model", "speedup", "policy")]
    node["inputs"] = [i for i in kept if "widget" not in i] + [i for i in kept if "widget" in i]
    places = {one["link"]: place for place, one in enumerate(node["inputs"]) if one.get("link")}
    for link in workflow["links"]:
        link[4] = places.get(link[0], link[4])
    page.load(workflow)
    found = page.do("async () => (await app.graphToPrompt()).output")
    (inputs,) = (n["inputs"] for n in found.values() if n["class_type"] == "RAPID_Accelerate")
    policy = inputs.pop("policy")
    assert found[policy[0]]["class_type"] == "RAPID_LoadPolicy"
    assert found[inputs.pop("model")[0]]["class_type"] == "UNETLoader"
    assert inputs == {
        "speedup": speedup,
        "mode": "speed",
        "closeness": "balanced",
        "decibels": 40,
        "aim": "full picture",
        "start_percent": 0,
        "end_percent": 1,
        "even_so": False,
        "learn": False,
        "policy_file": "auto",
    }


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_inputs_without_effect_are_greyed(graph, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(opened("demo_flux"))
    kind = "RAPID_Accelerate"
    rest = ["aim", "start_percent", "end_percent", "even_so", "learn", "policy_file"]
    assert page.do(GREYED, kind) == ["closeness", "decibels"]
    for name, value, greyed in (
        ("mode", "quality", ["speedup", "decibels", "learn", "policy_file"]),
        ("closeness", "decibels", ["speedup", "learn", "policy_file"]),
        ("mode", "off", ["speedup", "closeness", "decibels", *rest]),
        ("mode", "quality", ["speedup", "learn", "policy_file"]),
        ("policy_file", "demo-flux-gaps.safetensors", ["speedup", "learn"]),  # refused there
    ):
        page.do(CHOOSE, [kind, name, value])
        assert (value, page.do(GREYED, kind)) == (value, greyed)
    (inputs,) = (
        node["inputs"]
        for node in page.do("async () => (await app.graphToPrompt()).output").values()
        if node["class_type"] == kind
    )
    assert (inputs["speedup"], inputs["mode"], inputs["decibels"]) == (2, "quality", 40)
    page.load(page.do("() => app.graph.serialize()"))
    assert page.do(GREYED, kind) == ["speedup", "learn"]


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_in_a_subgraph_the_report_is_shown_too(graph, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(example("demo_flux"))
    page.do(
        "() => { const some = app.graph._nodes.filter(n => n.comfyClass.startsWith('RAPID_')); "
        "app.canvas.selectItems(some); app.graph.convertToSubgraph(new Set(some)) }"
    )
    assert not page.do("() => app.graph._nodes.some(n => n.comfyClass?.startsWith('RAPID_'))")
    page.run()
    page.do(
        "() => { const n = app.graph._nodes.find(n => n.subgraph); app.canvas.openSubgraph(n.subgraph, n) }"
    )
    page.look_at("RAPID_Report", ".rapid-report .row")
    assert shown(page)["totals"][0].startswith(f"{record_of(page)['totals']['computed']} of 10")


def broken(page, kind, widget, value):
    """Give the first node of a kind a setting with which it fails."""
    page.do(
        "([kind, name, value]) => { const n = app.graph._nodes.find(n => n.type === kind); "
        "n.widgets.find(w => w.name === name).value = value }",
        [kind, widget, value],
    )


def test_a_run_that_failed_does_not_pass_for_the_one_before(graph):
    page = graph()
    page.load(opened("demo_flux"))
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    broken(page, "UNETLoader", "unet_name", "lumina.safetensors")  # which takes a loader of its own
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .alert.run")
    assert shown(page)["alerts"] == [
        "The latest run failed in UNETLoader. Below is the run before it."
    ]
    page.open()  # and a reload does not make it true again
    page.look_at("RAPID_Report", ".rapid-report .alert.run")
    assert "The latest run failed in UNETLoader" in shown(page)["alerts"][0] and shown(page)["rows"]
    broken(page, "UNETLoader", "unet_name", "flux.safetensors")
    page.run()
    page.page.wait_for_function("() => !document.querySelector('.rapid-report .alert')")


def test_a_report_stands_where_its_own_run_failed_later(graph):
    page = graph()
    page.load(opened("demo_flux"))
    broken(page, "KSampler", "seed", 13)  # else the server has it all, and begins with what fails
    broken(page, "SaveImage", "filename_prefix", "../../outside")
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    assert page._history()[page.latest]["status"]["status_str"] == "error"
    page.page.wait_for_timeout(1000)  # the report had time to be told, too
    assert shown(page)["alerts"] == []


def test_an_example_without_its_model_says_which_file_is_missing(graph):
    page = graph()
    page.load(examples.opened("flux1_dev"))
    page.page.wait_for_function("() => app.graph._nodes.some(n => n.type === 'UNETLoader')")
    page.page.get_by_test_id("queue-button").click()
    page.page.wait_for_function(
        "() => app.graph._nodes.find(n => n.type === 'UNETLoader').has_errors"
    )
    assert "flux1-dev.safetensors" in page.page.locator("body").inner_text()
    queue = json.loads(page.server.client._request("/queue"))
    assert queue == {"queue_running": [], "queue_pending": []}
    assert [line for line in page.said if "/extensions/rapid/" in " ".join(line)] == []


def test_the_packs_scripts_load_fast_and_say_nothing(graph):
    page = graph()
    page.open()
    page.page.wait_for_timeout(1000)
    entries = page.do(
        "() => performance.getEntriesByType('resource').map(e => e.name).filter(name => "
        "name.includes('/extensions/rapid/')).map(name => name.split('/').pop())"
    )
    scripts = sorted(path.name for path in (REPOSITORY / "web").glob("*.js"))
    assert {*scripts, "report.css"} <= set(entries)
    sources = [(REPOSITORY / "web" / name).read_text(encoding="utf-8") for name in scripts]
    assert (
        min(page.do(COMPILED, sources) for _ in range(5)) < 50
    )  # the least: other processes may come between
    assert not [line for line in page.said if "/extensions/rapid/" in " ".join(line)]
