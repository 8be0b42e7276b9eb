"""The record, its JSON form, the log, and row slicing."""

import base64
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.comfy.batch_rows import NotSliceable, rows_of, take_rows
from rapid_core.comfy.progress import so_far
from rapid_core.reasons import ReasonCode
from rapid_core.record import (
    REMEMBERED,
    EvaluationRecord,
    RunLog,
    RunRecord,
    fingerprint,
    pack,
    read,
    unpack,
)
from rapid_core.types import Reason


def evaluation(index, *modes, reasons=()):
    cost = tuple(10.0 if mode == "run" else 1.0 if mode == "reuse" else 0.0 for mode in modes)
    n, share = len(modes), tuple(float(mode == "run") for mode in modes)
    dense, error, measured = (10.0,) * n, (None,) * n, (0.1,) * n
    return EvaluationRecord(
        index, 1.0 - index / 10, 0, modes, share, cost, dense, error, measured, reasons
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


@pytest.mark.parametrize("sigma", [0.75, 0.45, 0.2])
def test_the_line_of_a_run_counts_steps_whatever_sigma_a_sampler_tells(sigma):
    """As Detail Daemon does, which tells lower ones."""
    second = replace(evaluation(1, "skip"), sigma=sigma, step=1)
    line = so_far([evaluation(0, "run"), second], (1.0, 0.75, 0.5, 0.25, 0.0))
    assert line == "2/4 · 1 skipped · 2.0x"


def test_totals_count_every_image_of_every_evaluation():
    totals = record(evaluation(0, "run", "run"), evaluation(1, "skip", "reuse"), images=2).totals
    assert (totals["evaluations"], totals["computed"], totals["reused"], totals["skipped"]) == (
        4,
        2,
        1,
        1,
    )
    assert totals["speedup_theoretical"] == pytest.approx(40 / 21)


def test_the_speedup_that_was_measured_is_against_the_runs_own_full_evaluations():
    """The first one, which warms up, does not count; and fewer than two others say nothing."""
    seconds = [("run", 9.0), ("run", 2.0), ("skip", 0.1), ("run", 2.0), ("skip", 0.1)]
    timed = [replace(evaluation(i, mode), seconds=s) for i, (mode, s) in enumerate(seconds)]
    assert replace(record(*timed), seconds=5.0).totals["speedup_measured"] == 2.0
    assert replace(record(*timed[:3]), seconds=5.0).totals["speedup_measured"] is None


def test_the_text_begins_with_what_was_saved():
    seconds = [("run", 9.0), ("run", 2.0), ("skip", 0.1), ("run", 2.0), ("skip", 0.1)]
    timed = [replace(evaluation(i, mode), seconds=s) for i, (mode, s) in enumerate(seconds)]
    made = replace(record(*timed), seconds=5.0)
    assert made.totals["seconds_full"] == 10.0
    assert made.text().splitlines()[:2] == [
        "RAPID: 5.0 s instead of about 10 s, theoretical speed-up 1.67x",
        "3 of 5 evaluations computed, 2 skipped",
    ]
    assert record(*timed[:3]).text().startswith("RAPID: 1.5 s, theoretical speed-up 1.50x\n")


def test_an_error_of_predictions_is_said_only_where_such_were_used():
    """It is measured for a straight line, as cache reuse predicts; a schedule predicts otherwise."""
    said = "prediction error where it was measured: mean 0.100"
    some, none = [evaluation(0, "run"), evaluation(1, "skip")], [evaluation(0, "run")]
    schedule = ({"technique": "schedule"},)
    assert said in record(*some).text()
    assert said not in record(*none).text()
    assert said not in replace(record(*some), policies=schedule).text()
    assert said in replace(record(*some), policies=(*schedule, {"technique": "rapid3"})).text()


def test_seconds_have_two_digits_or_are_whole():
    shown = [replace(record(), seconds=s).text().splitlines()[0] for s in (0.05, 1.0, 9.97, 12.4)]
    assert shown == ["RAPID: 0.050 s", "RAPID: 1.0 s", "RAPID: 10 s", "RAPID: 12 s"]


def test_evaluations_of_which_some_tokens_were_computed_do_not_read_as_none_left_out():
    some = replace(evaluation(1, "run"), token_share=(0.4,), cost=(4.0,))
    text = record(evaluation(0, "run"), some).text()
    assert "2 of 2 evaluations computed, 1 of them on 40% of the image tokens\n" in text
    assert "skipped" not in text and "reused" not in text


@pytest.mark.parametrize(
    ("closeness", "words"),
    [
        ((43.21,), "predicted closeness 43 dB: good"),
        ((40.0,), "predicted closeness 40 dB: good"),
        ((None, 35.0), "predicted closeness 35 dB: fair"),
        ((45.0, 31.0), "predicted closeness 38 dB in the mean, 31 dB at worst: poor"),
    ],
)
def test_a_predicted_closeness_is_said_with_a_verdict_on_the_worst(closeness, words):
    images = len(closeness)
    made = replace(record(evaluation(0, *["run"] * images), images=images), closeness=closeness)
    assert words in made.text().splitlines()
    known = [one for one in closeness if one is not None]
    assert made.totals["closeness_worst"] == round(min(known), 1)
    assert made.totals["verdict"] == words.rpartition(" ")[2]
    assert read(json.loads(json.dumps(made.to_json()))).closeness == closeness


def test_nothing_is_said_of_a_closeness_that_nobody_knows():
    for closeness in ((), (None,)):
        made = replace(record(evaluation(0, "run")), closeness=closeness)
        assert "closeness" not in made.text() and made.totals["verdict"] is None
    old = record(evaluation(0, "run")).to_json()
    del old["closeness"]
    assert read(old).closeness == ()


def test_the_json_form_survives_json():
    body = record(evaluation(0, "run"), evaluation(1, "skip")).to_json()
    again = json.loads(json.dumps(body))
    assert (again["format"], again["version"]) == ("rapid-record", 2)
    assert again["evaluations"][1]["modes"] == ["skip"]
    assert again["totals"]["skipped"] == 1


def test_the_text_names_the_reason_of_a_fallback():
    text = record(
        evaluation(0, "run"), evaluation(1, "run", reasons=(Reason(ReasonCode.CONTEXT_WINDOWS),))
    ).text()
    assert "computed in full 1 time: context windows are computed in full" in text
    assert "\n##\n" in text


def test_a_run_without_evaluations_has_a_text():
    assert "0 of 0 evaluations" in record().text()


def test_the_log_keeps_the_last_runs_and_finds_the_one_of_a_latent():
    log = RunLog()
    for i in range(REMEMBERED + 3):
        log.add(record(fingerprint=str(i)))
    assert len(log.records) == REMEMBERED
    assert log.find("5").fingerprint == "5"
    assert log.find("unknown") is None and RunLog().find("5") is None


@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_rows_are_chunk_times_batch_plus_image(batch, chunks, data):
    images = data.draw(st.lists(st.integers(0, batch - 1), unique=True))
    table = torch.arange(chunks * batch).view(chunks, batch)
    assert rows_of(images, batch, chunks) == table[:, images].flatten().tolist()


def test_what_has_another_batch_cannot_be_sliced():
    with pytest.raises(NotSliceable) as error:
        take_rows({"y": torch.zeros(3, 2)}, torch.tensor([0]), 4)
    assert error.value.reason == Reason(ReasonCode.OTHER_ROWS, given=3, expected=4)


def test_a_run_of_which_nobody_knows_what_it_made_says_what_went_wrong_until_the_next_one():
    """As one that could not be planned. Its numbers are shown for no latent."""
    log = RunLog()
    why = Reason(ReasonCode.NOT_PLANNED, error="a mistake")
    log.add(replace(record(fingerprint=""), notes=(Reason(ReasonCode.AR_VIDEO), why)))
    assert log.failure() == why and log.find("b") is None and log.find("") is None
    log.add(replace(record(fingerprint=""), status="failed", notes=(why,)))
    assert log.failure() is None
    log.add(record(fingerprint="a"))
    assert log.failure() is None and RunLog().failure() is None


def test_fingerprints_are_of_parts_as_the_host_packs_them_and_of_what_it_hands_on_in_half_precision():
    nested = SimpleNamespace(
        is_nested=True, tensors=[torch.arange(8.0).reshape(2, 1, 4), torch.ones(2, 3)]
    )
    packed = torch.cat([part.flatten(1)[:, None] for part in nested.tensors], 2)
    assert fingerprint(nested) == fingerprint(packed) == fingerprint(packed.half()) != ""
    assert fingerprint(packed + 1) != fingerprint(packed) and fingerprint("latent") == ""


def test_a_record_comes_back_out_of_its_json():
    reason = Reason(
        ReasonCode.BATCH_NOT_SPLIT, why=Reason(ReasonCode.OTHER_ROWS, given=3, expected=4)
    )
    made = replace(
        record(evaluation(0, "run", reasons=(reason,)), evaluation(1, "skip")),
        notes=(Reason(ReasonCode.AR_VIDEO),),
        grid=(1, 4, 4),
    )
    assert read(json.loads(json.dumps(made.to_json()))) == made


def test_a_record_of_version_1_is_read():
    """As 0.1 wrote it: with other names, and reasons in words."""
    old = {
        "format": "rapid-record",
        "version": 1,
        "sampler": "euler",
        "family": "flux",
        "shape": [1, 16, 8, 8],
        "sigmas": [1.0, 0.5, 0.0],
        "policies": [{"technique": "schedule", "speedup": 2.0}],
        "seconds": 1.5,
        "bytes": 10,
        "status": "finished",
        "notes": ["a note"],
        "fingerprint": "a",
        "grid": None,
        "due": None,
        "totals": {"held": 1},
        "evaluations": [
            {
                "index": 0,
                "sigma": 1.0,
                "occurrence": 0,
                "levels": ["run"],
                "share": [1.0],
                "cost": [10.0],
                "dense_cost": [10.0],
                "error": [None],
                "measured": [None],
                "reasons": ["a reason"],
                "tokens": [],
                "density": [],
                "measures": [],
                "seconds": 0.1,
            },
            {
                "index": 1,
                "sigma": 0.5,
                "occurrence": 0,
                "levels": ["hold"],
                "share": [0.0],
                "cost": [0.0],
                "dense_cost": [10.0],
                "error": [0.1],
                "measured": [0.2],
                "reasons": [],
                "tokens": [],
                "density": [],
                "measures": [],
                "seconds": 0.1,
            },
        ],
    }
    found = read(old)
    assert [e.modes for e in found.evaluations] == [("run",), ("skip",)]
    assert found.totals["speedup_theoretical"] == 2.0 and found.totals["skipped"] == 1
    assert "a reason" in found.text() and "a note" in found.text()
    assert found.to_json()["version"] == 2


@pytest.mark.parametrize("changed", [{"version": 3}, {"format": "other"}, {"version": None}])
def test_a_record_of_another_kind_is_refused(changed):
    with pytest.raises(ValueError, match="accepted is 'rapid-record' up to version 2"):
        read({**record().to_json(), **changed})


@given(st.sets(st.integers(0, 99)))
def test_bit_sets_are_those_of_version_1(tokens):
    """The lowest bit of the first byte first, as `int.to_bytes` has it."""
    packed = pack(sorted(tokens), 100)
    number = sum(1 << token for token in tokens)
    assert base64.b64decode(packed) == number.to_bytes(13, "little")
    assert unpack(packed) == sorted(tokens)
