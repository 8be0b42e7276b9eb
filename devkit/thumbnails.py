"""Pictures of templates in the page's list: what a demo model drew, in full and with RAPID; a card
for a model whose pictures this repository has none of. And how screenshots are made small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = (600, 344)  # pixels; the page shows about half of that
INK, PAPER, QUIET = "#f4f1fb", "#2d2a3b", "#aaa3c4"
ON, OFF = "#ffd75e", "#4d4570"  # a step that is computed, one that is skipped


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters that come with the drawing library."""
    return ImageFont.load_default(size)


def cells(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], computed: list[bool]) -> None:
    """One cell a step across a box (left, top, right, bottom): computed or skipped."""
    left, top, right, bottom = box
    wide = (right - left) / len(computed)
    for i, full in enumerate(computed):
        place = (left + i * wide + 1, top, left + (i + 1) * wide - 2, bottom)
        pen.rectangle(place, fill=ON if full else OFF)


def card(name: str, lines: tuple[str, ...], computed: list[bool] | None = None) -> Image.Image:
    """A name and a few words, with a strip of steps below them where there is one."""
    picture = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(picture)
    size = 66
    while pen.textlength(name, font=font(size)) > SIZE[0] - 64:
        size -= 2
    pen.text((32, 92), name, font=font(size), fill=INK, anchor="ls")
    for i, line in enumerate(lines):
        pen.text((32, 150 + 46 * i), line, font=font(34), fill=QUIET, anchor="ls")
    if computed:
        cells(pen, (32, 268, SIZE[0] - 32, 308), computed)
    return picture


def pair(left: Image.Image, right: Image.Image, words: Sequence[str]) -> Image.Image:
    """Two pictures side by side, each with a few words below it."""
    picture = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(picture)
    half, high = SIZE[0] // 2, SIZE[1] - 52
    for i, (one, said) in enumerate(zip((left, right), words, strict=True)):
        side = min(half - 8, high - 8)
        shown = one.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        picture.paste(shown, (i * half + (half - side) // 2, 6 + (high - 8 - side) // 2))
        pen.text((i * half + half // 2, SIZE[1] - 16), said, font=font(30), fill=INK, anchor="ms")
    return picture


def shrink(path: Path) -> None:
    """Store a screenshot (PNG) with the 256 colours that come nearest, which shows no difference
    and takes a third."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(
            256,
            method=Image.Quantize.MAXCOVERAGE,  # others drop the colours of what is small
            kmeans=3,
            dither=Image.Dither.NONE,
        )
    few.save(path, optimize=True)
