"""What the interface says: tooltips everywhere, and the same nodes, inputs and outputs in all
languages."""

import json
import re
from pathlib import Path

import pytest

from devkit.words import nodes_of, path_of, words_of

PROPER_NAMES = {"Latent"}  # what Chinese users call by its English name
CHINESE = re.compile("[\u4e00-\u9fff]")
MESSAGE_SYNTAX = re.compile(r"[{}@|]")  # of vue-i18n, which names and descriptions pass through
NO_WORDS = {  # choices that are file names
    "RAPID_LoadPolicy": {"policy"},
    "RAPID_LoadLuminaNext": {"model_name"},
    "RAPID_LoadLuminaNextText": {"text_encoder"},
}


@pytest.fixture(scope="module")
def nodes(pack):
    return nodes_of(pack)


@pytest.fixture(scope="module")
def spoken():
    """language -> what its file says."""
    return {
        language: json.loads(path_of(language).read_text(encoding="utf-8"))
        for language in ("en", "zh")
    }


def texts(words, *place):
    """(place, text) of everything that is said, nested as it is in the file."""
    if not isinstance(words, dict):
        return [("/".join(place), words)]
    return [found for key, value in words.items() for found in texts(value, *place, key)]


def ids(slots):
    return {slot.id for slot in slots}


def names(slots):
    return {slot.display_name for slot in slots}


def test_every_node_has_a_description_and_words_to_be_found_by(nodes):
    schemas = [node.GET_SCHEMA() for node in nodes]
    assert [s.node_id for s in schemas if not s.description or len(s.search_aliases) < 4] == []
    patches = [s for s in schemas if "model" in ids(s.inputs) & names(s.outputs)]
    assert len(patches) == 4
    for (
        schema
    ) in schemas:  # what does nothing alone or as it comes is not offered to who looks for speed
        offered = {"speed up", "faster"} & set(schema.search_aliases)
        assert bool(offered) is (schema in patches and not schema.is_experimental)


def test_every_input_and_output_has_a_tooltip(nodes):
    assert [place for place, text in texts(words_of(nodes)) if not text] == []


def test_every_choice_has_words_in_the_page(nodes):
    """But for the names of files, metrics and libraries."""
    names = {"l2", "gather", "flex", "xformers", "64", "16", "128"}
    for language in ("en", "zh", "zh-TW"):
        file = path_of(language).with_name("main.json")
        known = json.loads(file.read_text(encoding="utf-8"))["rapid"]["choices"]
        asked = {
            option
            for schema in (node.GET_SCHEMA() for node in nodes)
            for slot in schema.inputs
            if slot.id not in NO_WORDS.get(schema.node_id, ())
            for option in getattr(slot, "options", None) or ()
            if not option.endswith(".safetensors")
        }
        assert asked - names == set(known)
        assert language == "en" or all(CHINESE.search(text) for text in known.values())


def test_english_words_are_those_of_the_schemas(nodes, spoken):
    made = words_of(nodes)
    assert json.dumps(spoken["en"]) == json.dumps(made), (
        "words of a node changed: run python -m devkit.words"
    )


def test_chinese_words_are_about_the_same_nodes_inputs_and_outputs(spoken):
    english, chinese = (
        [place for place, _ in texts(spoken[language])] for language in ("en", "zh")
    )
    assert chinese == english


def test_chinese_words_are_chinese(spoken):
    said = texts(spoken["zh"])
    assert [
        place for place, text in said if not CHINESE.search(text) and text not in PROPER_NAMES
    ] == []


def test_no_word_is_taken_for_message_syntax_by_the_frontend(spoken):
    said = [*texts(spoken["en"]), *texts(spoken["zh"])]
    assert [place for place, text in said if MESSAGE_SYNTAX.search(text)] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_choice_is_explained_by_the_name_that_is_shown(nodes, spoken, language):
    missing = []
    for schema in (node.GET_SCHEMA() for node in nodes):
        for slot in schema.inputs:
            if slot.id in NO_WORDS.get(schema.node_id, ()):
                continue
            tooltip = spoken[language][schema.node_id]["inputs"][slot.id]["tooltip"]
            options = getattr(slot, "options", None) or []
            for option in (one for one in options if not one.endswith(".safetensors")):
                whole = rf"(?<![a-z0-9-]){re.escape(option)}(?![a-z0-9-])"
                if not re.search(whole, tooltip):
                    missing.append(f"{schema.node_id}.{slot.id}: {option}")
    assert missing == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_word_that_the_design_replaced_is_in_a_tooltip(spoken, language):
    gone = r"(?<!-)\b(hold|held|clocks?|dense(?:ly)? evaluation|noise level|spargeattn|allowed)\b"
    said = texts(spoken[language])
    assert [place for place, text in said if re.search(gone, text, re.IGNORECASE)] == []


def test_comfyui_offers_the_words_of_both_languages(comfy_host, pack, spoken, monkeypatch):
    monkeypatch.syspath_prepend(
        str(comfy_host.tree)
    )  # its package `utils` comes before comfy/utils.py, as in main.py
    from app.custom_node_manager import CustomNodeManager

    offered = CustomNodeManager().build_translations()
    for language, words in spoken.items():
        there = offered[language]["nodeDefs"]
        assert {node: there[node] for node in words} == words


@pytest.mark.parametrize("language", ["en", "zh"])
def test_comfyui_offers_the_words_of_reports(comfy_host, pack, language, monkeypatch):
    monkeypatch.syspath_prepend(str(comfy_host.tree))
    from app.custom_node_manager import CustomNodeManager

    path = path_of(language).with_name("main.json")
    offered = CustomNodeManager().build_translations()[language]
    assert offered["rapid"] == json.loads(path.read_text(encoding="utf-8"))["rapid"]


def test_comfyui_serves_a_help_page_of_every_node_in_both_languages(comfy_host, nodes):
    ids = [node.GET_SCHEMA().node_id for node in nodes]
    # The frontend asks for /extensions/<folder>/docs/..., the folder by the node's python_module.
    folder = {
        comfy_host.nodes.NODE_CLASS_MAPPINGS[node].RELATIVE_PYTHON_MODULE.split(".")[1]
        for node in ids
    }
    docs = Path(comfy_host.nodes.EXTENSION_WEB_DIRS[folder.pop()]) / "docs"
    assert folder == set()
    assert [
        node
        for node in ids
        if not (docs / f"{node}.md").is_file() or not (docs / node / "zh.md").is_file()
    ] == []
