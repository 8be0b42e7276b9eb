"""The few numbers of a run that a person or an API client asks for first, out of its record."""

from __future__ import annotations

import json
from typing import Any

from .reasons import ReasonCode, text
from .record import FORMAT as RECORD
from .record import RunRecord, read

FORMAT = "rapid-summary"
VERSION = 1

# Notes that say how things were done; all others are warnings.
NEWS = {
    code.value
    for code in (
        ReasonCode.LEARNS_NOW,
        ReasonCode.LEARNED,
        ReasonCode.LEARNED_NEARBY,
        ReasonCode.POLICY_FOUND,
        ReasonCode.POLICY_GIVEN,
        ReasonCode.MASK_SCALED,
        ReasonCode.KV_MEMORY,
        ReasonCode.RESIDUAL_MEMORY,
        ReasonCode.FEATURES_MEMORY,
    )
}
COUNTS = ("evaluations", "computed", "partial", "reused", "skipped")
FIGURES = (
    "seconds_full",
    "speedup_theoretical",
    "speedup_measured",
    "closeness",
    "closeness_worst",
    "verdict",
)


def summary(record: RunRecord) -> dict[str, Any]:
    """Plain numbers and strings; what is not known is None. `seconds_saved`: against about what the
    full run would have taken. `warnings`: English sentences, each once."""
    totals = record.totals
    full = totals["seconds_full"]
    reasons = dict.fromkeys(reason for e in record.evaluations for reason in e.reasons)
    warned = [note for note in record.notes if note.code not in NEWS]
    speedup = totals["speedup_theoretical"]
    return {
        "format": FORMAT,
        "version": VERSION,
        "status": record.status,
        "full": False,
        **{name: totals[name] for name in COUNTS},
        "seconds": totals["seconds"],
        "seconds_saved": None if full is None else round(full - totals["seconds"], 4),
        **{name: totals[name] for name in FIGURES},
        "speedup_theoretical": None if speedup is None else round(speedup, 3),
        "warnings": list(dict.fromkeys(map(text, (*reasons, *warned)))),
    }


def full_summary(seconds: float, steps: int) -> dict[str, Any]:
    """The same of a run that no RAPID node had a part in."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "status": "finished",
        "full": True,
        **dict.fromkeys(COUNTS, 0),
        "evaluations": steps,
        "computed": steps,
        "seconds": round(seconds, 4),
        "seconds_saved": 0.0,
        **dict.fromkeys(FIGURES),
        "seconds_full": round(seconds, 4),
        "speedup_theoretical": 1.0,
        "speedup_measured": 1.0,
        "warnings": [],
    }


def as_summary(given: Any) -> dict[str, Any]:
    """A summary, or that of a record; either as plain data or as text in JSON. Raises ValueError for
    anything else, and for versions that are newer than this one."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            given = None
    if not isinstance(given, dict) or given.get("format") not in (FORMAT, RECORD):
        raise ValueError(
            "something else than a record was given; accepted is the record of RAPID Report, or its "
            f"JSON ({FORMAT!r} or {RECORD!r})"
        )
    try:
        if given["format"] == RECORD:
            return summary(read(given))
        if given["version"] != VERSION:
            raise ValueError(
                f"a summary of version {given['version']!r} was given; accepted is version {VERSION}. "
                "Update RAPID to read newer ones."
            )
        return {**full_summary(0.0, 0), **given, "seconds": float(given["seconds"])}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"a damaged record was given ({type(error).__name__}: {error}); accepted is what RAPID "
            "Report gives"
        ) from error
