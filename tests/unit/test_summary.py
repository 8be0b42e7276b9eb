"""The few numbers of a run, and what is read as such."""

import json
from dataclasses import replace

import pytest

from rapid_core.reasons import ReasonCode
from rapid_core.record import EvaluationRecord, RunRecord
from rapid_core.summary import as_summary, full_summary, summary
from rapid_core.types import Reason


def record(*modes, seconds=5.0, **changes):
    evaluations = tuple(
        EvaluationRecord(
            index=i,
            sigma=1.0 - i / 10,
            occurrence=0,
            modes=(mode,),
            token_share=(float(mode == "run"),),
            cost=(10.0 * (mode == "run"),),
            full_cost=(10.0,),
            error_estimate=(None,),
            measured_error=(None,),
            seconds=2.0 if mode == "run" else 0.1,
        )
        for i, mode in enumerate(modes)
    )
    made = RunRecord(
        "euler", "flux", (1, 16, 8, 8), (1.0, 0.0), (), evaluations, seconds=seconds, bytes=0
    )
    return replace(made, **changes)


def test_a_summary_has_the_few_numbers_as_plain_json():
    made = summary(record("run", "run", "skip", "run", "skip", closeness=(43.2,)))
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert (made["seconds"], made["seconds_full"], made["seconds_saved"]) == (5.0, 10.0, 5.0)
    assert (made["evaluations"], made["computed"], made["skipped"]) == (5, 3, 2)
    assert (made["speedup_theoretical"], made["speedup_measured"]) == (1.667, 2.0)
    assert (made["closeness"], made["verdict"], made["full"]) == (43.2, "good", False)
    assert made["warnings"] == [] and made["status"] == "finished"


def test_warnings_are_what_went_otherwise_and_not_the_news():
    reasons = (Reason(ReasonCode.CONTEXT_WINDOWS),)
    made = record("run", "run")
    evaluations = tuple(replace(e, reasons=reasons) for e in made.evaluations)
    notes = (Reason(ReasonCode.LEARNED, pictures=3), Reason(ReasonCode.AR_VIDEO))
    said = summary(replace(made, evaluations=evaluations, notes=notes))["warnings"]
    assert said == [
        "context windows are computed in full",
        "the sampler ar_video keeps keys and values of every call: all are computed",
    ]


def test_what_is_not_known_is_null():
    made = summary(record())
    assert made["seconds_full"] is made["seconds_saved"] is made["closeness"] is None
    assert made["speedup_theoretical"] is made["verdict"] is None


def test_a_full_run_has_the_same_keys():
    made = full_summary(3.2, 28)
    assert list(made) == list(summary(record()))
    assert made["full"] is True and made["seconds"] == made["seconds_full"] == 3.2
    assert made["computed"] == made["evaluations"] == 28 and made["skipped"] == 0


def test_a_summary_is_read_out_of_a_record_and_out_of_text():
    made = record("run", "skip")
    wanted = summary(made)
    for given in (wanted, json.dumps(wanted), made.to_json(), json.dumps(made.to_json())):
        assert as_summary(given) == wanted


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("not json", "something else than a record was given"),
        (3, "something else than a record was given"),
        ([1], "something else than a record was given"),
        ({"format": "other"}, "something else than a record was given"),
        ({**full_summary(1.0, 2), "version": 9}, "summary of version 9 was given"),
        ({"format": "rapid-summary", "version": 1}, "a damaged record was given"),
        ({**full_summary(1.0, 2), "seconds": None}, "a damaged record was given"),
        ({**record().to_json(), "version": 9}, "version 9 was given"),
        ({"format": "rapid-record", "version": 2}, "a damaged record was given"),
    ],
)
def test_anything_else_is_refused_with_what_is_accepted(given, words):
    with pytest.raises(ValueError, match=words):
        as_summary(given)
