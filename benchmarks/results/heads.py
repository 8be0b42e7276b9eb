"""Tables of trained heads."""

from __future__ import annotations

from benchmarks.names import MODELS
from benchmarks.results.files import load
from evaluation.tables import Column, Row, figure, number, table, text


def heads_trained() -> str:
    """Heads that begin with a searched schedule."""

    def psnr(row: Row) -> str:
        figures = ", ".join(number(value) for value in row["psnr"] or [])
        return f"the schedule's: {figures}" if figures else "the schedule's"

    columns = [
        Column("heads", lambda row: f"{MODELS[row['model']]}, {row['what']}"),
        text("seed", "seed"),
        text("updates", "updates"),
        text("held-out prompts", "prompts"),
        Column("speed-ups", lambda row: ", ".join(f"{budget}x" for budget in row["budgets"])),
        Column("dB to the converged solution", psnr),
    ]
    return table(columns, load("heads_trained"))


def heads_ablations() -> str:
    """RAPID3's heads under other rewards, and by themselves."""
    columns = [
        text("heads", "heads"),
        text("reward", "reward"),
        Column("discriminator", lambda row: "yes" if row["discriminator"] else "no"),
        Column("equivalent steps", lambda row: f"{row['equivalent_steps']:g}"),
        figure("dB to the converged solution", "psnr"),
    ]
    return table(columns, load("heads_ablations"))
