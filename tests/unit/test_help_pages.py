"""Help pages that ComfyUI shows beside a node: web/docs/<node id>.md, and <node id>/zh.md for
Chinese."""

import re

import pytest

NODE_ID = re.compile(r'node_id="(\w+)"')
INPUT = re.compile(r'(?:\.Input|\bchoice)\(\s*"(\w+)"')
OUTPUT = re.compile(r'\.Output\([^)]*?display_name="(\w+)"')
ROW = re.compile(r"^\| `(\w+)`", re.MULTILINE)
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
LANGUAGES = {"en": "{}.md", "zh": "{}/zh.md"}


@pytest.fixture(scope="module")
def nodes(repository):
    """node id -> (inputs, outputs), as the text of its file has them."""
    found = {}
    for path in sorted((repository / "nodes").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in NODE_ID.findall(text):
            found[node] = INPUT.findall(text), OUTPUT.findall(text)
    return found


@pytest.fixture(scope="module", params=LANGUAGES)
def pages(request, repository, nodes):
    """node id -> its page in a language."""
    folder = repository / "web" / "docs"
    paths = {node: folder / LANGUAGES[request.param].format(node) for node in nodes}
    return {
        node: path.read_text(encoding="utf-8") if path.is_file() else ""
        for node, path in paths.items()
    }


def test_every_node_has_a_page(nodes, pages):
    assert len(nodes) >= 8
    assert [node for node, page in pages.items() if not page.startswith("# RAPID ")] == []


def test_a_page_explains_all_inputs_and_outputs_in_their_order(nodes, pages):
    for node, (inputs, outputs) in nodes.items():
        assert inputs and outputs
        rows = ROW.findall(pages[node])
        assert (node, rows[: len(inputs) + len(outputs)]) == (node, [*inputs, *outputs])


HEADINGS = {
    "en": ["How to connect it", "Inputs", "", "Limits", "When not to use it"],
    "zh": ["如何连接", "输入", "", "限制", "何时不要使用"],
}
# What a page has in the middle: of a node that shows something itself, how that is read.
MIDDLE = {
    "en": {"What RAPID Report says about it", "How to read it"},
    "zh": {"RAPID 报告会显示什么", "如何阅读"},
}
MOST = 660  # words of an English page, which is read in a narrow panel


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_has_the_same_headings(repository, nodes, language):
    folder = repository / "web" / "docs"
    for node in nodes:
        text = (folder / LANGUAGES[language].format(node)).read_text(encoding="utf-8")
        found = re.findall("^## (.+)$", text, re.MULTILINE)
        assert (node, len(found)) == (node, 5) and found[2] in MIDDLE[language]
        assert (node, [*found[:2], "", *found[3:]]) == (node, HEADINGS[language])


def test_a_page_shows_the_picture_of_its_node_and_no_other(pages):
    # The frontend puts .../docs/ before relative links of all languages' pages.
    assert {node: IMAGE.findall(page) for node, page in pages.items()} == {
        node: [f"images/{node}.png"] for node in pages
    }


def test_a_page_is_short(repository, nodes):
    folder = repository / "web" / "docs"
    long = {
        node: count
        for node in nodes
        if (count := len((folder / f"{node}.md").read_text(encoding="utf-8").split())) > MOST
    }
    assert set(long) <= {"RAPID_Accelerate"}  # the one node that most people need


def test_english_is_there_by_its_name_as_well(repository, nodes):
    """The page asks for <node>/<language>.md first, and <node>.md serves languages that there are
    no pages of."""
    folder = repository / "web" / "docs"
    for node in nodes:
        assert (folder / node / "en.md").read_bytes() == (folder / f"{node}.md").read_bytes(), (
            "python -m devkit.words"
        )


def test_there_are_no_pages_of_nodes_that_are_gone(repository, nodes):
    folder = repository / "web" / "docs"
    there = {path.stem for path in folder.glob("*.md")} | {
        path.parent.name for path in folder.glob("*/*.md")
    }
    assert there == set(nodes)
