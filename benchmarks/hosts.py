"""The integration tests on releases of ComfyUI, oldest first, and on any folder with one.

    python3 dev.py bench hosts [--hosts 0.16.3 ...] [--host-tree FOLDER ...] [--topics safety ...]

What became of every test is kept in `<out>/hosts.json` when a process of tests has ended, or was
interrupted (Ctrl-C), and the tables of docs/results are made anew. Run it again, and what is there is
left alone: only tests that failed are run again, and topics that did not come to their end;
`--again` runs all of it again. A topic is a file of tests. Tests that are for the newest release alone
(marked main_host) are left out on every one. A folder that asks for more than the environment has is
given as --comfyui, too (before `hosts`), and has an environment of its own.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.names import RELEASES, TOPICS
from benchmarks.results.hosts import version_key
from devkit.base_folder import REPOSITORY
from devkit.cache import SetupError, cache_root, exclusive
from devkit.environment import Environment, check_requirements
from devkit.hosts import check_user_tree, provide_host, version_of
from devkit.server import script_environment
from evaluation.files import write_text

TESTS = "tests/integration"
UNREAD = "(reading the file)"
Topic = dict[str, Any]
"""What became of a file of tests: `passed` and `failed` and `skipped` (tests by what they said), `missing` (tests
without an outcome), `seconds`, `date`."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI to be tested: a release by its version, or a folder."""

    version: str
    folder: Path | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.version if self.folder is None else f"{self.version} (folder)"

    def tree(self) -> Path:
        """Where it is; a release is fetched. Raises SetupError where it cannot be had."""
        cache = cache_root()
        environment = Environment(Path(sys.prefix))
        if self.folder is not None:
            check_requirements(environment, self.folder, f"--comfyui {self.folder}")
            return self.folder
        with exclusive(cache / "setup.lock", print):
            log = cache / "environments" / "downloader.log"
            return provide_host(self.version, cache, environment.python, log)


def topic_of(test: str) -> str:
    """The topic of a test's id or file."""
    return Path(test.split("::")[0]).stem.removeprefix("test_")


def read_outcomes(lines: list[str]) -> tuple[dict[str, Topic], dict[str, str]]:
    """Topics, as tests wrote their outcomes down (rapid_testing.outcomes); and files that could not be read, by
    topic. A line that was cut off by the end of the process is passed over."""
    last: dict[str, dict[str, Any]] = {}
    expected: Counter[str] = Counter()
    unread: dict[str, str] = {}
    for line in lines:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "collected" in found:
            expected.update({topic_of(file): n for file, n in found["collected"].items()})
        elif "file" in found:
            unread[topic_of(found["file"])] = found["why"]
        elif found["outcome"] == "failed" or found["test"] not in last:
            last[found["test"]] = found  # cleaning up may fail after a test has passed
    topics = {name: empty() for name in expected}
    for test, found in last.items():
        topic = topics[topic_of(test)]
        topic["seconds"] = round(topic["seconds"] + found["seconds"], 1)
        if found["outcome"] == "passed":
            topic["passed"] += 1
        elif found["outcome"] == "skipped":
            topic["skipped"][found["why"]] = topic["skipped"].get(found["why"], 0) + 1
        else:
            topic["failed"][test.split("::", 1)[1]] = found["why"]
    for name, topic in topics.items():
        known = topic["passed"] + len(topic["failed"]) + sum(topic["skipped"].values())
        topic["missing"] = expected[name] - known
    return topics, unread


def empty() -> Topic:
    """A topic of which nothing was run."""
    today = datetime.date.today().isoformat()
    return {"passed": 0, "failed": {}, "skipped": {}, "missing": 0, "seconds": 0.0, "date": today}


def pending(row: dict[str, Any], topics: list[str]) -> list[str]:
    """Topics of a row that are still to be run: new ones, and those with tests that failed or have no
    outcome."""
    known = row["topics"]
    return [
        name
        for name in topics
        if name not in known or known[name]["failed"] or known[name]["missing"]
    ]


def targets(row: dict[str, Any], name: str) -> list[str]:
    """What pytest is given for a topic: the tests that failed where all others are known, or its file."""
    file = f"{TESTS}/test_{name}.py"
    known = row["topics"].get(name)
    if known is None or known["missing"] or not known["failed"] or UNREAD in known["failed"]:
        return [file]
    return [f"{file}::{test}" for test in known["failed"]]


def merged(known: Topic | None, found: Topic, whole: bool) -> Topic:
    """A topic with what was found now. whole: whether all of its tests were run, or only those that had
    failed."""
    if whole or known is None:
        return found
    skipped = Counter(known["skipped"]) + Counter(found["skipped"])
    return {
        **found,
        "passed": known["passed"] + found["passed"],
        "skipped": dict(skipped),
        "seconds": round(known["seconds"] + found["seconds"], 1),
    }


class Session:
    """Runs pytest on one ComfyUI and keeps what comes of it in the row of that ComfyUI."""

    def __init__(
        self, tree: Path, row: dict[str, Any], keep: Callable[[], None], again: bool = False
    ) -> None:
        self.tree = tree
        self.row = row
        self.keep = keep  # is called whenever the row has changed
        self.again = again  # run what is there, too

    def run(self, topics: list[str]) -> None:
        """Run topics in one process, whose imports take longest; again without those that a process ended with, as
        long as each process brings something. Where tests that failed are not there any more, whole
        files are run."""
        whole = self.again
        while topics:
            done = self._run(topics, whole)
            if not done and whole:
                break
            whole = whole or not done
            topics = [name for name in topics if name not in done]

    def _run(self, topics: list[str], whole: bool) -> set[str]:
        """One process; topics that have something to show for it now. whole: no single tests."""
        known = self.row["topics"]
        files = {name: [f"{TESTS}/test_{name}.py"] for name in topics}
        asked = files if whole else {name: targets(self.row, name) for name in topics}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "outcomes"
            said: deque[str] = deque(maxlen=50)
            try:
                self._pytest([path for name in topics for path in asked[name]], file, said)
            finally:  # also where somebody has stopped it
                lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
                found, unread = read_outcomes(lines)
                began = {name for name, topic in found.items() if ran(topic)}
                for name in began:
                    same = asked[name] == files[name]
                    known[name] = merged(known.get(name), found[name], same)
                for name, why in unread.items():
                    known[name] = {**empty(), "failed": {UNREAD: why}}
                if lines and not found:  # all were deselected
                    began = set(topics)
                self.keep()
        self.row["why"] = None if lines else cause(said)
        self.keep()
        return began | set(unread)

    def _pytest(self, paths: list[str], file: Path, said: deque[str]) -> None:
        """Run the tests; their output is shown, and its end is kept in `said`."""
        command = [sys.executable, "-m", "pytest", *paths, "-m", "not main_host", "-q"]
        process = subprocess.Popen(
            [*command, "-p", "no:cacheprovider", "--outcomes", str(file)],
            cwd=REPOSITORY,
            env=script_environment(self.tree, threads=1),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                said.append(line.strip())
            process.wait()
        finally:
            process.kill()


def ran(topic: Topic) -> bool:
    """Whether any test of a topic has an outcome."""
    return bool(topic["passed"] or topic["failed"] or topic["skipped"])


def cause(said: deque[str]) -> str:
    """Why tests did not begin, by the last words of pytest."""
    errors = [line for line in said if "rror" in line] or [line for line in said if line]
    return f"the tests did not begin: {(errors or ['no output'])[-1]}"[:300]


def read(path: Path) -> list[dict[str, Any]]:
    """Rows that were kept, one a ComfyUI."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def run(args: Namespace) -> str:
    """All that is asked for; where the results are."""
    path = args.out / "hosts.json"
    rows = read(path)
    folders = [check_user_tree(folder, "--host-tree") for folder in args.host_tree]
    names = args.hosts if args.hosts is not None else ([] if folders else RELEASES)
    hosts = [Host(version) for version in names]
    hosts += [Host(version_of(folder), folder) for folder in folders]
    for host in sorted(hosts, key=lambda one: version_key(one.name)):
        row = next((row for row in rows if row["host"] == host.name), None)
        if row is None:
            row = {"host": host.name, "why": None, "topics": {}}
            rows.append(row)
            rows.sort(key=lambda one: version_key(one["host"]))

        def keep() -> None:
            write_text(path, json.dumps({"rows": rows}, indent=1) + "\n")
            if args.out.resolve() == results.FOLDER:
                results.make_pages()

        row.update(python=platform.python_version(), torch=torch_version())
        topics = args.topics if args.again else pending(row, args.topics)
        print(f"== ComfyUI {host.name}: {', '.join(topics) or 'nothing left to run'}", flush=True)
        try:
            Session(host.tree(), row, keep, args.again).run(topics)
        except SetupError as error:
            row["why"] = str(error)
            print(error, flush=True)
        keep()
    return f"{len(rows)} versions of ComfyUI: {path}"


def torch_version() -> str:
    """Of the environment."""
    import torch

    return str(torch.__version__)


def main() -> None:
    """What `dev.py bench hosts` runs."""
    flags = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    flags.add_argument("--base", type=Path, help="not needed")
    flags.add_argument("--out", type=Path, default=results.FOLDER)
    flags.add_argument("--hosts", nargs="*", choices=RELEASES, metavar="VERSION")
    flags.add_argument("--host-tree", nargs="+", type=Path, default=[], metavar="FOLDER")
    flags.add_argument("--topics", nargs="+", choices=TOPICS, default=list(TOPICS), metavar="TOPIC")
    flags.add_argument("--again", action="store_true", help="also what is there already")
    try:
        print(run(flags.parse_args()))
    except SetupError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
