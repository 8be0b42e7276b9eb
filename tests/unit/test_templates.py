"""The templates as files: names, notes, and where their nodes lie."""

import copy
import json
import re

import pytest

from devkit import blueprints
from devkit import template_layout as layout
from devkit.templates import FOLDER, TEMPLATES, api, files, note, numbers, template

TWINS = [one.twin for one in TEMPLATES]
# Scales of those that open without text in a window of 1440 x 900, at the least.
LARGE = {
    "ltx2": 0.39,
    "wan2.2_t2v": 0.34,
    "qwen_image_edit": 0.45,
    "flux1_kontext": 0.45,
    "lumina2": 0.5,
}
CONTROL = {"fixed", "randomize", "increment", "decrement"}


@pytest.fixture(scope="module", params=TWINS)
def one(request):
    return template(request.param)


@pytest.fixture
def workflow(one):
    return json.loads(one.path.read_text(encoding="utf-8"))


def problems(workflow):
    """What is wrong with how a workflow's nodes and wires lie, by titles of nodes."""
    names = {node["id"]: f"{node['type']} {node['id']}" for node in workflow["nodes"]}
    frames = {group["title"]: layout.frame_of(group) for group in workflow["groups"]}
    return layout.problems(layout.boxes_of(workflow), layout.wires_of(workflow), frames, names)


def test_every_template_has_its_files_and_nothing_else_is_there():
    there = {path.name for path in FOLDER.iterdir() if path.is_file()}
    assert there == {path.name for one in TEMPLATES for path in (one.path, one.picture)}
    assert {path.stem for path in (FOLDER / "api").iterdir()} == set(TWINS)


def test_names_are_numbered_in_the_order_of_the_table_and_can_be_part_of_an_address():
    titles = [one.title for one in TEMPLATES]
    assert titles == sorted(titles)
    assert all(re.fullmatch(r"\d\d [\w .()-]+", title, re.ASCII) for title in titles)
    assert max(map(len, titles)) <= 31  # what the page shows of one
    demos = [one.twin for one in TEMPLATES if one.title.startswith("0")]
    assert demos == [one.twin for one in TEMPLATES if one.demo] == TWINS[: len(demos)]


def test_nothing_overlaps_and_no_wire_runs_backwards_or_behind_a_node(workflow):
    assert problems(workflow) == []


def test_a_template_lies_as_the_table_says(one, workflow):
    """`python -m devkit.templates` makes it so."""
    places = [node["pos"] for node in workflow["nodes"]]
    ids = {**numbers(api(one.twin)), "note": max(node["id"] for node in workflow["nodes"])}
    layout.arrange(workflow, one.blocks, ids)
    assert [node["pos"] for node in workflow["nodes"]] == places


def test_a_template_opens_at_a_scale_at_which_litegraph_draws_text(one, workflow):
    """Those of LARGE are too long a chain of nodes for a window of 1440 x 900."""
    scale = layout.opening_scale(workflow)
    assert (scale < layout.READABLE) == (one.twin in LARGE)
    assert scale >= LARGE.get(one.twin, layout.READABLE)


def test_the_first_template_has_some_scale_to_spare():
    workflow = json.loads(TEMPLATES[0].path.read_text(encoding="utf-8"))
    assert layout.opening_scale(workflow) >= 0.65


def test_seeds_stay(workflow):
    kept = [
        value
        for node in workflow["nodes"]
        for value in node.get("widgets_values") or []
        if value in CONTROL and node["type"] != "MarkdownNote"
    ]
    assert set(kept) <= {"fixed"}


def test_a_note_says_in_both_languages_what_to_do_and_names_every_file(one, workflow):
    (text,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert text == note(one)
    assert "`" not in text  # blue on blue in Nodes 2.0
    assert len(re.findall("[\u4e00-\u9fff]", one.chinese)) > 20
    named = [file.split("/")[1] for file in files(api(one.twin))]
    assert one.demo or all(name in text for name in named)


MOVES = {
    "overlaps": lambda nodes, _: nodes[1].update(pos=list(nodes[0]["pos"])),
    "from right to left": lambda nodes, _: nodes[0].update(pos=[9000, 0]),
    "in 0 groups": lambda nodes, _: nodes[0].update(pos=[-900, -900]),
    "group Load overlaps": lambda _, groups: groups[1].update(bounding=[0, 0, 3000, 3000]),
    "runs behind": lambda nodes, _: nodes[-2].update(pos=[nodes[0]["pos"][0] + 350, 90]),
}


@pytest.mark.parametrize("words", MOVES)
def test_what_is_wrong_with_a_layout_is_found(words):
    workflow = json.loads(template("z_image").path.read_text(encoding="utf-8"))
    moved = copy.deepcopy(workflow)
    MOVES[words](moved["nodes"], moved["groups"])
    assert not problems(workflow) and any(words in said for said in problems(moved))


def test_a_node_in_no_group_is_refused():
    one = template("z_image")
    workflow = json.loads(one.path.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="in one group, which is not so of save"):
        blocks = (*one.blocks[:-1], (layout.Group("Result", (("report", "decode"),)),))
        ids = {**numbers(api(one.twin)), "note": max(n["id"] for n in workflow["nodes"])}
        layout.arrange(workflow, blocks, ids)


def test_the_blueprint_is_made_of_a_templates_nodes():
    made = blueprints.fast_sampling()
    path = blueprints.path_of(blueprints.NAME)
    assert json.loads(path.read_text(encoding="utf-8")) == made, "python -m devkit.blueprints"
    (inside,) = made["definitions"]["subgraphs"]
    assert [node["type"] for node in inside["nodes"]] == [
        "RAPID_Accelerate",
        "KSampler",
        "RAPID_Report",
    ]
    nodes = {node["id"]: node for node in inside["nodes"]}
    for link in inside["links"]:
        if link["target_id"] in nodes:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
        if link["origin_id"] in nodes:
            given = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in given["links"] and given["type"] == link["type"]


def test_every_title_of_a_template_is_told_in_chinese(workflow, repository):
    """By web/titles.js, out of this table. Titles that a node has by itself are the page's own."""
    words = json.loads((repository / "locales/zh/main.json").read_text(encoding="utf-8"))
    titles = [one["title"] for one in [*workflow["groups"], *workflow["nodes"]] if "title" in one]
    assert workflow["extra"]["rapid_template"] is True
    assert set(titles) - set(words["rapid"]["titles"]) <= {"RAPID"}
