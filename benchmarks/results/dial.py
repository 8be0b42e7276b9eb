"""Tables of RAPID Accelerate: its curve, mode quality, few steps, every sampler, seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from benchmarks.dial.curve import TOLERANCE
from benchmarks.names import MODELS
from benchmarks.results.files import FOLDER, load, read_json
from benchmarks.results.quality import CONVERGED, to_full, worst
from evaluation.tables import Column, Row, figure, interval, number, table, text


def curve(of: str) -> str:
    """Some places of the curve of every sampler, and where it is not monotone."""
    shown = (1.2, 1.5, 2.0, 3.0, 4.0, 6.0)
    data = read_json(f"curve-{of}")
    rows: dict[str, Row] = {}
    for point in data["points"]:
        row = rows.setdefault(point["sampler"], {"sampler": point["sampler"]})
        row[f"{point['speedup']:g}x"] = point

    def place(speedup: float) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            point = row[f"{speedup:g}x"]
            return ", ".join(number(point[name]) for name in ("mean", "worst"))

        return cell

    def rises(name: str) -> Callable[[Row], str]:
        """Where pictures come nearest again at a higher speed-up, and how often they do."""

        def cell(row: Row) -> str:
            points = [p for p in data["points"] if p["sampler"] == row["sampler"]]
            behind = [
                (high[name] - low[name], low["speedup"], high["speedup"])
                for low, high in itertools.combinations(points, 2)
                if high[name] - low[name] > TOLERANCE
            ]
            if not behind:
                return "none"
            by, low, high = max(behind)
            number_of = len({speedup for _, speedup, _ in behind})
            return f"{number_of} of {len(points)}, {by:.1f} dB most ({low:g}x, {high:g}x)"

        return cell

    columns = [
        text("sampler", "sampler"),
        *(Column(f"{speedup:g}x", place(speedup)) for speedup in shown),
        Column("behind a higher speed-up in the mean", rises("mean")),
        Column("in the worst picture", rises("worst")),
    ]
    return table(columns, rows.values())


def quality_mode(of: str) -> str:
    """What mode quality gives of what is asked."""
    rows = []
    for path in sorted(FOLDER.glob(f"quality-{of}-*.json"), reverse=True):
        data = read_json(path.stem)
        rows += [{**row, "size": data["size"]} for row in data["rows"]]

    def range_of(row: Row) -> str:
        low, high = row["computed_range"]
        return f"{number(row['computed'])} ({low:.0f} to {high:.0f})"

    columns = [
        Column("size", lambda row: f"{row['size']} px"),
        text("sampler", "sampler"),
        Column("asked for", lambda row: f"{row['asked']} dB"),
        text("prompts", "prompts"),
        Column("computed of 28", range_of),
        figure("mean", "psnr"),
        figure("5th percentile", "psnr_p5"),
        figure("worst", "psnr_worst"),
        Column("at most 2 dB below", lambda row: f"{row['kept']:.0%}"),
        figure("5th percentile, mode speed with as many computed", "speed_p5"),
    ]
    return table(columns, rows)


def few(of: str) -> str:
    """One and two skipped evaluations in runs of few steps."""
    names = {
        "as_it_comes": "`speedup` 2 as it comes",
        "full_picture": "skipped and predicted (`even_so`)",
        "best_picture": "the same, `aim` best picture",
        "fewer_euler": "as many fewer Euler steps",
    }
    rows = [
        {**row, "steps": int(row["suite"].rsplit("_", 1)[1])}
        for row in load("dial_few")
        if row["model"] == of and row["method"] in names
    ]
    columns = [
        text("steps", "steps"),
        Column("skipped", lambda row: row["target"].removesuffix(" skipped")),
        Column("method", lambda row: names[row["method"]]),
        text("prompts", "prompts"),
        figure("computed", "computed"),
        Column("to the full picture", to_full),
        Column("worst", worst),
        CONVERGED,
    ]
    order = list(names)
    return table(
        columns, sorted(rows, key=lambda r: (r["steps"], r["target"], order.index(r["method"])))
    )


def samplers(of: str) -> str:
    """Every sampler of the host with RAPID Accelerate as it comes, on the model `of`."""

    def how_many(row: Row) -> str:
        if row["error"] is not None:
            return "-"
        return f"{number(row['computed'])} of {number(row['evaluations'])}"

    def near(row: Row) -> str:
        return "equal" if row["equal"] == row["prompts"] else number(row["psnr"])

    columns = [
        text("sampler", "sampler"),
        Column("computed", how_many),
        Column("to its own full picture", lambda row: "-" if row["error"] else near(row)),
        figure("worst", "psnr_worst"),
        Column(
            "beside as few steps, dB",
            lambda row: interval(row.get("difference"), row.get("difference_ci"), sign=True),
        ),
        Column("what the report says", lambda row: row["error"] or row["reason"] or "-"),
    ]
    return table(columns, (row for row in load("samplers") if row["model"] == of))


def accelerate_clock() -> str:
    """Seconds by speed-up, on models that are compute-bound."""
    columns = [
        Column("model", lambda row: f"{MODELS[row['model']]}, {row['steps']} steps"),
        Column("speed-up asked for", lambda row: f"{row['speedup_asked']:g}x"),
        figure("seconds", "seconds"),
        figure("measured speed-up", "speedup_measured", 2),
        figure("theoretical speed-up", "speedup_theoretical", 2),
        figure("measured / theoretical", "of_theoretical", 2),
    ]
    return table(columns, load("accelerate_clock"))
