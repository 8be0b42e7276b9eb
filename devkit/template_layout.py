"""Where the nodes of a template lie: in groups, columns from left to right, with room for the wires.

Wires go from a column to the next, or along a lane that is left free above or below the columns in
between. `problems` finds what is wrong with a layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TITLE = 30  # pixels of a node's title, which lies above its position
GAP = 28  # between two nodes of a column; a node that says an error in Nodes 2.0 gets 24 higher
BETWEEN = 36  # between two columns, where wires bend
PAD = 10  # between a group's edge and its nodes
HEAD = 36  # of a group's title
APART = 20  # between two groups
LINE, BREAK = 15, 9  # pixels of a note's line, and of what is free above a paragraph or an item
LETTER = 6  # of a letter of it, with its share of the margins

# The page opens a template from its list so that the nodes take three quarters of the window, and
# LiteGraph draws no text below a scale of READABLE. Hence narrow columns and little space between.
WINDOW = (1440, 900)  # pixels of a common one, all of which the graph lies behind
SHARE, EDGE = 0.75, 10  # of the window; pixels of the graph around the nodes
READABLE = 8 / 14  # 8 pixels of the node's font, whose size is 14 (the setting MinFontSizeForLOD)

# Heights of kinds of nodes as pages give them: the larger one of LiteGraph's and Nodes 2.0's, with
# what they show after a run. tests/browser/test_examples.py compares. RAPID Accelerate and Region
# Adaptive have room for the advanced inputs that Nodes 2.0 unfolds, which then take 382 and 494
# pixels, together with what is free between their group and the one below.
HEIGHTS = {
    "BasicScheduler": 118,
    "CFGNorm": 114,
    "CLIPLoader": 114,
    "CLIPTextEncode": 140,
    "CLIPTextEncodeLumina2": 140,
    "CheckpointLoaderSimple": 126,
    "ConditioningZeroOut": 34,
    "CreateVideo": 110,
    "DualCLIPLoader": 142,
    "EmptyFlux2LatentImage": 118,
    "EmptyHunyuanLatentVideo": 146,
    "EmptyLTXVLatentVideo": 146,
    "EmptyLatentImage": 118,
    "EmptySD3LatentImage": 118,
    "Flux2Scheduler": 118,
    "FluxGuidance": 62,
    "FluxKontextImageScale": 34,
    "KSampler": 262,
    "KSamplerAdvanced": 334,
    "KSamplerSelect": 62,
    "LTXAVTextEncoderLoader": 114,
    "LTXVAudioVAEDecode": 54,
    "LTXVAudioVAELoader": 86,
    "LTXVConcatAVLatent": 54,
    "LTXVConditioning": 82,
    "LTXVEmptyLatentAudio": 118,
    "LTXVScheduler": 198,
    "LTXVSeparateAVLatent": 54,
    "LoadImage": 352,
    "MarkdownNote": 300,
    "ModelSamplingAuraFlow": 62,
    "ModelSamplingSD3": 62,
    "PreviewAny": 150,
    "PreviewImage": 400,
    "PrimitiveInt": 82,
    "RAPIDDemoPrompt": 184,
    "RAPID_Accelerate": 322,
    "RAPID_Calibrate": 400,
    "RAPID_Compare": 640,
    "RAPID_LoadLuminaNext": 194,
    "RAPID_LoadLuminaNextText": 110,
    "RAPID_LoadPolicy": 106,
    "RAPID_RegionAdaptive": 434,
    "RAPID_Report": 400,
    "ReferenceLatent": 54,
    "SamplerCustom": 242,
    "SaveImage": 360,
    "SaveVideo": 360,
    "TextEncodeQwenImageEditPlus": 182,
    "UNETLoader": 86,
    "VAEDecode": 54,
    "VAEEncode": 54,
    "VAELoader": 86,
}
WITH_MAP = 660  # of a report that shows which tokens were computed
NARROWEST = 225  # pixels of a node in Nodes 2.0
# At the least what LiteGraph makes of the longest title.
WIDTHS = {
    "CLIPLoader": 270,
    "CLIPTextEncode": 284,
    "CLIPTextEncodeLumina2": 344,
    "CheckpointLoaderSimple": 284,
    "DualCLIPLoader": 284,
    "KSampler": 230,
    "KSamplerAdvanced": 270,
    "LTXAVTextEncoderLoader": 284,
    "LoadImage": 324,
    "MarkdownNote": 284,
    "ModelSamplingSD3": 260,
    "PreviewAny": 284,
    "PreviewImage": 380,
    "RAPIDDemoPrompt": 284,
    "RAPID_Accelerate": 270,
    "RAPID_Calibrate": 300,
    "RAPID_Compare": 380,
    "RAPID_LoadLuminaNext": 300,
    "RAPID_LoadLuminaNextText": 300,
    "RAPID_LoadPolicy": 284,
    "RAPID_RegionAdaptive": 284,
    "RAPID_Report": 300,
    "SaveImage": 280,
    "SaveVideo": 280,
    "TextEncodeQwenImageEditPlus": 376,
    "UNETLoader": 270,
}
FREE = {
    "CLIPTextEncode",
    "CLIPTextEncodeLumina2",
    "LoadImage",
    "MarkdownNote",
    "PreviewAny",
    "PreviewImage",
    "RAPIDDemoPrompt",
    "SaveImage",
    "SaveVideo",
    "TextEncodeQwenImageEditPlus",
}
# Kinds that take whatever height they are given.


Columns = tuple[tuple[str | float, ...], ...]
"""Of a group, from left to right; in each the nodes from top to bottom by their names in the API
twin, and pixels that are left free."""


@dataclass(frozen=True)
class Group:
    """Nodes with a frame around them."""

    title: str
    columns: Columns
    top: float = 0.0
    """Where its frame begins, or lower where the group above it ends."""
    before: float = 0.0
    """Pixels more to the left of its column, for wires that bend far."""
    color: str = "#3f789e"
    widths: Mapping[str, float] = field(default_factory=dict)
    """Of nodes that are not as wide as their kind."""
    heights: Mapping[str, float] = field(default_factory=dict)
    """Of nodes that are not as high as their kind, which takes whatever height it is given."""


Block = tuple[Group, ...]
"""Groups from top to bottom, of one width."""


def names_in(column: tuple[str | float, ...]) -> list[str]:
    """The nodes of a column."""
    return [entry for entry in column if isinstance(entry, str)]


def column_places(
    column: tuple[str | float, ...], top: float, heights: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    """(node, y) of a column whose first title begins at `top`."""
    y = top
    for entry in column:
        if not isinstance(entry, str):
            y += entry
            continue
        yield entry, y + TITLE
        y += TITLE + heights[entry] + GAP


def arrange(
    workflow: dict[str, Any], blocks: tuple[Block, ...], ids: Mapping[str, int]
) -> dict[str, Any]:
    """Put the nodes of a UI workflow in their places, and frames around them. ids: of nodes by the
    names that groups know them by. Every node has to be in one group."""
    nodes = {name: _node(workflow, number) for name, number in ids.items()}
    groups = [group for block in blocks for group in block]
    named = [name for group in groups for column in group.columns for name in names_in(column)]
    if sorted(named) != sorted(nodes):
        odd = sorted({*named} ^ {*nodes}) or sorted({n for n in named if named.count(n) > 1})
        raise ValueError(f"every node has to be in one group, which is not so of {', '.join(odd)}")
    wide: dict[str, float] = {n: WIDTHS.get(node["type"], NARROWEST) for n, node in nodes.items()}
    for group in groups:
        wide.update(group.widths)
    workflow["groups"] = []
    x = 0.0
    for block in blocks:
        x += max(group.before for group in block)
        columns = [column_widths(group, wide) for group in block]
        inside = max(map(row_width, columns))
        for group, widths in zip(block, columns, strict=True):
            widths[-1] += inside - row_width(widths)  # groups of a block are of one width
            for column, width in zip(group.columns, widths, strict=True):
                for name in names_in(column):
                    _resize(nodes[name], width, group.heights.get(name))
        high = heights_of(workflow)
        heights = {name: high[node["id"]] for name, node in nodes.items()}
        y = 0.0
        for group, widths in zip(block, columns, strict=True):
            y = max(y, group.top)
            bottom, left = y + HEAD, x + PAD
            for column, width in zip(group.columns, widths, strict=True):
                for name, place in column_places(column, y + HEAD, heights):
                    nodes[name]["pos"] = [left, place]
                    bottom = max(bottom, place + heights[name])
                left += width + BETWEEN
            frame = [x, y, inside + 2 * PAD, bottom + PAD - y]
            workflow["groups"].append(_frame(len(workflow["groups"]) + 1, group, frame))
            y += frame[3] + APART
        x += inside + 2 * PAD + BETWEEN
    return workflow


def column_widths(group: Group, wide: Mapping[str, float]) -> list[float]:
    """Of a group's columns: of each its widest node's, or a wire from a narrow node would run behind
    a wide one."""
    return [max(wide[name] for name in names_in(column)) for column in group.columns]


def row_width(widths: list[float]) -> float:
    """Of columns beside each other."""
    return sum(widths) + BETWEEN * (len(widths) - 1)


def _resize(node: dict[str, Any], width: float, height: float | None) -> None:
    """Give a node a width, and a height where it takes any; None is its kind's."""
    kind = node["type"]
    if kind == "MarkdownNote" and height is None:
        height = _note_height(node["widgets_values"][0], width)
    node["size"] = [width, (height or HEIGHTS[kind]) if kind in FREE else node["size"][1]]


def heights_of(workflow: dict[str, Any]) -> dict[int, float]:
    """How high every node gets at the most, without its title, by id."""
    kinds = {node["type"] for node in workflow["nodes"]}
    found = {}
    for node in workflow["nodes"]:
        kind, height = node["type"], node["size"][1]
        found[node["id"]] = height if kind in FREE else max(height, HEIGHTS[kind])
        if kind == "RAPID_Report" and "RAPID_RegionAdaptive" in kinds:
            found[node["id"]] = WITH_MAP
    return found


def _note_height(text: str, width: float) -> float:
    """What a note of some width needs, about; a letter of Chinese is as wide as two."""
    shown = re.sub(r"\]\([^)]*\)", "]", text)
    paragraphs = [line for line in shown.split("\n") if line]
    wide = [sum(2 if ord(c) > 0x2E80 else 1 for c in one) for one in paragraphs]
    letters = int(width / LETTER)
    return 50 + sum(BREAK + LINE * -(-length // letters) for length in wide)


def _node(workflow: dict[str, Any], number: int) -> dict[str, Any]:
    return next(node for node in workflow["nodes"] if node["id"] == number)


def _frame(number: int, group: Group, bounding: list[float]) -> dict[str, Any]:
    return {
        "id": number,
        "title": group.title,
        "bounding": bounding,
        "color": group.color,
        "font_size": 24,
        "flags": {},
    }


@dataclass(frozen=True)
class Box:
    """A rectangle on the graph, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: Box, margin: float = 0.0) -> bool:
        """Whether two rectangles share a point, or lie nearer than a margin."""
        return (
            self.left < other.right + margin
            and other.left < self.right + margin
            and self.top < other.bottom + margin
            and other.top < self.bottom + margin
        )

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )

    def has(self, x: float, y: float) -> bool:
        """Whether a point lies inside."""
        return self.left < x < self.right and self.top < y < self.bottom


@dataclass(frozen=True)
class Wire:
    """A link between two nodes, with the places of its ends."""

    source: int
    target: int
    start: tuple[float, float]
    end: tuple[float, float]

    def points(self, number: int = 80) -> Iterator[tuple[float, float]]:
        """Along the curve that LiteGraph draws: cubic, with handles of a quarter of the distance,
        level at both ends."""
        (x0, y0), (x3, y3) = self.start, self.end
        reach = ((x3 - x0) ** 2 + (y3 - y0) ** 2) ** 0.5 / 4
        for i in range(number + 1):
            t = i / number
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
            yield a * x0 + b * (x0 + reach) + c * (x3 - reach) + d * x3, (a + b) * y0 + (c + d) * y3


def boxes_of(workflow: dict[str, Any]) -> dict[int, Box]:
    """What every node covers at the most, with its title, by id."""
    found, heights = {}, heights_of(workflow)
    for node in workflow["nodes"]:
        (x, y), width = node["pos"], node["size"][0]
        found[node["id"]] = Box(x, y - TITLE, x + width, y + heights[node["id"]])
    return found


def frame_of(group: dict[str, Any]) -> Box:
    """A group's frame."""
    x, y, width, height = group["bounding"]
    return Box(x, y, x + width, y + height)


def opening_scale(workflow: dict[str, Any], window: tuple[int, int] = WINDOW) -> float:
    """At which the page opens a template from its list, in a window of some width and height: by the
    nodes' sizes as they are saved, without groups."""
    nodes = workflow["nodes"]
    left, top = (min(node["pos"][k] for node in nodes) for k in (0, 1))
    right, bottom = (max(node["pos"][k] + node["size"][k] for node in nodes) for k in (0, 1))
    width, height = right - left + 2 * EDGE, bottom - top + TITLE + 2 * EDGE
    return SHARE * min(window[0] / width, window[1] / height)


def wires_of(workflow: dict[str, Any]) -> list[Wire]:
    """All links, with their ends where LiteGraph has them."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    wires = []
    for _, source, output, target, slot, _ in workflow["links"]:
        (sx, sy), (tx, ty) = nodes[source]["pos"], nodes[target]["pos"]
        start = (sx + nodes[source]["size"][0], sy + 20 * (output + 0.7))
        wires.append(Wire(source, target, start, (tx, ty + 20 * (slot + 0.7))))
    return wires


def problems(
    boxes: Mapping[int, Box], wires: list[Wire], groups: Mapping[str, Box], names: Mapping[int, str]
) -> list[str]:
    """All that is wrong with how a graph lies on the page."""
    found = []
    numbers = sorted(boxes)
    for i, one in enumerate(numbers):
        found += [
            f"{names[one]} overlaps {names[other]}"
            for other in numbers[i + 1 :]
            if boxes[one].touches(boxes[other])
        ]
        frames = [title for title, frame in groups.items() if frame.touches(boxes[one])]
        if len(frames) != 1 or not groups[frames[0]].holds(boxes[one]):
            found.append(f"{names[one]} lies in {len(frames)} groups, or not wholly in one")
    for wire in wires:
        ends = f"{names[wire.source]} -> {names[wire.target]}"
        if wire.start[0] >= wire.end[0]:
            found.append(f"the wire {ends} runs from right to left")
        behind = {
            names[number]
            for number, box in boxes.items()
            if number not in (wire.source, wire.target)
            and any(box.has(x, y) for x, y in wire.points())
        }
        found += [f"the wire {ends} runs behind {name}" for name in sorted(behind)]
    titles = list(groups)
    for i, one in enumerate(titles):
        found += [
            f"group {one} overlaps group {other}"
            for other in titles[i + 1 :]
            if groups[one].touches(groups[other])
        ]
    return found
