"""Tables of results are what the script makes of the JSON beside them, and no figure is left out."""

import re
from dataclasses import asdict

import pytest

from benchmarks import models, names, results
from benchmarks.results.files import load
from evaluation import rows, tables


def text_of(path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", results.pages(), ids=lambda path: path.name)
def test_tables_of_a_page_are_what_the_script_makes(path):
    assert results.with_tables(text_of(path)) == text_of(path), "run python -m benchmarks.results"


@pytest.mark.parametrize("path", results.pages()[1:], ids=lambda path: path.name)
def test_no_table_of_a_page_of_results_is_written_by_hand(path):
    assert re.findall(r"^\|.*", results.MARKED.sub("", text_of(path)), re.MULTILINE) == []


def test_every_table_is_on_one_page():
    names = [m["name"] for path in results.pages() for m in results.MARKED.finditer(text_of(path))]
    assert sorted(names) == sorted(results.TABLES)


def test_every_file_of_figures_is_named_on_a_page():
    text = "".join(map(text_of, results.pages()))
    lost = [path.name for path in results.FOLDER.glob("*.json") if f"({path.name})" not in text]
    assert lost == []


@pytest.mark.parametrize(
    "name", ["policy_flux", "policy_sd3", "region_flux", "region_sd3", "region_lumina"]
)
def test_every_row_of_quality_is_in_its_table(name):
    made = results.TABLES[name]().splitlines()
    assert len(made) == len(load(name)) + 2


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_every_row_of_sparse_attention_is_in_its_table(name):
    made = results.TABLES[f"sparse_{name}"]().splitlines()
    rows = [row for row in load("sparse_demo") if row["model"] == name]
    assert len(made) == len(rows) + 2


def test_every_model_class_is_in_a_table():
    made = "".join(results.TABLES[name]() for name in results.TABLES if name.startswith("models_"))
    lost = [row["class"] for row in load("models") if f"`{row['class']}`" not in made]
    assert lost == []


def test_no_model_class_fails_with_any_node():
    failed = [line for row in load("models") for line in models.errors(row)]
    assert failed == []


def test_every_paired_difference_is_in_a_table():
    made = [
        results.TABLES[name]().splitlines()[2:]
        for name in results.TABLES
        if "_differences_" in name
    ]
    there = [row for name in ("differences", "dial_differences") for row in load(name)]
    assert sum(map(len, made)) == len(there)


@pytest.mark.parametrize(
    "value, digits, sign, words",
    [
        (None, 1, False, "-"),
        (0.05, 2, False, "0.05"),
        (-0.04, 1, False, "0.0"),
        (-0.04, 1, True, "0.0"),
        (3.44, 1, True, "+3.4"),
        (-1.26, 1, True, "-1.3"),
    ],
)
def test_a_number_has_its_leading_zero_and_zero_has_no_sign(value, digits, sign, words):
    assert tables.number(value, digits, sign) == words


def test_a_row_that_names_an_unknown_method_is_refused():
    row = {"suite": "policy", "target": "2x", "method": "something else"}
    with pytest.raises(ValueError, match="something else"):
        names.in_order([row])


def test_a_page_that_asks_for_an_unknown_table_is_refused():
    page = "<!-- table nothing: made by `python -m benchmarks.results` -->\n<!-- end of table -->"
    with pytest.raises(KeyError, match="nothing"):
        results.with_tables(page)


def test_rows_of_version_1_are_read_under_the_names_of_today():
    old = {"method": "dense_noise1", "held": 3.0, "allowed_speedup": 2.0, "speedup": 1.5}
    assert rows.current(old) == {
        "method": "full_noise1",
        "skipped": 3.0,
        "speedup_theoretical": 2.0,
        "speedup_measured": 1.5,
    }
    assert rows.current({"backend": "gather", "left_out": "forecast"}) == {
        "backend": "gather",
        "compensation": "predict",
    }
    paired = rows.current({"method": "plan_solution", "against": "default_plan"})
    assert paired == {"method": "schedule_solution", "against": "default_schedule"}


def test_rows_of_today_are_read_as_they_were_written(tmp_path):
    row = rows.Row("policy", "flux", "full_3", "2x", skipped=3.0, speedup_theoretical=2.0)
    rows.write(tmp_path / "rows.json", [row], {})
    assert rows.read(tmp_path / "rows.json") == [asdict(row)]
