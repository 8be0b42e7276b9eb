"""Help pages and languages in ComfyUI's own page, and the pictures of the help pages."""

import json
import re

import pytest
from PIL import Image

from devkit import thumbnails
from devkit.base_folder import REPOSITORY
from rapid_testing import examples

NODES = sorted(path.stem for path in (REPOSITORY / "web" / "docs").glob("RAPID_*.md"))
# Templates that show a node as people set it; others stand alone, with their defaults.
EXAMPLES = {
    "RAPID_Compare": "demo_compare",
    "RAPID_Report": "demo_region",
    "RAPID_Accelerate": "z_image",
    "RAPID_Calibrate": "calibrate",
    "RAPID_LoadPolicy": "demo_policy",
    "RAPID_RegionAdaptive": "region_mask",
}
SHOWN = {"RAPID_Compare": ".stage", "RAPID_Report": ".row"}  # after a run
# Loaders of files that are not here: alone, with the names of this template. Not opened from it, or
# they were framed in red.
NAMED = {"RAPID_LoadLuminaNext": "lumina_next", "RAPID_LoadLuminaNextText": "lumina_next"}
SET = """([kind, inputs]) => { const n = app.graph._nodes.find(n => n.comfyClass === kind);
  n.setSize([460, n.size[1]]); // long names
  for (const w of n.widgets) if (w.name in inputs) w.value = inputs[w.name] }"""
LARGEST = 60_000  # bytes of a picture, which travels with the pack

REASONS = """async () => {
  const { reason, word } = await import("/extensions/rapid/words.js");
  const why = { code: "other_rows", params: { given: 3, expected: 2 }, text: "" };
  return [
    reason({ code: "block_replaced", params: { block: "double_block" }, text: "" }),
    word("status.interrupted"),
    reason("a sentence of version 1"),
    reason({ code: "of_tomorrow", params: {}, text: "a code of a newer version" }),
    reason({ code: "batch_not_split", params: { why }, text: "" }),
  ];
}"""
# A record of version 2 written as version 1 would: what is shown of both, and the remarks of one
# with a reason in a sentence.
VERSION_1 = """async (record) => {
  const timeline = await import("/extensions/rapid/timeline.js");
  const { readRecord } = await import("/extensions/rapid/record.js");
  const old = JSON.parse(JSON.stringify({ ...record, version: 1, notes: [] }));
  const t = old.totals;
  Object.assign(t, { held: t.skipped, speedup_allowed: t.speedup_theoretical, dense_flops: t.full_flops });
  delete t.skipped; delete t.speedup_theoretical; delete t.full_flops;
  old.evaluations = record.evaluations.map((e) => ({
    index: e.index, sigma: e.sigma, occurrence: e.occurrence, cost: e.cost, dense_cost: e.full_cost,
    levels: e.modes.map((mode) => (mode === "skip" ? "hold" : mode)), share: e.token_share,
    error: e.error_estimate, measured: e.measured_error, reasons: [], tokens: e.tokens,
    density: e.density, measures: e.measured_density, seconds: e.seconds, step: e.step,
  }));
  const plain = { ...record, notes: [], evaluations: record.evaluations.map((e) => ({ ...e, reasons: [] })) };
  const shown = (given) => {
    const read = readRecord(given);
    const rows = timeline.rows(read).map((row) => row.outerHTML);
    return [timeline.headline(read).outerHTML, timeline.totals(read), timeline.details(read), rows];
  };
  const result = { before: shown(plain), after: shown(old) };
  old.evaluations[0].reasons = ["a sentence of version 1"];
  return { ...result, remarks: timeline.remarks(readRecord(old)) };
}"""

# Nothing of a group or of a wire that only passes by.
PARTED = "() => { app.graph._groups.length = 0; app.canvas.setDirty(true, true) }"


def load(page, name):
    """An example of a demo model, small enough to run."""
    nodes = examples.api(name)
    nodes["latent"]["inputs"].update(width=256, height=256)
    if "compare" in nodes:
        del nodes["save"]  # which the page would lay over it
    page.load(nodes)


def add(page, kind):
    """A node alone in the graph."""
    page.do(
        "kind => { const n = LiteGraph.createNode(kind); app.graph.add(n); n.pos = [400, 300] }",
        kind,
    )


def ask_for_help(page, kind, title):
    """Select the first node of a kind and open its help, which has this title."""
    page.look_at(kind)
    page.do(
        "kind => app.canvas.selectNode(app.graph._nodes.find(n => n.comfyClass === kind))", kind
    )
    page.page.get_by_test_id("info-button").click()
    found = (
        page.page.locator(".node-help-content, .prose, [class*=markdown]")
        .filter(has_text=title)
        .first
    )
    found.wait_for()
    return found


@pytest.mark.parametrize(
    "locale, title",
    [
        ("en", "RAPID Region Adaptive"),
        ("zh", "RAPID 区域自适应"),
        ("zh-TW", "RAPID 區域自適應"),
    ],
)
def test_help_opens_in_the_users_language(graph, locale, title):
    page = graph(**{"Comfy.Locale": locale})
    add(page, "RAPID_RegionAdaptive")
    text = ask_for_help(page, "RAPID_RegionAdaptive", title).inner_text()
    words = json.loads(
        (REPOSITORY / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8")
    )
    mine = words["RAPID_RegionAdaptive"]
    node = page.node("RAPID_RegionAdaptive")
    assert node["title"] == mine["display_name"] == title and title in text
    named = {entry["name"] for entry in mine["inputs"].values()}
    assert {*node["widgets"]} <= named and "keep_ratio" in text
    page.page.wait_for_timeout(500)
    assert [
        address for kind, _, address in page.said if kind == "error" and "/docs/" in address
    ] == []


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_titles_of_a_template_are_in_the_users_language_and_others_stay(graph, vue):
    titles = "() => [app.graph._groups, app.graph._nodes].map(all => all.map(one => one.title))"
    page = graph(**{"Comfy.Locale": "zh", "Comfy.VueNodes.Enabled": vue})
    workflow = examples.opened("demo_compare")
    page.load(workflow)
    groups, nodes = page.do(titles)
    assert "加载" in groups and "完整采样" in groups and "Load" not in groups
    assert "K采样器（完整）" in nodes and "请先阅读" in nodes
    if vue:
        page.page.get_by_text("K采样器（完整）", exact=True).first.wait_for()
    del workflow["extra"]["rapid_template"]  # somebody else's workflow
    page.load(workflow)
    groups, nodes = page.do(titles)
    assert "Load" in groups and "KSampler (full)" in nodes


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_choices_are_in_the_users_language_and_keep_their_values(graph, vue):
    page = graph(**{"Comfy.Locale": "zh", "Comfy.VueNodes.Enabled": vue})
    load(page, "demo_compare")
    shown = page.do(
        "() => { const node = app.graph._nodes.find(n => n.comfyClass === 'RAPID_Accelerate');"
        " const mode = node.widgets.find(w => w.name === 'mode');"
        " return [mode.value, mode._displayValue ?? '', mode.options.getOptionLabel(mode.value)] }"
    )
    assert shown[0] == "speed" and shown[2] == "速度 (speed)"
    if vue:
        page.page.get_by_text("速度 (speed)", exact=True).first.wait_for()
    else:
        assert shown[1] == "速度 (speed)"


def test_the_report_speaks_the_users_language(graph):
    page = graph(**{"Comfy.Locale": "zh"})
    load(page, "demo_region")
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    text = page.page.locator(".rapid-report").first.inner_text()
    assert "28 次推理中计算了 28 次" in text and "部分 token" in text and "复制为 JSON" in text
    assert (
        "evaluations computed" not in text and "键和值：" in text and "keys and values" not in text
    )
    said = page.do(REASONS)
    assert said == [
        "其他节点替换了 double_block：模型的模块无法更改",
        "被中断",
        "a sentence of version 1",
        "a code of a newer version",
        "批次无法拆分：有一个参数有 3 行，应为 2 行",
    ]


def test_a_page_in_a_language_that_there_are_no_words_of_speaks_english(graph):
    page = graph(**{"Comfy.Locale": "fr"})
    load(page, "demo_region")
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    assert "evaluations computed" in page.page.locator(".rapid-report").first.inner_text()


def test_a_report_without_a_run_speaks_the_users_language(graph):
    """What it says instead of a record is a code as well."""
    page = graph(**{"Comfy.Locale": "zh"})
    load(page, "demo_region")
    page.do(
        "() => { for (const n of app.graph._nodes) "
        "if (n.comfyClass.startsWith('RAPID_') && n.comfyClass !== 'RAPID_Report') n.mode = 4 }"
    )
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .text")
    text = page.page.locator(".rapid-report .text").first.inner_text()
    assert text.startswith("RAPID：28 步约 ") and "没有 RAPID 节点改动过这个模型" in text


def test_records_of_version_1_are_shown_with_the_words_of_today(graph):
    """They may lie in the browser's storage."""
    page = graph()
    load(page, "demo_region")
    page.run()
    page.look_at("RAPID_Report", ".rapid-report .row")
    shown = page.do(VERSION_1, json.loads(page.outputs("RAPID_Report")["rapid_record"][0]))
    assert shown["before"] == shown["after"]
    assert shown["remarks"] == ["computed in full, 1 x: a sentence of version 1"]


def test_old_names_of_choices_in_a_saved_workflow_become_those_of_today(graph):
    page = graph()
    load(page, "demo_region")
    saved = page.do("() => app.graph.serialize()")
    (node,) = (node for node in saved["nodes"] if node["type"] == "RAPID_RegionAdaptive")
    old = {"last value": "hold", "predict": "forecast", "per-token error": "clocks"}
    values = list(node["widgets_values"])
    node["widgets_values"] = [old.get(value, value) for value in values]
    assert node["widgets_values"] != values
    page.load(saved)
    again = page.do("() => app.graph.serialize()")
    (node,) = (node for node in again["nodes"] if node["type"] == "RAPID_RegionAdaptive")
    assert node["widgets_values"] == values


@pytest.mark.parametrize("kind", NODES)
def test_every_help_page_has_its_picture(graph, picture, kind):
    page = graph()
    if kind in EXAMPLES:
        page.load(examples.opened(EXAMPLES[kind]))
    else:
        add(page, kind)
    if kind in NAMED:
        nodes = examples.api(NAMED[kind]).values()
        page.do(SET, [kind, next(node["inputs"] for node in nodes if node["class_type"] == kind)])
    if kind in SHOWN:
        page.run()
        page.look_at(kind, f".rapid-panel {SHOWN[kind]}")
        page.page.wait_for_function(
            "() => [...document.querySelectorAll('.rapid-panel img')].every(i => i.naturalWidth)"
        )
    page.do(PARTED)
    path = picture(f"web/docs/images/{kind}.png")
    page.shot(path, kind)
    thumbnails.shrink(path)
    assert path.stat().st_size < LARGEST
    shown = Image.open(path).convert("L")
    assert min(shown.size) > 100 and len(shown.getcolors()) > 20
    docs = REPOSITORY / "web" / "docs"
    linked = re.findall(r"!\[[^\]]+\]\((\S+)\)", (docs / f"{kind}.md").read_text(encoding="utf-8"))
    assert linked == [f"images/{kind}.png"] and (docs / linked[0]).is_file()
