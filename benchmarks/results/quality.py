"""Tables of how near pictures come: rows of suites, and paired differences."""

from __future__ import annotations

from benchmarks.names import METHODS, MODELS, TARGETS, in_order
from benchmarks.results.files import load
from evaluation.tables import Column, Row, figure, interval, number, table, text


def model(row: Row) -> str:
    """A model's name."""
    return MODELS[row["model"]]


def target(row: Row) -> str:
    """The budget that a row was made for."""
    return TARGETS[row["suite"]][row["target"]]


def method(row: Row) -> str:
    """A method's name."""
    return METHODS[row["method"]]


def to_full(row: Row) -> str:
    """PSNR to the full picture with its interval, where the row has one."""
    if row["ci"] is None:
        return "equal" if row["method"] != "full" and row["equal"] == row["prompts"] else "-"
    return interval(row["psnr"], row["ci"])


def worst(row: Row) -> str:
    """The worst picture, where any differs from the full one."""
    return number(row["psnr_worst"] if row["ci"] else None)


def fifth(row: Row) -> str:
    """The 5th percentile, where any picture differs from the full one."""
    return number(row["psnr_p5"] if row["ci"] else None)


CONVERGED = figure("to the converged picture", "psnr_ode")

QUALITY = [
    Column("method", method),
    text("prompts", "prompts"),
    figure("cost", "cost", 2),
    figure("computed", "computed"),
    Column("to the full picture", to_full),
    Column("5th percentile", fifth),
    Column("worst", worst),
    CONVERGED,
    figure("accuracy", "accuracy", 3),
    figure("FID", "fid", 3),
]


def quality(name: str, of: str, costs: tuple[str, ...] = (), suite: str = "") -> str:
    """A file's rows of the model `of`. costs: files of the same rows, costed as other models; suite:
    of the rows, where the file has several."""
    columns = [Column("target", target), *QUALITY]
    columns[4:4] = [cost_as(cost) for cost in costs]
    rows = (row for row in load(name) if row["model"] == of and suite in ("", row["suite"]))
    return table(columns, in_order(rows))


def cost_as(name: str) -> Column:
    """The cost of the same decisions on another model."""
    costs = {(r["model"], r["target"], r["method"]): r["cost"] for r in load(f"sparse_{name}")}
    return Column(
        f"cost as {name}",
        lambda row: number(costs[row["model"], row["target"], row["method"]], 2),
    )


def differences(suite: str, of: str) -> str:
    """Paired differences on the model `of`."""
    goals = {"full": "the full picture", "converged": "the converged picture"}
    columns = [
        Column("target", target),
        Column("method", method),
        Column("against", lambda row: METHODS[row["against"]]),
        Column("nearer to", lambda row: goals[row["to"]]),
        text("prompts", "prompts"),
        Column("difference, dB", lambda row: interval(row["difference"], row["ci"], sign=True)),
    ]
    found = (row for name in ("differences", "dial_differences") for row in load(name))
    rows = [r for r in found if (r["suite"], r["model"]) == (suite, of)]
    return table(columns, in_order(rows))
