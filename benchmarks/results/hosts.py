"""Tables of the host's releases."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.names import RELEASES, TOPICS
from benchmarks.results.files import load
from evaluation.tables import Column, Row, table, text


def hosts() -> list[Row]:
    """One row a ComfyUI, with what became of every topic; releases that nobody has run, too."""
    rows = {row["host"]: row for row in load("hosts")}
    nothing = [{"host": name, "why": None, "topics": {}} for name in RELEASES if name not in rows]
    found = [*rows.values(), *nothing]
    return sorted(found, key=lambda row: version_key(row["host"]))


def version_key(name: str) -> tuple:
    """Releases by their numbers, folders after them."""
    version, *rest = name.split(" ")
    return len(rest), [int(part) if part.isdigit() else 0 for part in version.split(".")], name


def host_runs() -> str:
    """What was run of each ComfyUI, when and on what."""

    def total(row: Row, count: Callable[[Row], int]) -> int:
        return sum(count(topic) for topic in row["topics"].values())

    def dates(row: Row) -> str:
        found = sorted({topic["date"] for topic in row["topics"].values()})
        return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else "-"

    def run_of(row: Row) -> str:
        return f"{len(row['topics'])} of {len(TOPICS)}"

    columns = [
        text("ComfyUI", "host"),
        Column("topics that were run", run_of),
        Column("passed", lambda row: str(total(row, lambda topic: topic["passed"]))),
        Column("skipped", lambda row: str(total(row, lambda t: sum(t["skipped"].values())))),
        Column("failed", lambda row: str(total(row, lambda topic: len(topic["failed"])))),
        Column("when", dates),
        Column("PyTorch", lambda row: row.get("torch", "-")),
        Column("Python", lambda row: row.get("python", "-")),
        Column("what is to be said", lambda row: in_a_cell(row["why"] or "-")),
    ]
    return table(columns, hosts())


def host_topics() -> str:
    """What became of every topic on every ComfyUI."""
    columns = [Column("tests", lambda row: row["title"])]
    columns += [
        Column(found["host"], lambda row, found=found: outcome(found, row["name"]))
        for found in hosts()
    ]
    rows = ({"name": name, "title": title} for name, title in TOPICS.items())
    return table(columns, rows)


def outcome(host: Row, name: str) -> str:
    """What became of a topic on a ComfyUI."""
    topic = host["topics"].get(name)
    if topic is None:
        return "not run"
    passed, failed, missing = topic["passed"], len(topic["failed"]), topic["missing"]
    skipped = sum(topic["skipped"].values())
    parts = [f"**{failed} failed**"] if failed else []
    parts += [f"{passed} passed"] if passed else []
    if skipped:
        reasons = list(topic["skipped"])
        why = in_a_cell(reasons[0]) if len(reasons) == 1 else f"{len(reasons)} reasons, see below"
        parts.append(f"{skipped} skipped ({why})")
    parts += [f"**{missing} without an outcome**"] if missing else []
    return ", ".join(parts)


def host_skipped() -> str:
    """Why tests were skipped."""
    return listed(
        "skipped",
        text("skipped", "value"),
        Column("why", lambda row: in_a_cell(row["key"])),
    )


def host_failed() -> str:
    """Tests that failed, and what they said."""
    return listed(
        "failed",
        Column("test", lambda row: f"`{in_a_cell(row['key'])}`"),
        Column("what it said", lambda row: in_a_cell(row["value"])),
    )


def listed(of: str, *columns: Column) -> str:
    """What topics have under `of`, one row a key and its value."""
    rows = [
        {"host": row["host"], "topic": name, "key": key, "value": value}
        for row in hosts()
        for name, topic in in_topics(row)
        for key, value in topic[of].items()
    ]
    where = [text("ComfyUI", "host"), Column("tests", lambda row: TOPICS[row["topic"]])]
    return table([*where, *columns], rows) if rows else "None of those that were run."


def in_topics(host: Row) -> list[tuple[str, Row]]:
    """Topics of a ComfyUI that were run, in the order in which they are shown."""
    return [(name, host["topics"][name]) for name in TOPICS if name in host["topics"]]


def in_a_cell(words: str) -> str:
    """Words that a test or an error said, as a cell of a table can hold them."""
    return " ".join(words.split()).replace("|", "\\|")
