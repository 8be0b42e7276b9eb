"""Why a run skipped next to nothing, with the number to set: for the report, out of its record."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from .quadrature.sigmas import step_weights
from .reasons import ReasonCode
from .record import RunRecord
from .types import Reason

SHORT = 8  # steps of a run in which there is little to gain, whatever was saved
LITTLE = 0.1  # share of the evaluations; a run that skipped less says why
GOAL = 1 / 3  # share of the evaluations that the advised threshold skips
# Those that are advised, of two digits; above 0.5 pictures would suffer.
THRESHOLDS = [d / 10**p for p in (4, 3, 2) for d in range(10, 100) if d <= 50 or p > 2]

# Notes that say why already.
SAID = {
    code.value
    for code in (
        ReasonCode.FEW_STEPS,
        ReasonCode.SAMPLER_ADDS_NOISE,
        ReasonCode.SAMPLER_SENSITIVE,
        ReasonCode.SIGMAS_RISE,
        ReasonCode.OTHER_SIGMAS,
        ReasonCode.PREDICTIONS_OFF,
        ReasonCode.LEARNS_NOW,
    )
}


def advice(record: RunRecord) -> list[Reason]:
    """What to say of what a finished run saved."""
    short = _short(record)
    # Which steps of a short run are always computed is no more than a part of that.
    little = [r for r in _little(record) if not (short and r.code == ReasonCode.LITTLE_FEW.value)]
    return [*short, *little]


def _short(record: RunRecord) -> list[Reason]:
    """That there is little to gain in a run of few steps, and what was done, where no note says it."""
    steps = len(record.sigmas) - 1
    acts = any(p.get("technique") in ("cache_reuse", "region_adaptive") for p in record.policies)
    said = SAID | {ReasonCode.SHORT_RUN.value}
    if not 0 < steps <= SHORT or not acts or not record.evaluations:
        return []
    if any(note.code in said for note in record.notes):
        return []
    full = sum(e.token_share == (1.0,) * len(e.modes) for e in record.evaluations)
    return [
        Reason(ReasonCode.LITTLE_SHORT, steps=steps, full=full, evaluations=len(record.evaluations))
    ]


def _little(record: RunRecord) -> list[Reason]:
    """Why a finished run of a policy that skips saved less than a tenth; nothing where it saved
    more, in whatever way, or where the record already says why."""
    totals = record.totals
    saved = totals["partial"] or any(e.sparse for e in record.evaluations)
    skipped = totals["skipped"] + totals["reused"]
    if not record.evaluations or saved or skipped >= LITTLE * totals["evaluations"]:
        return []
    reasons = sum(bool(e.reasons) for e in record.evaluations)
    if 2 * reasons > len(record.evaluations) or any(note.code in SAID for note in record.notes):
        return []
    policies = [p for p in record.policies if p.get("technique") in ("schedule", "cache_reuse")]
    if len(policies) != 1 or policies[0]["source"]:  # a file's numbers are not the user's
        return []
    if policies[0]["technique"] == "cache_reuse":
        return _of_threshold(record, policies[0])
    closeness = policies[0]["closeness"]  # any speed-up above 1 skips what it says
    return [] if closeness is None else [Reason(ReasonCode.LITTLE_CLOSENESS, closeness=closeness)]


def _of_threshold(record: RunRecord, policy: dict[str, Any]) -> list[Reason]:
    evaluations = len(record.evaluations)
    threshold = policy["threshold"]
    first = policy["prediction_order"] + 2
    few = [Reason(ReasonCode.LITTLE_FEW, steps=evaluations, first=first)]
    if evaluations - first < GOAL * evaluations:
        return few
    few = few if evaluations <= 3 * first else []
    errors = [x for e in record.evaluations for x in e.error_estimate if x is not None]
    if not errors:
        return few
    error = float(f"{median(errors):.2g}")
    needed = threshold_for(record, policy)
    if needed is None:
        return [*few, Reason(ReasonCode.LITTLE_ROUGH, error=error, threshold=threshold)]
    if needed > threshold:
        return [
            *few,
            Reason(ReasonCode.LITTLE_THRESHOLD, error=error, threshold=threshold, needed=needed),
        ]
    start, end = policy["start_percent"], policy["end_percent"]
    if (start, end) != (0.0, 1.0):
        return [*few, Reason(ReasonCode.LITTLE_WINDOW, start=start, end=end)]
    return [*few, Reason(ReasonCode.LITTLE_ROUGH, error=error, threshold=threshold)]


def threshold_for(record: RunRecord, policy: dict[str, Any], share: float = GOAL) -> float | None:
    """About the lowest reuse_threshold, of THRESHOLDS, at which Cache Reuse with these settings (as
    `ThresholdPolicy.to_record` has them) would have skipped this share of a run's evaluations; None
    where none does. The run computed nearly everything, so its estimates are of predictions from
    one evaluation to the next."""
    weights = step_weights(record.sigmas)
    wanted = share * sum(len(e.modes) for e in record.evaluations)
    costs = [
        [
            None if error is None else weights[e.step] * error
            for e in record.evaluations
            for error in (e.error_estimate[image],)
        ]
        for image in range(len(record.evaluations[0].modes))
    ]
    order, most = policy["prediction_order"], policy["max_consecutive"]
    for threshold in THRESHOLDS:
        if sum(_skipped(image, threshold, order, most) for image in costs) >= wanted:
            return threshold
    return None


def _skipped(costs: list[float | None], threshold: float, order: int, most: int) -> int:
    """Evaluations of one image that are skipped while what they cost adds up to less than a
    threshold. The error of a polynomial grows with the distance as its next term does."""
    skipped = in_a_row = 0
    total = 0.0
    for cost in costs:
        grown = math.comb(in_a_row + order + 1, order + 1)
        total += math.inf if cost is None else cost * grown
        if total < threshold and in_a_row < most:
            skipped, in_a_row = skipped + 1, in_a_row + 1
        else:
            in_a_row, total = 0, 0.0
    return skipped
