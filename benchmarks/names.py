"""Tables in Markdown out of rows: one place for names of methods and for how a number looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

MODELS = {"flux": "FLUX-like", "sd3": "SD3-like", "lumina": "Lumina-like"}
METHODS = {
    "dense": "full",
    "dense_noise1": "full, other noise",
    "dense_noise2": "full, other noise (2)",
    "dense_noise3": "full, other noise (3)",
    "dense_dpmpp_2m": "full, dpmpp_2m",
    "plan_solution": "**RAPID Accelerate, searched schedule**",
    "plan_dense": "RAPID Accelerate, schedule searched towards the full picture",
    "default_plan": "**RAPID Accelerate, no policy file**",
    "plus": "heads on the searched schedule (`rapid+`)",
    "plus_shuffled": "the same heads, decisions of other pictures",
    "pace_1": "heads on the searched schedule (`rapid+`), seed 50000",
    "pace_2": "heads on the searched schedule (`rapid+`), seed 60000",
    "full_3": "heads on schedules of their own, seed 70000",
    "plan_full-3-plan": "these schedules without heads",
    "rapid3": "RAPID3's heads",
    "rapid3_shuffled": "RAPID3's heads, decisions of other pictures",
    "easycache": "EasyCache",
    "lazycache": "LazyCache",
    "random": "as many evaluations, at random steps",
    "sparse": "**RAPID Sparse Attention, difference predicted**",
    "sparse_hold": "RAPID Sparse Attention, last difference",
    "sparse_means": "RAPID Sparse Attention, means",
    "sparse_dropped": "RAPID Sparse Attention, nothing stands in",
    "region_error": "**RAPID Region Adaptive, per-token error**",
    "region": "RAPID Region Adaptive, fixed share",
    "region_rounds": "tokens in turn, same schedule",
    "region_random": "random tokens, same schedule",
    "region_attention": "tokens by received attention, same schedule",
    "region_paper_equal": "published method (`paper`), at this cost",
    "region_paper": "published method (`paper`)",
    "cache_reuse": "**RAPID Cache Reuse**",
    "cache_reuse_unguarded": "RAPID Cache Reuse, no safety check",
    "fewer_steps": "fewer Euler steps",
    "fewer_euler": "fewer Euler steps",
    "fewer_dpmpp_2m": "fewer steps of dpmpp_2m",
    "fewer_res_multistep": "fewer steps of res_multistep",
    "fewer_uni_pc": "fewer steps of uni_pc",
    "fewer_heun": "fewer steps of heun",
    "region_error_dpmpp_2m": "RAPID Region Adaptive, per-token error, on dpmpp_2m",
    "cache_reuse_dpmpp_2m": "RAPID Cache Reuse, on dpmpp_2m",
}
TARGETS = {
    "region": {
        "1.0": "-",
        "0.5": "1/2 of the tokens",
        "0.25": "1/4 of the tokens",
        "headline": "3/16, 6 full evaluations",
    },
    "policy": {"1.0": "-", "1.1x": "1.1x", "2x": "2x", "2.8x": "2.8x", "3x": "3x", "4x": "4x"},
    "sparse": {"1.0": "-", "0.5": "0.5", "0.25": "0.25", "0.125": "0.125"},
    "demo": {"half": "half"},
}


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    cell: Callable[[Row], str]


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A number with so many digits, or "-" for none."""
    if value is None:
        return "-"
    rounded = round(value, digits) or 0.0  # no sign on a zero
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}"


def interval(value: float | None, ci: Iterable[float] | None, sign: bool = False) -> str:
    """A mean in dB with its 95 % interval."""
    if value is None or ci is None:
        return number(value, sign=sign)
    low, high = ci
    return f"{number(value, sign=sign)} ({number(low, sign=sign)} to {number(high, sign=sign)})"


def figure(title: str, name: str, digits: int = 1) -> Column:
    """A column of one number of the row."""
    return Column(title, lambda row: number(row.get(name), digits))


def text(title: str, name: str) -> Column:
    """A column of one text of the row."""
    return Column(title, lambda row: str(row[name]))


def table(columns: list[Column], rows: Iterable[Row]) -> str:
    """The rows as a table."""
    lines = [[column.title for column in columns], ["---"] * len(columns)]
    lines += [[column.cell(row) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows of quality by target, then by method, as METHODS and TARGETS have them."""
    methods = list(METHODS)

    def place(row: Row) -> tuple[int, int]:
        return list(TARGETS[row["suite"]]).index(row["target"]), methods.index(row["method"])

    return sorted(rows, key=place)
