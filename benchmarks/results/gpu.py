"""Tables of what a card would hold and compute."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.results.files import read_json
from evaluation.tables import Column, Row, number, table, text

GPU_KINDS = {"run": "all tokens", "some of the tokens": "half of the tokens", "reuse": "reuse"}


def announced() -> list[Row]:
    """Cases of models of real sizes, as they were counted on fake tensors."""
    return [{**m, **case} for m in read_json("gpu_announced")["rows"] for case in m["cases"]]


def gpu_memory() -> str:
    """What is held on the device beside the full run, beside what was announced."""

    def mebibytes(name: str) -> Callable[[Row], str]:
        return lambda row: number(row[name] / 2**20)

    def ratio(row: Row) -> str:
        return number(row["announced"] / row["held"] if row["held"] else None, 2)

    columns = [
        text("model", "title"),
        text("what", "case"),
        Column("announced, MiB", mebibytes("announced")),
        Column("in memory, MiB", mebibytes("held")),
        Column("announced / in memory", ratio),
    ]
    return table(columns, (row for row in announced() if "failed" not in row))


def gpu_flops() -> str:
    """FLOPs of one evaluation, beside what torch counts."""

    def teraflops(name: str) -> Callable[[Row], str]:
        return lambda row: number(None if row[name] is None else row[name] / 1e12, 2)

    def ratio(row: Row) -> str:
        return number(row["cost"] / row["counted"] if row["cost"] else None, 4)

    def billions(row: Row) -> str:
        return number(row["parameters"] / 1e9 if "parameters" in row else None)

    columns = [
        text("model", "title"),
        Column("parameters, 10^9", billions),
        Column("what", lambda row: GPU_KINDS[row["kind"]]),
        Column("counted by torch, 10^12", teraflops("counted")),
        Column("by the pack, 10^12", teraflops("cost")),
        Column("pack / torch", ratio),
    ]
    rows: dict[tuple, Row] = {}
    for case in announced():
        for found in case.get("flops", ()):
            rows.setdefault((case["model"], found["kind"]), {**case, **found})
    return table(columns, rows.values())
