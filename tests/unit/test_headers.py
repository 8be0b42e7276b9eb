"""Policy files that say for which weights they were made: found by that, without their tensors."""

import os
import time

import pytest
import torch

from rapid_core.policy_file.format import write
from rapid_core.policy_file.headers import Headers
from rapid_core.reasons import text
from rapid_testing.actors import METADATA

OURS, THEIRS = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def saved(tmp_path):
    """saved(name, weights=..., age=seconds): a policy file."""

    def save(name, age=0.0, **more):
        tensors = {"thresholds": torch.tensor([0.7])}
        path = write(
            tmp_path / name, "threshold", {**METADATA, "architecture": "sd3", **more}, tensors
        ).path
        then = time.time() - age
        os.utime(path, (then, then))
        return path

    return save


def test_files_that_say_for_which_weights_they_are_come_newest_first(saved):
    old = saved("a.safetensors", weights=OURS, age=60)
    new = saved("b.safetensors", weights=OURS)
    other = saved("c.safetensors", weights=THEIRS, age=30)
    silent = saved("d.safetensors")
    found = Headers().marked(map(str, [old, silent, other, new]))
    assert [(header.path, header.weights) for header in found] == [
        (new, OURS),
        (other, THEIRS),
        (old, OURS),
    ]


def test_a_file_is_read_again_only_when_it_has_changed(saved, monkeypatch):
    read = []
    module = "rapid_core.policy_file.headers.read_metadata"
    monkeypatch.setattr(module, lambda path: read.append(path) or {"weights": OURS})
    headers, path = Headers(), saved("a.safetensors", weights=OURS, age=60)
    for _ in range(3):
        assert [header.weights for header in headers.marked([str(path)])] == [OURS]
    assert read == [path]
    os.utime(path)
    headers.marked([str(path)])
    assert read == [path, path]


def test_damaged_files_are_passed_over_and_told_once(saved, tmp_path):
    good = saved("good.safetensors", weights=OURS)
    cut, empty, strange = (tmp_path / f"{name}.safetensors" for name in ("cut", "empty", "strange"))
    cut.write_bytes(good.read_bytes()[:-1])
    empty.write_bytes(b"")
    strange.write_bytes(os.urandom(200))
    headers = Headers()
    paths = [cut, empty, strange, tmp_path / "gone.safetensors", good]
    assert [header.path for header in headers.marked(map(str, paths))] == [good]
    notes = headers.notes()
    assert [note.params["file"] for note in notes] == [path.name for path in paths[:3]]
    assert all("policy " not in note.params["error"] for note in notes)
    assert text(notes[0]).startswith("a policy file cannot be used: cut.safetensors (not a whole")
    assert [header.path for header in headers.marked(map(str, paths))] == [
        good
    ] and not headers.notes()


def test_a_file_that_was_mended_is_found(saved, tmp_path):
    headers, path = Headers(), tmp_path / "a.safetensors"
    path.write_bytes(b"")
    assert headers.marked([str(path)]) == []
    saved("a.safetensors", weights=OURS)
    assert [header.weights for header in headers.marked([str(path)])] == [OURS]


def test_many_files_are_looked_at_in_no_time(saved):
    paths = [saved(f"{i}.safetensors", weights=OURS) for i in range(200)]
    headers = Headers()
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        assert len(headers.marked(map(str, paths))) == 200
        seconds.append(time.perf_counter() - start)
    print([f"{1000 * s:.2f} ms" for s in seconds])
    assert seconds[0] < 0.5 and min(seconds[1:]) < 0.05  # an idle machine takes a tenth of that
