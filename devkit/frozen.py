"""`dev.py frozen`: whether the pack draws what it drew at another revision, and decides the same.

Pictures are compared bit by bit, by hashes of their latents. Of the records every number is
compared that a run decides or measures; words for people and seconds may differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devkit.base_folder import REPOSITORY
from devkit.cache import SetupError
from devkit.quiet_process import QuietProcess
from devkit.server import script_environment

if TYPE_CHECKING:
    import argparse

    from devkit.cli import Ground

MENDS = REPOSITORY / "tests" / "rapid_testing" / "frozen_mends.json"
# Keys of an evaluation: the word of version 1, and today's.
RENAMED = {
    "levels": "modes",
    "share": "token_share",
    "dense_cost": "full_cost",
    "error": "error_estimate",
    "measured": "measured_error",
    "measures": "measured_density",
}
# The same for the values of `modes`.
MODES = {"hold": "skip"}
COMPARED = (
    "modes",
    "token_share",
    "cost",
    "full_cost",
    "error_estimate",
    "measured_error",
    "sigma",
    "occurrence",
    "density",
    "measured_density",
    "tokens",
)
# What version 1 has not: compared where both sides have it.
ADDED = ("step", "sigmas")
NOT_COMPARED = ("index", "reasons", "seconds")


@dataclass
class Comparison:
    """What two sets of runs have in common."""

    equal: int = 0
    failed_twice: list[str] = field(default_factory=list)
    """Names of runs that failed with both states."""
    differences: dict[str, str] = field(default_factory=dict)
    """What differs first, by name of a run."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Keys of records that nobody has said how to compare, each with the side that has it."""


def frozen(ground: Ground, options: argparse.Namespace) -> int:
    """Make the runs with both states of the pack, and compare them; 1 where one differs that is
    not among the mends."""
    mends = json.loads(MENDS.read_text(encoding="utf-8"))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapid-frozen-")))
        before = stack.enter_context(worktree(options.against, folder / "revision"))
        packs = {"old": before, "new": REPOSITORY}
        made = make_runs(ground, packs, folder, options.only)
    found = compare(made["old"], made["new"])
    print(report(found, mends, options.against), flush=True)
    return 1 if unexplained(found, mends) or not made["new"] else 0


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """The revision's files in a folder of their own, until the end of the block."""
    git(["worktree", "add", "--detach", "--quiet", str(folder), revision], revision)
    try:
        yield folder
    finally:
        git(["worktree", "remove", "--force", str(folder)], revision)


def git(arguments: list[str], revision: str) -> None:
    """Run git in the repository, and say in one line what it could not do."""
    try:
        ended = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
    except OSError:
        raise SetupError("git is not installed; frozen needs it for the older revision") from None
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or ["no output"]
        raise SetupError(f"git cannot provide {revision}: {lines[-1]}")


def make_runs(
    ground: Ground, packs: dict[str, Path], folder: Path, only: str
) -> dict[str, dict[str, Any]]:
    """What rapid_testing.frozen, as it is now, says of each state of the pack; beside each other
    where there is a core for each."""
    environment = script_environment(ground.tree, threads=1)
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    files = {name: folder / f"{name}.json" for name in packs}
    processes = {}
    for name, pack in packs.items():
        command = [str(ground.python), "-m", "rapid_testing.frozen", "--pack", str(pack)]
        command += ["--out", str(files[name]), "--only", only]
        processes[name] = QuietProcess(command, REPOSITORY, environment)
    at_once = (os.cpu_count() or 1) > 1
    with ExitStack() as stack:
        if at_once:
            for process in processes.values():
                stack.enter_context(process)
        for name, process in processes.items():
            print(f"== runs of the {name} state", flush=True)
            if not at_once:
                stack.enter_context(process)
            if process.show() != 0:
                raise SetupError(f"the runs of the {name} state ended before they were done")
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}


def compare(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    """Compare two sets of runs by name."""
    found = Comparison()
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            found.differences[name] = f"made by the {'new' if name in new else 'old'} set only"
        elif "error" in old[name] and "error" in new[name]:
            found.failed_twice.append(name)
        else:
            difference = first_difference(old[name], new[name], found.unknown)
            if difference:
                found.differences[name] = difference
            else:
                found.equal += 1
    return found


def first_difference(old: dict[str, Any], new: dict[str, Any], unknown: dict[str, str]) -> str:
    """What differs first between two runs; empty where nothing does. Unknown keys are noted."""
    for side, run in (("old", old), ("new", new)):
        if "error" in run:
            return f"fails on the {side} side only: {run['error']}"
    rows = [evaluations(run, side, unknown) for side, run in (("old", old), ("new", new))]
    in_records = _first_of_records(*rows)
    same = old["latent"] == new["latent"]
    if not same and in_records:
        return f"latent; {in_records}"
    return in_records if same else "latent (the records are equal)"


def evaluations(run: dict[str, Any], side: str, unknown: dict[str, str]) -> list[dict] | None:
    """The evaluations of a run's record in today's words; None where it has no record."""
    if run["record"] is None:
        return None
    rows = [in_todays_words(evaluation) for evaluation in run["record"]["evaluations"]]
    for key in {key for row in rows for key in row}.difference(COMPARED, ADDED, NOT_COMPARED):
        unknown.setdefault(key, side)
    return rows


def in_todays_words(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation of a record with older words replaced."""
    row = {RENAMED.get(key, key): value for key, value in evaluation.items()}
    if "modes" in row:
        row["modes"] = [MODES.get(mode, mode) for mode in map(str.lower, row["modes"])]
    return row


def _first_of_records(old: list[dict] | None, new: list[dict] | None) -> str:
    """What differs first between the evaluations of two records."""
    if old is None or new is None:
        return "" if old is new else f"no record on the {'old' if old is None else 'new'} side"
    if len(old) != len(new):
        return f"{len(old)} evaluations, now {len(new)}"
    for number, (before, after) in enumerate(zip(old, new, strict=True), start=1):
        shared = [key for key in ADDED if key in before and key in after]
        for key in (*COMPARED, *shared):
            if (key in before) != (key in after):
                side = "new" if key in before else "old"
                return f"evaluation {number}: {key} is missing on the {side} side"
            if before.get(key) != after.get(key):
                return f"evaluation {number}: {key} was {before[key]}, is {after[key]}"
    return ""


def reason_for(name: str, mends: dict[str, str]) -> str | None:
    """Why a run may differ; None where nothing says so. mends: reasons by pattern of names."""
    return next((why for pattern, why in mends.items() if fnmatchcase(name, pattern)), None)


def unexplained(found: Comparison, mends: dict[str, str]) -> list[str]:
    """Runs that differ and may not."""
    return [name for name in found.differences if reason_for(name, mends) is None]


def report(found: Comparison, mends: dict[str, str], against: str) -> str:
    """The comparison in a few lines for people."""
    lines = [f"{found.equal} runs are equal to those of {against}"]
    if found.failed_twice:
        names = "; ".join(found.failed_twice)
        lines.append(f"{len(found.failed_twice)} runs fail with both states: {names}")
    for key, side in sorted(found.unknown.items()):
        lines.append(f"records of the {side} side have {key!r}, which nobody compares")
    wrong = unexplained(found, mends)
    mended = {name: why for name, why in found.differences.items() if name not in wrong}
    if mended:
        lines.append(f"{len(mended)} runs differ because a defect was mended:")
        lines += [f"  {name}: {what} ({reason_for(name, mends)})" for name, what in mended.items()]
    if wrong:
        lines.append(f"{len(wrong)} runs differ without a reason in {MENDS.name}:")
        lines += [f"  {name}: {found.differences[name]}" for name in wrong]
    return "\n".join(lines)
