"""Compare: two pictures over each other, how near they are, and how long each took."""

from dataclasses import asdict
from typing import Any

from comfy_api.latest import io

from ..rapid_core.comparison import compare, difference, pairs, totals
from ..rapid_core.record import shown_seconds
from ..rapid_core.summary import as_summary
from .base import RapidNode
from .report import Record, saved

SHOWN = 16  # pairs of a batch that the page is given


class Compare(RapidNode):
    """Shows two pictures over each other, and measures how near they are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_Compare",
            display_name="RAPID Compare",
            category="RAPID",
            description="Shows two pictures over each other with a slider, such as the full one and the one "
            "that RAPID made, with both times, how near they are, and where they differ.",
            search_aliases=[
                "compare",
                "before after",
                "slider",
                "difference",
                "a/b",
                "blind test",
                "psnr",
                "ssim",
                "对比",
            ],
            inputs=[
                io.Image.Input(
                    "picture_a",
                    tooltip="The picture to compare with, such as the full one. Of a batch, each is compared "
                    "with its counterpart.",
                ),
                io.Image.Input(
                    "picture_b", tooltip="The other picture, of the same size, such as RAPID's."
                ),
                Record.Input(
                    "record_a",
                    optional=True,
                    tooltip="From the RAPID Report on picture_a's latent, for its time.",
                ),
                Record.Input(
                    "record_b",
                    optional=True,
                    tooltip="From the RAPID Report on picture_b's latent, for its time.",
                ),
                io.Boolean.Input(
                    "blind",
                    default=False,
                    optional=True,
                    tooltip="Do not tell which picture is which before you have said which is better. Votes "
                    "are counted in your browser.",
                ),
                io.Float.Input(
                    "amplify",
                    default=8.0,
                    min=1.0,
                    max=64.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="How many times differences are enlarged in the difference map. Higher shows "
                    "smaller ones.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="difference",
                    tooltip="Where the pictures differ, from dark blue (nowhere) to yellow.",
                ),
                io.String.Output(
                    display_name="comparison",
                    tooltip="Two lines: both times, and how near the pictures are.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, blind: Any = None, amplify: Any = None) -> bool | str:
        return cls.refusal(blind=blind, amplify=amplify)

    @classmethod
    def execute(cls, picture_a: Any, picture_b: Any, **given: Any) -> io.NodeOutput:
        values = cls.check(**given)
        try:
            a, b = pairs(picture_a, picture_b)
            records = [summary_of(given, name) for name in ("record_a", "record_b")]
        except ValueError as error:
            raise ValueError(f"RAPID Compare: {error}") from error
        found = compare(a, b)
        about = {
            **totals(found),
            "seconds_a": seconds_of(records[0]),
            "seconds_b": seconds_of(records[1]),
            "record_a": records[0],
            "record_b": records[1],
            "blind": values["blind"],
            "amplify": values["amplify"],
            "pairs": [{**asdict(pair), "swapped": pair.swapped} for pair in found],
        }
        where = difference(a, b, values["amplify"])
        said = words(about)
        shown = {
            "text": (said,),
            "rapid_compare": [about],
            "rapid_compare_a": saved(a[:SHOWN], "a"),
            "rapid_compare_b": saved(b[:SHOWN], "b"),
            "rapid_compare_difference": saved(where[:SHOWN], "difference"),
        }
        return io.NodeOutput(where, said, ui=shown)


def summary_of(given: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The few numbers of a record; None where none is connected. Raises ValueError."""
    if given.get(name) is None:
        return None
    try:
        return as_summary(given[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def seconds_of(record: dict[str, Any] | None) -> float | None:
    """Seconds of a run, where they are known."""
    return record["seconds"] or None if record else None


def words(about: dict[str, Any]) -> str:
    """A comparison in two lines."""
    a, b = about["seconds_a"], about["seconds_b"]
    lines = [] if a is None and b is None else [times(a, b)]
    near = [f"PSNR {about['psnr']:.1f} dB", f"SSIM {about['ssim']:.4f}"]
    near += [] if about["lpips"] is None else [f"LPIPS {about['lpips']:.4f}"]
    pictures = "the pictures are the same" if about["equal"] else ", ".join(near)
    lines.append(f"{pictures}: {about['verdict']}")
    return "\n".join(lines)


def times(a: float | None, b: float | None) -> str:
    """Both times in words."""
    known = [f"{name} took {shown_seconds(s)}" for name, s in (("A", a), ("B", b)) if s]
    faster = [f"{a / b:.2f}x as fast"] if a and b else []
    return "RAPID Compare: " + ", ".join([*known, *faster])
