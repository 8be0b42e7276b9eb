"""`dev.py frozen`: what counts as the same picture and the same decisions."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from devkit import frozen
from devkit.cache import SetupError
from devkit.frozen import compare, report, unexplained, worktree


def run(latent="a", old=False, **changed):
    """A run of two evaluations as rapid_testing.frozen writes it; old: with the words of records
    of version 1."""
    first = {"modes": ["run"], "token_share": [1.0], "cost": [8.0], "full_cost": [8.0]}
    second = {"modes": ["skip"], "token_share": [0.0], "cost": [0.0], "full_cost": [8.0]}
    second = {**second, "error_estimate": [0.1], **changed}
    first["error_estimate"] = [None]
    rows = [first, second]
    if old:
        back = {today: before for before, today in frozen.RENAMED.items()}
        rows = [{back.get(key, key): value for key, value in row.items()} for row in rows]
        for row in rows:
            row["levels"] = [{"skip": "hold"}.get(mode, mode) for mode in row["levels"]]
    return {"latent": latent, "record": {"evaluations": rows}}


def difference(old, new):
    return compare({"x": old}, {"x": new}).differences.get("x", "")


def test_the_same_run_in_old_and_new_words_is_equal():
    found = compare({"x": run(old=True)}, {"x": run()})
    assert (found.equal, found.differences, found.unknown) == (1, {}, {})


@pytest.mark.parametrize(
    "new, said",
    [
        (run("b"), "latent (the records are equal)"),
        (run(modes=["reuse"]), "evaluation 2: modes was ['skip'], is ['reuse']"),
        (run("b", cost=[1.0]), "latent; evaluation 2: cost was [0.0], is [1.0]"),
        (run(error_estimate=[0.1000001]), "evaluation 2: error_estimate was [0.1], is [0.1000001]"),
        (run(density=[0.5]), "evaluation 2: density is missing on the old side"),
        ({"error": "ValueError: no"}, "fails on the new side only: ValueError: no"),
        ({"latent": "a", "record": None}, "no record on the new side"),
    ],
)
def test_what_differs_first_is_said(new, said):
    assert difference(run(old=True), new) == said


def test_what_version_1_has_not_is_compared_where_both_sides_have_it():
    assert difference(run(old=True), run(step=1)) == ""
    said = "evaluation 2: step was 1, is 2"
    assert difference(run(step=1), run(step=2)) == said


def test_fewer_evaluations_are_a_difference():
    shorter = run()
    del shorter["record"]["evaluations"][1]
    assert difference(run(), shorter) == "2 evaluations, now 1"


def test_words_and_seconds_may_differ():
    assert difference(run(reasons=["too big"], seconds=1), run(reasons=["large"], seconds=2)) == ""


def test_a_key_that_nobody_knows_is_reported():
    found = compare({"x": run()}, {"x": run(colour=["red"])})
    assert found.unknown == {"colour": "new"} and found.equal == 1
    assert "records of the new side have 'colour'" in report(found, {}, "v1")


def test_runs_of_one_side_only_and_failures_of_both_are_no_success():
    found = compare({"a": run(), "b": {"error": "no"}}, {"b": {"error": "nein"}, "c": run()})
    assert found.equal == 0 and found.failed_twice == ["b"]
    assert found.differences == {"a": "made by the old set only", "c": "made by the new set only"}


def test_only_mends_that_are_listed_may_differ():
    found = compare({"flux, skip": run(), "sd3": run()}, {"flux, skip": run("b"), "sd3": run("b")})
    assert unexplained(found, {"flux, *": "D4"}) == ["sd3"]
    assert unexplained(found, {"*": "D4"}) == []
    text = report(found, {"flux, *": "D4"}, "v1")
    assert "  flux, skip: latent (the records are equal) (D4)" in text
    assert "1 runs differ without a reason" in text


def test_the_list_of_mends_gives_a_reason_for_each():
    mends = json.loads(frozen.MENDS.read_text(encoding="utf-8"))
    assert all(isinstance(why, str) and why for why in mends.values())


@pytest.fixture
def history(tmp_path, monkeypatch):
    """A repository with one commit, in place of this one."""
    folder = tmp_path / "repository"
    for command in (
        ["init", "-q", str(folder)],
        ["-C", str(folder), "commit", "-q", "--allow-empty", "-m", "Begin"],
    ):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *command], check=True)
    monkeypatch.setattr(frozen, "REPOSITORY", folder)
    return folder


def test_a_worktree_is_gone_afterwards(history, tmp_path):
    with worktree("HEAD", tmp_path / "old") as folder:
        assert (folder / ".git").is_file()
    assert not folder.exists()
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=history, capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 1


def test_a_revision_that_is_not_there_is_one_line(history, tmp_path):
    said = "git cannot provide nowhere: .*nowhere"
    with pytest.raises(SetupError, match=said), worktree("nowhere", tmp_path / "old"):
        pass


def test_both_states_are_run_by_the_same_script(tmp_path, capfd):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$4"\nwhile [ "$1" != --out ]; do shift; done\necho "{}" > "$2"\n'
    )
    python.chmod(0o755)
    ground = SimpleNamespace(python=python, tree=tmp_path)
    packs = {"old": tmp_path / "one", "new": tmp_path / "two"}
    assert frozen.make_runs(ground, packs, tmp_path, "") == {"old": {}, "new": {}}
    lines = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("==")]
    assert lines == [str(pack) for pack in packs.values()]
