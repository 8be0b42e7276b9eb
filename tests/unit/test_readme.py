"""README: its table of models is the code's, and its links lead somewhere."""

import re

import pytest

from devkit import readme

LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCS = ("policies", "region_adaptive", "sparse_attention")
PAGES = ["README.md", "demo/models/README.md", *(f"docs/{name}.md" for name in DOCS)]


def anchor(title: str) -> str:
    """How GitHub names a heading."""
    return "#" + re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def test_the_table_of_models_is_made_from_the_code():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.with_table(text) == text, "run python -m devkit.readme"
    assert text.count("**measured**") == sum(architecture.measured for architecture in readme.ALL)


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
