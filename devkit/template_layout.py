"""Where the nodes of a template lie: in groups, columns from left to right, with room for the wires.

Wires go from a column to the next, or along a lane that is left free above or below the columns in
between. `problems` finds what is wrong with a layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

TITLE = 30  # pixels of a node's title, which lies above its position
GAP = 36  # between two nodes of a column
BETWEEN = 60  # between two columns, where wires bend
PAD = 20  # between a group's edge and its nodes
HEAD = 44  # of a group's title
APART = 40  # between two groups
LINE, LETTERS = 18, 54  # pixels of a note's line, and how many letters it has

# Heights of kinds of nodes as pages give them: the larger one of LiteGraph's and Nodes 2.0's, with
# what they show during and after a run. tests/browser/test_examples.py compares.
HEIGHTS = {
    "BasicScheduler": 142,
    "CFGNorm": 114,
    "CLIPLoader": 138,
    "CLIPTextEncode": 224,
    "CLIPTextEncodeLumina2": 224,
    "CheckpointLoaderSimple": 126,
    "ConditioningZeroOut": 58,
    "CreateVideo": 134,
    "DualCLIPLoader": 166,
    "EmptyFlux2LatentImage": 142,
    "EmptyHunyuanLatentVideo": 170,
    "EmptyLTXVLatentVideo": 170,
    "EmptyLatentImage": 142,
    "EmptySD3LatentImage": 142,
    "Flux2Scheduler": 142,
    "FluxGuidance": 86,
    "FluxKontextImageScale": 58,
    "KSampler": 286,
    "KSamplerAdvanced": 358,
    "KSamplerSelect": 86,
    "LTXAVTextEncoderLoader": 138,
    "LTXVAudioVAEDecode": 78,
    "LTXVAudioVAELoader": 110,
    "LTXVConcatAVLatent": 78,
    "LTXVConditioning": 106,
    "LTXVEmptyLatentAudio": 142,
    "LTXVScheduler": 178,
    "LTXVSeparateAVLatent": 78,
    "LoadImage": 400,
    "MarkdownNote": 360,
    "ModelSamplingAuraFlow": 86,
    "ModelSamplingSD3": 86,
    "PreviewAny": 300,
    "PreviewImage": 400,
    "PrimitiveInt": 110,
    "RAPIDDemoPrompt": 260,
    "RAPID_Accelerate": 380,
    "RAPID_Calibrate": 400,
    "RAPID_Compare": 720,
    "RAPID_LoadLuminaNext": 154,
    "RAPID_LoadLuminaNextText": 134,
    "RAPID_LoadPolicy": 130,
    "RAPID_RegionAdaptive": 480,
    "RAPID_Report": 400,
    "ReferenceLatent": 78,
    "SamplerCustom": 254,
    "SaveImage": 400,
    "SaveVideo": 400,
    "TextEncodeQwenImageEditPlus": 224,
    "UNETLoader": 110,
    "VAEDecode": 78,
    "VAEEncode": 78,
    "VAELoader": 110,
}
WITH_MAP = 660  # of a report that shows which tokens were computed
NARROWEST = 225  # pixels of a node in Nodes 2.0
SIDE = 420  # pixels; what stands at the left is as wide as the note above or below it
WIDTHS = {
    "CLIPLoader": SIDE,
    "CheckpointLoaderSimple": SIDE,
    "DualCLIPLoader": SIDE,
    "LTXAVTextEncoderLoader": SIDE,
    "LoadImage": SIDE,
    "MarkdownNote": SIDE,
    "RAPIDDemoPrompt": SIDE,
    "RAPID_LoadLuminaNext": SIDE,
    "RAPID_LoadPolicy": SIDE,
    "UNETLoader": SIDE,
    "CLIPTextEncode": 380,
    "PreviewAny": 380,
    "PreviewImage": 420,
    "RAPID_Accelerate": 300,
    "RAPID_Compare": 480,
    "RAPID_Report": 380,
    "SaveImage": 340,
    "SaveVideo": 340,
}
FREE = {"SaveImage", "SaveVideo", "PreviewAny", "PreviewImage", "LoadImage", "MarkdownNote"}
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


Block = tuple[Group, ...]
"""Groups from top to bottom."""


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
    named = [entry for block in blocks for group in block for c in group.columns for entry in c]
    named = [entry for entry in named if isinstance(entry, str)]
    if sorted(named) != sorted(nodes):
        odd = sorted({*named} ^ {*nodes}) or sorted({n for n in named if named.count(n) > 1})
        raise ValueError(f"every node has to be in one group, which is not so of {', '.join(odd)}")
    heights, widths = {}, {}
    high = heights_of(workflow)
    for name, node in nodes.items():
        width, height = node["size"]
        widths[name] = max(width, WIDTHS.get(node["type"], NARROWEST))
        heights[name] = high[node["id"]]
        node["size"] = [widths[name], heights[name] if node["type"] in FREE else height]
    workflow["groups"] = []
    x = 0.0
    for block in blocks:
        x += max(group.before for group in block)
        y, width = 0.0, 0.0
        for group in block:
            y = max(y, group.top)
            right, bottom, left = x + PAD, y + HEAD, x + PAD
            for column in group.columns:
                left = right if column is group.columns[0] else right + BETWEEN
                # of one width, or a wire from a narrow node would run behind a wide one
                wide = max(widths[name] for name in column if isinstance(name, str))
                right = left + wide
                for name, place in column_places(column, y + HEAD, heights):
                    nodes[name]["pos"] = [left, place]
                    nodes[name]["size"][0] = wide
                    bottom = max(bottom, place + heights[name])
            frame = [x, y, right + PAD - x, bottom + PAD - y]
            workflow["groups"].append(_frame(len(workflow["groups"]) + 1, group, frame))
            width = max(width, frame[2])
            y += frame[3] + APART
        x += width + BETWEEN
    return workflow


def heights_of(workflow: dict[str, Any]) -> dict[int, float]:
    """How high every node gets at the most, without its title, by id."""
    kinds = {node["type"] for node in workflow["nodes"]}
    found = {}
    for node in workflow["nodes"]:
        kind, height = node["type"], node["size"][1]
        found[node["id"]] = HEIGHTS[kind] if kind in FREE else max(height, HEIGHTS[kind])
        if kind == "RAPID_Report" and "RAPID_RegionAdaptive" in kinds:
            found[node["id"]] = WITH_MAP
        if kind == "MarkdownNote":
            found[node["id"]] = max(HEIGHTS[kind], _lines(node["widgets_values"][0]) * LINE + 40)
    return found


def _lines(text: str) -> int:
    """Lines that a note takes, about; a letter of Chinese is as wide as two."""
    shown = re.sub(r"\]\([^)]*\)", "]", text)
    wide = [sum(2 if ord(c) > 0x2E80 else 1 for c in line) for line in shown.split("\n")]
    return sum(max(1, -(-length // LETTERS)) for length in wide)


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
