"""README's table: about half of the evaluations."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.names import MODELS
from benchmarks.results.files import load
from evaluation.tables import Column, Row, number, table, text

# A name, and on each model the method at 2x, or the full run.
FIVE = (
    ("the full run itself, with all steps", "full", "full"),
    ("**RAPID Accelerate**, `speedup` 2", "full_picture", "full_picture"),
    ("**RAPID Accelerate**, `speedup` 2, `aim` best picture", "best_picture", "best_picture"),
    ("no pack, half of the steps with euler", "fewer_euler", "fewer_euler"),
    ("no pack, half of the steps with dpmpp_2m", "fewer_dpmpp_2m", "fewer_dpmpp_2m"),
    ("ComfyUI's EasyCache (FLUX-like), LazyCache (SD3-like)", "easycache", "lazycache"),
)


def five_rows() -> str:
    """About half of the evaluations, both models."""

    def decibels(of: str, place: int, name: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            method = row["methods"][place]
            target = "1.0" if method == "full" else "2x"
            (found,) = (
                r
                for r in load("dial")
                if (r["suite"], r["model"], r["method"], r["target"])
                == ("dial_speed", of, method, target)
            )
            return "-" if found[name] is None else f"{number(found[name])} dB"

        return cell

    columns = [
        text("about half of the evaluations", "name"),
        *(
            Column(f"{MODELS[of]}: to the {goal} picture", decibels(of, place, name))
            for place, of in enumerate(("flux", "sd3"))
            for goal, name in (("full", "psnr"), ("converged", "psnr_ode"))
        ),
    ]
    return table(columns, ({"name": name, "methods": methods} for name, *methods in FIVE))
