"""The table of releases: what tests did is read as it was written, gone on with, and shown for what it is."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest

from benchmarks import hosts, names
from benchmarks.results.hosts import outcome, version_key
from devkit.cache import SetupError

TESTS = """
import os

import pytest


def test_passes():
    pass


def test_has_no_sense_here():
    pytest.skip("it came with a later ComfyUI")


def test_fails():
    assert 1 == 2, "one is not two"


@pytest.fixture
def untidy():
    yield
    raise RuntimeError("left something behind")


def test_passes_but_does_not_clean_up(untidy):
    pass


def test_ends_the_process():
    os._exit(3)


def test_is_never_reached():
    pass
"""
PLUGIN = """
from pathlib import Path

from rapid_testing.outcomes import Outcomes


def pytest_configure(config):
    config.pluginmanager.register(Outcomes(Path("outcomes")))
"""


@pytest.fixture
def written(tmp_path, repository):
    """written(tests): lines that tests of a file test_toys.py left behind."""

    def written(tests):
        (tmp_path / "conftest.py").write_text(PLUGIN)
        (tmp_path / "test_toys.py").write_text(tests)
        environment = {**os.environ, "PYTHONPATH": str(repository / "tests")}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_toys.py"]
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        return (tmp_path / "outcomes").read_text().splitlines()

    return written


def test_what_became_of_tests_is_known_although_one_ended_the_process(written):
    topics, unread = hosts.read_outcomes(written(TESTS))
    (topic,) = topics.values()
    assert list(topics) == ["toys"] and not unread
    assert topic["passed"] == 1 and topic["skipped"] == {"it came with a later ComfyUI": 1}
    assert topic["failed"] == {
        "test_fails": "AssertionError: one is not two",
        "test_passes_but_does_not_clean_up": "RuntimeError: left something behind",
    }
    assert topic["missing"] == 2
    assert hosts.pending({"topics": topics}, ["toys"]) == ["toys"]


def test_a_file_of_tests_that_cannot_be_read_is_named(written):
    topics, unread = hosts.read_outcomes(written("import no_such_thing"))
    assert not topics and list(unread) == ["toys"]
    assert "no_such_thing" in unread["toys"]


def test_a_line_that_was_cut_off_is_passed_over():
    lines = ['{"collected": {"tests/test_a.py": 2}}', '{"test": "tests/test_a.py::test_b", "outc']
    assert hosts.read_outcomes(lines)[0]["a"]["missing"] == 2


def test_every_file_of_integration_tests_is_a_topic_or_for_the_newest_release_alone(repository):
    for path in repository.glob("tests/integration/test_*.py"):
        alone = "\npytestmark = pytest.mark.main_host\n" in path.read_text(encoding="utf-8")
        assert (hosts.topic_of(path.name) in names.TOPICS) != alone, path.name


# Going on.


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """bench(tests, ...): rows after a run in which tests give outcomes; tests: of each process in turn, either
    {topic: outcome} or an error. What was run: bench.ran."""

    ran = []
    asked = []

    def bench(*processes, hosts_=("0.30.0",), topics=("nodes", "words"), again=False):
        left = list(processes)

        def pytest_(self, paths, file, said):
            names_ = [hosts.topic_of(path) for path in paths]
            ran.append((self.row["host"], names_))
            asked.append(paths)
            found = left.pop(0)
            if isinstance(found, str):
                said.append(found)
                return
            tests = [path.split("::")[0] for path in paths]
            lines = [{"collected": dict.fromkeys(tests, 1)}]
            for name, result in found.items():
                test = f"tests/integration/test_{name}.py::test_it"
                why = "" if result == "passed" else "because"
                lines.append({"test": test, "outcome": result, "why": why, "seconds": 1.0})
            file.write_text("\n".join(map(json.dumps, lines)))

        monkeypatch.setattr(hosts.Session, "_pytest", pytest_)
        args = dict(out=tmp_path, host_tree=[], hosts=hosts_, topics=list(topics), again=again)
        hosts.run(Namespace(**args))
        return {row["host"]: row for row in hosts.read(tmp_path / "hosts.json")}

    monkeypatch.setattr(hosts.Host, "tree", lambda self: tmp_path)
    return SimpleNamespace(run=bench, ran=ran, asked=asked)


def test_what_is_there_is_left_alone_and_what_failed_is_run_again(bench):
    rows = bench.run({"nodes": "passed", "words": "failed"})
    assert rows["0.30.0"]["topics"]["words"]["failed"] == {"test_it": "because"}
    rows = bench.run({"words": "passed", "safety": "skipped"}, topics=("nodes", "words", "safety"))
    assert [topics for _, topics in bench.ran] == [["nodes", "words"], ["words", "safety"]]
    words = rows["0.30.0"]["topics"]["words"]
    assert (words["failed"], words["passed"]) == ({}, 1)
    assert bench.asked[1][0] == "tests/integration/test_words.py::test_it"
    assert rows["0.30.0"]["topics"]["safety"]["skipped"] == {"because": 1}
    bench.run()
    assert len(bench.ran) == 2
    bench.run({"nodes": "passed"}, topics=("nodes",), again=True)
    assert len(bench.ran) == 3


def test_topics_that_a_process_did_not_come_to_are_run_by_the_next_one(bench):
    rows = bench.run({"nodes": "passed"}, {"words": "passed"})
    assert [topics for _, topics in bench.ran] == [["nodes", "words"], ["words"]]
    assert not hosts.pending(rows["0.30.0"], ["nodes", "words"])


def test_what_passed_before_counts_when_what_failed_is_run_again():
    before = {**hosts.empty(), "passed": 3, "skipped": {"too old": 1}, "failed": {"test_a": "no"}}
    now = {**hosts.empty(), "skipped": {"too old": 1}}
    after = hosts.merged(before, now, whole=False)
    assert (after["passed"], after["skipped"], after["failed"]) == (3, {"too old": 2}, {})
    assert hosts.merged(before, now, whole=True) == now


def test_where_a_test_that_failed_is_gone_its_whole_file_is_run(bench):
    bench.run({"nodes": "failed"}, topics=("nodes",))
    rows = bench.run("ERROR: not found: test_it", {"nodes": "passed"}, topics=("nodes",))
    file = "tests/integration/test_nodes.py"
    assert bench.asked == [[file], [f"{file}::test_it"], [file]]
    assert rows["0.30.0"]["topics"]["nodes"]["passed"] == 1 and rows["0.30.0"]["why"] is None


def test_tests_that_do_not_begin_are_said_and_not_tried_for_ever(bench):
    error = "ImportError: no module named comfy"
    rows = bench.run(error, error)
    assert rows["0.30.0"]["why"] == "the tests did not begin: ImportError: no module named comfy"
    assert rows["0.30.0"]["topics"] == {}
    assert bench.run({"nodes": "passed", "words": "passed"})["0.30.0"]["why"] is None


def test_a_release_that_cannot_be_had_is_said_and_the_others_are_run(bench, monkeypatch, tmp_path):
    def tree(host):
        if host.version == "0.16.3":
            raise SetupError("the package index has no such thing")
        return tmp_path

    monkeypatch.setattr(hosts.Host, "tree", tree)
    rows = bench.run({"nodes": "passed", "words": "passed"}, hosts_=("0.30.0", "0.16.3"))
    assert list(rows) == ["0.16.3", "0.30.0"]
    assert rows["0.16.3"]["why"] == "the package index has no such thing"
    assert [host for host, _ in bench.ran] == ["0.30.0"]


def test_a_folder_that_is_no_comfyui_ends_before_anything_is_run(bench, tmp_path):
    args = dict(out=tmp_path, host_tree=[tmp_path], hosts=None, topics=["nodes"], again=False)
    with pytest.raises(SetupError, match="--host-tree .* is no ComfyUI folder"):
        hosts.run(Namespace(**args))
    assert not bench.ran


def test_releases_stand_by_their_numbers_and_folders_behind_them():
    found = ["0.46.0 (folder)", "0.30.0", "0.9.1", "master (folder)", "0.16.3"]
    wanted = ["0.9.1", "0.16.3", "0.30.0", "master (folder)", "0.46.0 (folder)"]
    assert sorted(found, key=version_key) == wanted


# What is shown.


def test_a_cell_says_what_became_of_a_topic_or_that_it_was_not_run():
    topic = {**hosts.empty(), "passed": 3, "skipped": {"too old": 2}, "failed": {"test_a": "no"}}
    host = {"topics": {"nodes": topic, "words": {**hosts.empty(), "missing": 4}}}
    assert outcome(host, "nodes") == "**1 failed**, 3 passed, 2 skipped (too old)"
    topic["skipped"]["no browser"] = 1
    assert outcome(host, "nodes").endswith("3 skipped (2 reasons, see below)")
    assert outcome(host, "words") == "**4 without an outcome**"
    assert outcome(host, "safety") == "not run"
