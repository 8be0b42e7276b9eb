"""Pages for people: their tables are the code's, their links lead somewhere, their words and numbers
are those of docs/architecture.md."""

import re
from pathlib import Path

import pytest

from devkit import readme

LINK = re.compile(r"\]\(([^)\s]+)\)")
REPOSITORY = readme.REPOSITORY
PAGES = [
    "README.md",
    "demo/models/README.md",
    "benchmarks/policies/README.md",
    *sorted(
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md")
    ),
]
# What these words were before; `docs/architecture.md` says what each thing is called.
OLD_WORDS = re.compile(
    r"\bnoise levels?\b|\bforecasts?\b|\bdensely\b|\bheld\b(?!-out)|\bstreams?\b|\ballowed speed"
    r"|\bby the clock,? about\b|\ba clock for every\b|\bunverified\b|\bthe ODE\b(?!')",
    re.IGNORECASE,
)
GLOSSARY = "docs/architecture.md"
PLACE = re.compile(r"\b[\w./]+\.(?:py|js|css)\b")


def anchor(title: str) -> str:
    """How GitHub names a heading."""
    return "#" + re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def prose(text: str) -> str:
    """A page without code, links' addresses and what is in quotes."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r'`[^`]*`|\]\([^)]*\)|"[^"]*"', "", text)


def test_the_table_of_models_is_made_from_the_code():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.with_table(text) == text, "run python -m devkit.readme"
    measured = {readme.cells(a) for a in readme.ALL if a.measured}
    assert text.count("**measured**") == len(measured)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(repository, page):
    text = (repository / page).read_text(encoding="utf-8")
    anchors = {anchor(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    lost = []
    for link in LINK.findall(text):
        path, _, part = link.partition("#")
        if link.startswith("#"):
            lost += [link] if link not in anchors else []
        elif not path.startswith("http"):
            target = repository / page.rpartition("/")[0] / path
            titles = (
                re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                if part
                else []
            )
            lost += (
                [link]
                if not target.exists() or (part and f"#{part}" not in map(anchor, titles))
                else []
            )
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_numbers_have_their_leading_zero(repository, page):
    text = prose((repository / page).read_text(encoding="utf-8"))
    assert re.findall(r"(?<![\w./])\.\d+", text) == []


@pytest.mark.parametrize("page", PAGES)
def test_one_word_for_one_thing(repository, page):
    text = prose((repository / page).read_text(encoding="utf-8"))
    if page == GLOSSARY:
        text = text.partition("## Words")[0] + text.partition("## What people read,")[2]
    assert OLD_WORDS.findall(text) == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_folder_of_somebodys_machine(repository, page):
    text = (repository / page).read_text(encoding="utf-8")
    assert re.findall(r"(?:/home|/root|/work|/tmp|/Users|[A-Z]:\\)\S*", text) == []


def test_help_pages_name_documents_that_are_there(repository):
    lost = []
    for path in sorted((repository / "web" / "docs").rglob("*.md")):
        names = re.findall(r"\bdocs/[\w/]+\.md", path.read_text(encoding="utf-8"))
        lost += [f"{path.name}: {name}" for name in names if not (repository / name).exists()]
    assert lost == []


def test_readme_is_one_page_with_the_commands_to_try(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    _, _, rest = text.partition("## Try it")
    block = re.search(r"```\n(.*?)```", rest, re.DOTALL)
    assert block is not None
    commands = [line.partition("#")[0].strip() for line in block[1].splitlines()]
    assert commands == ["python3 dev.py demo", "python3 dev.py test"]
    assert "`python3 dev.py test --all`" in rest
    assert "git clone" in text.partition("## Try it")[0]


def test_ci_runs_the_long_test_command_of_readme(repository):
    script = (repository / ".ci" / "run").read_text(encoding="utf-8")
    assert "python3 dev.py test --all" in script


def test_every_file_that_the_page_on_the_code_names_is_there(repository):
    text = (repository / GLOSSARY).read_text(encoding="utf-8")
    folders = ("nodes", "rapid_core", "training", "evaluation", "demo", "benchmarks", "devkit")
    folders = (*folders, "tests", "web")
    files = [path.as_posix() for folder in folders for path in (repository / folder).rglob("*.*")]
    files += [path.as_posix() for path in repository.glob("*.py")]
    lost = [
        name
        for name in sorted(set(PLACE.findall(text)))
        if not any(file.endswith(f"/{Path(name).as_posix()}") for file in files)
    ]
    assert lost == []
