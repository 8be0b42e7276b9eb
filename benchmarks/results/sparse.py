"""Tables of sparse attention."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.names import MODELS
from benchmarks.results.files import load
from evaluation.tables import Column, Row, number, table, text


def sparse_mass() -> str:
    """Attention mass by selection."""
    selections = {
        "RAPID": "ours",
        "best possible": "oracle",
        "local window": "window",
        "random tiles": "random",
    }
    rows: dict[tuple, Row] = {}
    for row in load("sparse_mass"):
        case = (row["model"], -row["tile"], -row["size"], -row["density"])
        rows.setdefault(case, dict(row))[row["selection"]] = row

    def mass(selection: str) -> Callable[[Row], str]:
        return lambda row: number(row[selection]["mass"], 3)

    def of_best(row: Row) -> str:
        ours = row["ours"]
        return f"{number(ours['of_oracle'], 3)}, {number(ours['worst_of_oracle'], 3)}"

    columns = [
        Column("model, size", lambda row: f"{MODELS[row['model']]}, {row['size']} px"),
        text("tile", "tile"),
        text("density", "density"),
        *(Column(title, mass(selection)) for title, selection in selections.items()),
        Column("RAPID of best: mean, worst", of_best),
    ]
    return table(columns, (rows[case] for case in sorted(rows)))


def sparse_clock() -> str:
    """Speed-ups of single attentions."""
    stands_in = {
        "nothing stands in": "none",
        "means": "means",
        "difference predicted": "predict",
    }
    rows: dict[tuple, Row] = {}
    for row in load("sparse_clock"):
        if row["backend"] == "gather":
            case = (-row["tokens"], row["head_size"], -row["density"])
            rows.setdefault(case, dict(row))[row["compensation"]] = row

    def speedup(kind: str) -> Callable[[Row], str]:
        return lambda row: number(row[kind]["speedup_measured"], 2)

    columns = [
        Column("image tokens", lambda row: f"{row['tokens']:,}"),
        text("heads of", "head_size"),
        text("density", "density"),
        *(Column(title, speedup(kind)) for title, kind in stands_in.items()),
    ]
    return table(columns, (rows[case] for case in sorted(rows)))
