"""What to say of a run in which choosing tokens was of no use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...record import EvaluationRecord

CLOCKS = "raise error_threshold or keep_ratio, take more steps, or a sampler that adds no noise"
SHARE = "lower keep_ratio, warm_up or tail, raise refresh_interval, or take more steps"


def explain_no_savings(policy: Any, evaluations: Sequence[EvaluationRecord]) -> str | None:
    """Words for a run that computed every token in every evaluation without a reason given, and
    what to change."""
    if not evaluations or any(e.reasons or min(e.share) < 1 for e in evaluations):
        return None
    change = CLOCKS if getattr(policy, "error_threshold", 0.0) else SHARE
    return f"all tokens were computed in every evaluation: {change}"
