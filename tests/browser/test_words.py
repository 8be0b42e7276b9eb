"""Help pages and languages in ComfyUI's own page, and the pictures of the help pages."""

import json
import re

import pytest
from PIL import Image

from devkit.base_folder import REPOSITORY
from rapid_testing import examples

NODES = sorted(path.stem for path in (REPOSITORY / "web" / "docs").glob("RAPID_*.md"))
EXAMPLES = {
    "RAPID_Accelerate": "demo_policy",
    "RAPID_LoadPolicy": "demo_policy",
    "RAPID_CacheReuse": "demo_flux",
    "RAPID_RegionAdaptive": "demo_region",
}


def load(page, name):
    """An example of a demo model, small enough to run."""
    nodes = examples.api(name)
    nodes["latent"]["inputs"].update(width=256, height=256)
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
    "locale, title", [("en", "RAPID Region Adaptive"), ("zh", "RAPID 区域自适应")]
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
    said = page.do("""async () => { const { reason } = await import("/extensions/rapid/reasons.js"); return [
      reason("another node replaced double_block 0; its blocks cannot be changed"), reason("interrupted"),
      reason("a sentence that nobody wrote"), reason("the batch cannot be split: an argument has 3 rows where 2 were "
      + "expected")] }""")
    assert said == [
        "其他节点替换了 double_block 0；模型的模块无法更改",
        "被中断",
        "a sentence that nobody wrote",
        "批次无法拆分：有一个参数有 3 行，应为 2 行",
    ]


@pytest.mark.parametrize("kind", NODES)
def test_every_help_page_has_its_picture(graph, picture, kind):
    page = graph()
    if kind == "RAPID_Report":
        load(page, "demo_region")
        page.run()
        page.look_at("RAPID_Report", ".rapid-report .row")
        page.page.wait_for_function(
            "() => document.querySelector('.rapid-report img')?.naturalWidth"
        )
    elif kind in EXAMPLES:
        load(page, EXAMPLES[kind])
    else:
        add(page, kind)
    path = picture(f"web/docs/images/{kind}.png")
    page.shot(path, kind)
    shown = Image.open(path).convert("L")
    assert min(shown.size) > 100 and len(shown.getcolors()) > 20
    docs = REPOSITORY / "web" / "docs"
    linked = re.findall(r"!\[[^\]]+\]\((\S+)\)", (docs / f"{kind}.md").read_text(encoding="utf-8"))
    assert linked == [f"images/{kind}.png"] and (docs / linked[0]).is_file()
