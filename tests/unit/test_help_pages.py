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


def test_a_page_shows_the_picture_of_its_node_and_no_other(pages):
    # The frontend puts .../docs/ before relative links of all languages' pages.
    assert {node: IMAGE.findall(page) for node, page in pages.items()} == {
        node: [f"images/{node}.png"] for node in pages
    }


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
