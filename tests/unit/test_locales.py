"""Words of reports: the same in both languages, for every code, with the values that the code
gives."""

import ast
import json
import re

import pytest

from devkit import traditional
from rapid_core.reasons import ReasonCode, text
from rapid_core.record import verdict
from rapid_core.types import Reason

PARAMETER = re.compile(r"\{(\w+)\}")
LANGUAGES = ("en", "zh")
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def words(repository):
    """language -> section -> key -> words."""
    paths = {language: repository / "locales" / language / "main.json" for language in LANGUAGES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}


@pytest.fixture(scope="module")
def scripts(repository):
    """The text of all scripts of the page."""
    paths = sorted((repository / "web").glob("*.js"))
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def given_reasons(repository):
    """(file, code, names of the values) of every `Reason(ReasonCode.X, ...)` in the pack."""
    for path in sorted([*repository.glob("rapid_core/**/*.py"), *repository.glob("nodes/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reason"
            if not named or not node.args or not isinstance(node.args[0], ast.Attribute):
                continue
            names = [keyword.arg for keyword in node.keywords]
            if None not in names:
                yield path.name, ReasonCode[node.args[0].attr].value, set(names)


def test_every_section_has_the_same_keys_in_both_languages(words):
    assert all(list(words[language]) == ["rapid"] for language in LANGUAGES)
    english, chinese = (words[language]["rapid"] for language in LANGUAGES)
    assert {name: list(section) for name, section in english.items()} == {
        name: list(section) for name, section in chinese.items()
    }


def test_every_code_of_a_reason_has_words_and_no_words_are_without_a_code(words):
    for language in LANGUAGES:
        assert set(words[language]["rapid"]["reasons"]) == {code.value for code in ReasonCode}


def test_values_have_the_same_names_in_both_languages(words):
    english, chinese = (words[language]["rapid"] for language in LANGUAGES)
    for name, section in english.items():
        for key, value in section.items():
            found = sorted(set(PARAMETER.findall(chinese[name][key])))
            assert (key, found) == (key, sorted(set(PARAMETER.findall(value))))


def test_chinese_words_are_chinese(words):
    signs = {"comma"}
    for section in words["zh"]["rapid"].values():
        said = {key: PARAMETER.sub("", value) for key, value in section.items() if key not in signs}
        assert [key for key, value in said.items() if value and not CHINESE.search(value)] == []


def test_nothing_in_the_words_is_special_to_the_frontend_but_names_in_braces(words):
    """ComfyUI's page merges them into the messages of vue-i18n: `|` would be a plural and `@` a
    link."""
    for language in LANGUAGES:
        for section in words[language]["rapid"].values():
            plain = [PARAMETER.sub("", value) for value in section.values()]
            assert [value for value in plain if re.search(r"[{}@|]", value)] == []


def test_reasons_are_given_with_the_values_that_their_words_name(repository, words):
    table = words["en"]["rapid"]["reasons"]
    for file, code, names in given_reasons(repository):
        assert (file, code, names) == (file, code, set(PARAMETER.findall(table[code])))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reason_within_a_reason_is_said_in_the_same_language(language):
    inner = Reason(ReasonCode.OTHER_ROWS, given=3, expected=2)
    said = text(Reason(ReasonCode.BATCH_NOT_SPLIT, why=inner), language)
    assert text(inner, language) in said and "{" not in said


def test_every_word_of_the_page_is_in_the_table_and_every_entry_is_used(words, scripts):
    table = words["en"]["rapid"]
    used = set(re.findall(r'word\(\s*"(\w+)"', scripts))
    assert len(used) > 15 and used <= set(table["report"])
    assert [k for k in table["report"] if f'"{k.removesuffix("_before")}"' not in scripts] == []
    assert [k for k in table["compare"] if f'"compare.{k}"' not in scripts] == []
    assert set(table["status"]) == {"finished", "interrupted", "failed"}
    assert set(table["verdict"]) == {verdict(40.0), verdict(35.0), verdict(0.0)}


@pytest.mark.parametrize(
    "line",
    ["28/28 · 15 skipped · 2.2x", "3/28 · 1.5 skipped · 2 in part · 1.4x", "9.5 pictures · done"]
    + ["3.5 of 40 pictures · 12 min left", "1/8 · 0 skipped · 1.0x"],
)
def test_the_parts_of_the_line_on_a_node_are_those_that_the_page_translates(words, line):
    """The server says them in English; web/words.js knows them by this table."""
    parts = [part for part in line.split(" · ") if "/" not in part]
    known = [
        re.compile(PARAMETER.sub(".+", re.escape(value).replace(r"\{", "{").replace(r"\}", "}")))
        for value in words["en"]["rapid"]["line"].values()
    ]
    assert all(any(pattern.fullmatch(part) for pattern in known) for part in parts)


def test_traditional_chinese_is_made_of_the_simplified():
    """`python -m devkit.words` makes it so."""
    letters = {*traditional.SIMPLIFIED, *traditional.SAME}
    assert len(traditional.SIMPLIFIED) == len(traditional.TRADITIONAL) > 200
    made = traditional.pairs()
    assert len(made) > 10
    for path, source in made.items():
        text = source.read_text(encoding="utf-8")
        unknown = set(CHINESE.findall(text)) - letters
        assert (source.name, unknown) == (source.name, set()), "add them to devkit/traditional.py"
        assert path.read_text(encoding="utf-8") == traditional.traditional(text)


def test_words_that_one_letter_for_letter_would_get_wrong_are_right():
    assert (
        traditional.traditional("复制策略文件，限制内存，合并采样。RAPID")
        == "複製策略檔案，限制記憶體，合併取樣。RAPID"
    )
