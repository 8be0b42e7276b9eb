"""Tables of the host's model classes."""

from __future__ import annotations

from benchmarks.results.files import load, read_json
from evaluation.tables import Column, Row, table

ROUNDING = 1e-5  # of the largest value: no more than other orders of sums make
PICTURES = 1e-3  # the same of whole pictures, after all steps
NOT_KNOWN = ("blocks_unknown", "unknown_to_region")


def host_of_models() -> str:
    """The release of ComfyUI that the classes are of."""
    return read_json("models")["host"]


def host_models(*kinds: str, blocks: bool = True) -> str:
    """What every node does on model classes of these kinds. blocks: with the nodes that act inside
    of the model."""
    columns = [
        Column("models", lambda row: row["known_as"]),
        Column("ComfyUI's class", lambda row: f"`{row['class']}`"),
        Column("RAPID Accelerate skips", lambda row: acted(row, "accelerate", "skipped")),
        Column("Cache Reuse skips", lambda row: acted(row, "skip", "skipped")),
    ]
    if blocks:
        columns += [
            Column("Cache Reuse reuses blocks", lambda row: acted(row, "reuse", "reused")),
            Column("Region Adaptive, some tokens", lambda row: acted(row, "region", "partial")),
            Column("Sparse Attention", lambda row: acted(row, "sparse", "sparse")),
        ]
    columns += [
        Column("batch of 2", lambda row: equal(row, "batch")),
        Column("prompts in one call and in two", lambda row: equal(row, "cfg")),
        Column("not exercised", lambda row: row["note"] or "-"),
    ]
    return table(columns, (row for row in load("models") if row["kind"] in kinds))


def acted(row: Row, node: str, count: str) -> str:
    """What a node did on a class, or why nothing."""
    found = row.get(node)
    if found is None:
        return f"not built: {row['error']}"
    if "error" in found:
        return f"**{found['error']}**"
    if not found.get(count):
        reason = found["reason"]
        return "not known" if reason["code"] in NOT_KNOWN else f"full: {reason['text']}"
    exact = "" if "exact" not in found else f", exact to {found['exact']:.0e}"
    if found.get("exact", 0.0) < ROUNDING:
        exact = exact and ", exact"
    return f"{found[count]} of {found['evaluations']}{exact}"


def equal(row: Row, name: str) -> str:
    """Whether a batch, or calls that were joined, gave what single ones give; a difference beside
    that of the host's own full run."""
    found = row.get(name)
    if found is None:
        return "-"
    if "error" in found:
        return f"**{found['error']}**"
    if "host" in found:
        return f"ComfyUI: {found['host'].split(': ', 1)[-1]}"
    if not found.get("same_decisions", True):
        return "**other decisions**"
    if found["accelerate"] < PICTURES:
        return "equal"
    return f"differs by {found['accelerate']:.0e}, in full by {found['full']:.0e}"
