"""Table of Region Adaptive's seconds."""

from __future__ import annotations

from benchmarks.names import MODELS
from benchmarks.results.files import load
from evaluation.tables import Column, Row, figure, number, table


def region_clock() -> str:
    """Seconds by share of tokens."""

    def share(row: Row) -> str:
        found = "3/16" if row["share"] == 0.1875 else f"1/{1 / row['share']:.0f}"
        return f"{found}, `paper`" if row.get("preset") == "paper" else found

    def sized(row: Row) -> str:
        size = row.get("pixels", 1024)
        where = "" if size == 1024 else f", {size} px"
        return f"{MODELS[row['model']]}, {row['steps']} steps{where}"

    def full_run(row: Row) -> str:
        return number(sum(row["full_seconds"]) / len(row["full_seconds"]), 0)

    columns = [
        Column("model", sized),
        Column("share of tokens", share),
        Column("full run, s", full_run),
        figure("seconds", "seconds", 0),
        figure("measured speed-up", "speedup_measured", 2),
        figure("theoretical speed-up", "speedup_theoretical", 2),
        figure("measured / theoretical", "of_theoretical", 2),
        figure("keys and values, MiB", "mebibytes", 0),
    ]
    return table(columns, load("region_clock"))
