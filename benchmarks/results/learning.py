"""Tables of what is learned of a model."""

from __future__ import annotations

import json
from collections.abc import Callable

from benchmarks.names import MODELS
from benchmarks.results.files import FOLDER, load
from evaluation.tables import Column, Row, interval, number, table

LEARNED = {
    "learned_0": "nothing (as it comes)",
    "learned_1": "the first picture",
    "learned_2": "two pictures",
    "learned_4": "four pictures",
    "fours_2": "four others",
    "fours_3": "four others",
    "fours_4": "four others",
    "learned_8": "eight pictures",
    "calibrated_few": "RAPID Calibrate, few",
    "calibrated_normal": "RAPID Calibrate, normal",
    "calibrated_long": "RAPID Calibrate, long",
    "prior_flux": "eight pictures of the FLUX-like model",
    "prior_sd3": "eight pictures of the SD3-like model",
    "prior_lumina": "eight pictures of the Lumina-like model",
    "even": "nothing, evenly spaced steps",
}

PLACES = {
    "wide": "384 x 256 px",
    "large": "512 x 512 px",
    "cfg_4": "cfg 4",
    "beta": "scheduler `beta`",
}  # suites of `benchmarks.learn.transfer`


def nearer(gain: Row) -> str:
    """How much nearer pictures come, in dB with the interval."""
    if gain.get("same_plan"):
        return "same steps"
    return interval(gain["difference"], gain["ci"], sign=True)


def learned(of: str) -> str:
    """How much nearer pictures come after so much was learned, towards what each aim has."""
    data = json.loads((FOLDER / "learn.json").read_text(encoding="utf-8"))
    found = [r for r in data["rows"] if r["model"] == of and r["suite"] == "learn"]
    drawn = data["machine"]["full_pictures"][of]
    rows = {(r["method"], r["target"]): r for r in found}
    gains = {
        (r["method"], r["target"]): r
        for r in load("learn_differences")
        if r["model"] == of and r["suite"] == "learn"
    }
    targets = list(dict.fromkeys(r["target"] for r in found if r["method"] == "learned_0"))

    def decibels(target: str) -> Callable[[Row], str]:
        name = "psnr_ode" if target.endswith("best") else "psnr"

        def cell(row: Row) -> str:
            key = (row["method"], target)
            if row["method"] == "learned_0":
                return number(rows[key][name])
            if key not in gains:
                return "-"
            return nearer(gains[key])

        return cell

    columns = [
        Column("learned from", lambda row: LEARNED[row["method"]]),
        Column("drawn for it, in full pictures", lambda row: number(drawn.get(row["method"], 0))),
        *(Column(f"{target} picture, dB", decibels(target)) for target in targets),
    ]
    there = {r["method"] for r in found}
    return table(columns, ({"method": name} for name in LEARNED if name in there))


def transferred() -> str:
    """How much nearer pictures come elsewhere by what was learned in the usual place."""
    gains = {
        (r["model"], r["suite"], r["target"]): r
        for r in load("learn_differences")
        if r["suite"] in PLACES
    }
    targets = sorted({target for *_, target in gains}, key=lambda t: (t[0], t.endswith("best")))
    drawn = {(model, place): r["prompts"] for (model, place, _), r in gains.items()}

    def decibels(target: str) -> Callable[[Row], str]:
        return lambda row: nearer(gains[row["model"], row["place"], target])

    columns = [
        Column("model", lambda row: MODELS[row["model"]]),
        Column("used at", lambda row: PLACES[row["place"]]),
        Column("prompts", lambda row: str(drawn[row["model"], row["place"]])),
        *(Column(f"{target} picture, dB", decibels(target)) for target in targets),
    ]
    there = [(model, place) for model in MODELS for place in PLACES if (model, place) in drawn]
    return table(columns, ({"model": model, "place": place} for model, place in there))
