"""What a record says, by the codes of its reasons."""

from __future__ import annotations

from typing import Any


def codes(record: Any) -> set[str]:
    """Codes of all notes and of what was computed for a reason."""
    reasons = [reason for e in record.evaluations for reason in e.reasons]
    return {reason.code for reason in (*record.notes, *reasons)}


def the_note(record: Any, code: str) -> Any:
    """The one note of this code."""
    (note,) = [note for note in record.notes if note.code == code]
    return note


def the_reason(record: Any, code: str) -> Any:
    """The one reason of this code that evaluations were computed for."""
    (reason,) = {reason for e in record.evaluations for reason in e.reasons if reason.code == code}
    return reason
