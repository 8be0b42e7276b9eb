"""The record, its JSON form, the log, and row slicing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.comfy.slicing import NotSliceable, rows_of, take_rows
from rapid_core.record import KEPT, EvaluationRecord, RunLog, RunRecord, fingerprint, side_by_side


def evaluation(index, *levels, reasons=()):
    cost = tuple(10.0 if level == "run" else 1.0 if level == "reuse" else 0.0 for level in levels)
    n, share = len(levels), tuple(float(level == "run") for level in levels)
    dense, error, measured = (10.0,) * n, (None,) * n, (0.1,) * n
    return EvaluationRecord(
        index, 1.0 - index / 10, 0, levels, share, cost, dense, error, measured, reasons
    )


def record(*evaluations, fingerprint="a", images=1):
    return RunRecord(
        "euler",
        "flux",
        (images, 16, 8, 8),
        (1.0, 0.5, 0.0),
        ({"technique": "cache_reuse"},),
        evaluations,
        seconds=1.5,
        bytes=2**20,
        fingerprint=fingerprint,
    )


def test_totals_count_every_image_of_every_evaluation():
    totals = record(evaluation(0, "run", "run"), evaluation(1, "hold", "reuse"), images=2).totals
    assert (totals["evaluations"], totals["computed"], totals["reused"], totals["held"]) == (
        4,
        2,
        1,
        1,
    )
    assert totals["speedup_allowed"] == pytest.approx(40 / 21)


def test_the_speedup_by_the_clock_is_against_the_runs_own_whole_evaluations():
    """The first one, which warms up, does not count; and fewer than two others say nothing."""
    seconds = [("run", 9.0), ("run", 2.0), ("hold", 0.1), ("run", 2.0), ("hold", 0.1)]
    timed = [replace(evaluation(i, level), seconds=s) for i, (level, s) in enumerate(seconds)]
    assert replace(record(*timed), seconds=5.0).totals["speedup_measured"] == 2.0
    assert replace(record(*timed[:3]), seconds=5.0).totals["speedup_measured"] is None


def test_the_json_form_survives_json():
    body = record(evaluation(0, "run"), evaluation(1, "hold")).as_json()
    again = json.loads(json.dumps(body))
    assert (again["format"], again["version"]) == ("rapid-record", 1)
    assert again["evaluations"][1]["levels"] == ["hold"]
    assert again["totals"]["held"] == 1


def test_the_text_names_the_reason_of_a_dense_fallback():
    text = record(evaluation(0, "run"), evaluation(1, "run", reasons=("a foreign patch",))).text()
    assert "computed densely 1 time: a foreign patch" in text
    assert "\n##\n" in text


def test_a_run_without_evaluations_has_a_text():
    assert "0 of 0 evaluations" in record().text()


def test_the_log_keeps_the_last_runs_and_finds_the_one_of_a_latent():
    log = RunLog()
    for i in range(KEPT + 3):
        log.add(record(fingerprint=str(i)))
    assert len(log.records) == KEPT
    assert log.find("5").fingerprint == "5"
    assert log.find("unknown").fingerprint == str(KEPT + 2)
    assert RunLog().find("5") is None


@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_rows_are_chunk_times_batch_plus_image(batch, chunks, data):
    images = data.draw(st.lists(st.integers(0, batch - 1), unique=True))
    table = torch.arange(chunks * batch).view(chunks, batch)
    assert rows_of(images, batch, chunks) == table[:, images].flatten().tolist()


def test_what_has_another_batch_cannot_be_sliced():
    with pytest.raises(NotSliceable, match="3 rows where 4"):
        take_rows({"y": torch.zeros(3, 2)}, torch.tensor([0]), 4)


def test_images_sampled_one_after_another_stand_side_by_side():
    """Three evaluations of one image and two of the other, in place of six: at levels of the other
    an image is held."""
    first = record(
        evaluation(0, "run"), evaluation(2, "reuse"), evaluation(5, "run", reasons=("a reason",))
    )
    both = side_by_side(
        [first, record(evaluation(0, "run"), evaluation(3, "run"), fingerprint="b")], 6
    )
    assert both.shape == (2, 16, 8, 8) and both.seconds == 3.0 and both.fingerprint == "b"
    assert [(e.sigma, e.levels) for e in both.evaluations] == [
        (1.0, ("run", "run")),
        (0.8, ("reuse", "hold")),
        (0.7, ("hold", "run")),
        (0.5, ("run", "hold")),
    ]
    assert both.totals["computed"] == 4 and both.totals["flops"] == 41.0
    assert (both.totals["evaluations"], both.totals["reused"], both.totals["held"]) == (12, 1, 7)
    assert both.totals["dense_flops"] == pytest.approx(2 * 6 * 10.0)
    assert "\n#r.#\n#.#.\n" in both.text() and "a reason" in both.text()
    assert json.loads(json.dumps(both.as_json()))["evaluations"][1]["cost"] == [1.0, 0.0]


def test_a_latent_without_a_fingerprint_is_that_of_no_run_in_particular():
    log = RunLog()
    log.add(record(fingerprint=""))
    log.add(record(fingerprint="b"))
    assert log.find("").fingerprint == "b" and log.find("", other=False) is None


def test_fingerprints_are_of_parts_as_the_host_packs_them_and_of_what_it_hands_on_in_half_precision():
    nested = SimpleNamespace(
        is_nested=True, tensors=[torch.arange(8.0).reshape(2, 1, 4), torch.ones(2, 3)]
    )
    packed = torch.cat([part.flatten(1)[:, None] for part in nested.tensors], 2)
    assert fingerprint(nested) == fingerprint(packed) == fingerprint(packed.half()) != ""
    assert fingerprint(packed + 1) != fingerprint(packed) and fingerprint("latent") == ""
