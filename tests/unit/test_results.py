"""Pages of results are what the script makes of the JSON beside them, and no figure is left out."""

import json

import pytest

from benchmarks import results, tables


@pytest.mark.parametrize("path", list(results.files()), ids=lambda path: path.name)
def test_a_page_of_results_is_what_the_script_makes(path):
    made = results.files()[path]
    assert path.read_text(encoding="utf-8") == made, "run python -m benchmarks.results"


def test_every_file_of_figures_is_on_a_page():
    text = "".join(page.render() for page in results.PAGES)
    lost = [path.name for path in results.FOLDER.glob("*.json") if f"({path.name})" not in text]
    assert lost == []


def test_every_row_of_quality_is_on_its_page():
    for name in ("policy_flux", "policy_sd3", "region_flux", "region_sd3", "region_lumina"):
        rows = results.load(name)
        made = results.quality(name, rows[0]["model"]).splitlines()
        assert len(made) == len(rows) + 2, name


def test_every_paired_difference_is_on_its_page():
    rows = results.load("differences")
    made = [
        results.differences(suite, model).splitlines()[2:]
        for suite, model in {(row["suite"], row["model"]) for row in rows}
    ]
    assert sum(map(len, made)) == len(rows)


@pytest.mark.parametrize(
    "value, digits, sign, words",
    [
        (None, 1, False, "-"),
        (0.05, 2, False, "0.05"),
        (-0.04, 1, False, "0.0"),
        (3.44, 1, True, "+3.4"),
        (-1.26, 1, True, "-1.3"),
    ],
)
def test_numbers_have_their_leading_zero(value, digits, sign, words):
    assert tables.number(value, digits, sign) == words


def test_a_row_that_names_an_unknown_method_is_refused():
    row = {"suite": "policy", "target": "2x", "method": "something else"}
    with pytest.raises(ValueError, match="something else"):
        tables.in_order([row])


def test_rows_are_all_of_known_form():
    for path in results.FOLDER.glob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        assert data if isinstance(data, list) else data["rows"], path.name
