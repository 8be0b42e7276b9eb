"""Curves of a training: each point once, however often it was killed."""

import json
import sys
import time

import pytest

from training.scalars import TensorBoardLog, write_lines


def points(folder):
    """{tag: [(step, value)]} as TensorTensorBoardLog shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), {accumulator.SCALARS: 0}).Reload()
    return {
        tag: [(e.step, round(e.value, 4)) for e in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def log(number):
    return [
        {"iteration": i, "when": 1e9 + i, "loss": i / 8, "discriminator/loss": 1.0}
        for i in range(1, number + 1)
    ]


def test_scalars_have_the_usual_names_and_their_times(tmp_path):
    board = TensorBoardLog(tmp_path)
    board.add_lines(log(2))
    board.add(3, {"reward": 0.5, "approx_kl_k3": 0.25, "rollouts_per_second": 2.0})
    assert points(tmp_path) == {
        "policy/loss": [(1, 0.125), (2, 0.25)],
        "discriminator/loss": [(1, 1.0), (2, 1.0)],
        "reward/mean": [(3, 0.5)],
        "policy/approx_kl_k3": [(3, 0.25)],
        "time/rollouts_per_second": [(3, 2.0)],
    }
    board.close()


@pytest.mark.parametrize("kept, torn", [(3, 0), (4, 0), (5, 7)])
def test_after_a_kill_no_point_is_twice_there_and_none_is_missing(tmp_path, kept, torn):
    """Killed after point 4: when its checkpoint was not there yet, when it was, and in the middle
    of writing it."""
    before = TensorBoardLog(tmp_path)
    before.add_lines(log(4))
    (events,) = tmp_path.iterdir()
    if torn:
        events.write_bytes(events.read_bytes()[:-torn])
    time.sleep(
        1 - time.time() % 1
    )  # files are read in the order of their names, which hold the second
    after = TensorBoardLog(tmp_path)
    after.add_lines(log(kept))
    after.add_lines(log(6)[kept:])
    steps = [(i, i / 8) for i in range(1, 7)]
    assert points(tmp_path) == {
        "policy/loss": steps,
        "discriminator/loss": [(i, 1.0) for i, _ in steps],
    }
    before.close()
    after.close()


def test_without_the_package_it_is_said_and_lines_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = TensorBoardLog(tmp_path / "tensorboard")
    for _ in range(2):
        board.add_lines(log(1))
    board.close()
    assert capsys.readouterr().err.count("package tensorboard is not installed") == 1
    assert not (tmp_path / "tensorboard").exists()
    write_lines(tmp_path / "scalars.jsonl", log(2))
    assert [
        json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()
    ] == log(2)
