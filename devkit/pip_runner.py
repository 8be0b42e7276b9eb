"""Run pip with visible progress, and turn its failures into one line."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

from devkit.cache import SetupError, make_folder
from devkit.progress import Progress

NO_SPACE = ("No space left on device", "Errno 28", "not enough space on the disk")
NO_NETWORK = (
    "Failed to establish a new connection",
    "NameResolutionError",
    "Temporary failure in name resolution",
    "Name or service not known",
    "nodename nor servname provided",
    "getaddrinfo failed",
    "Network is unreachable",
    "No route to host",
    "Connection refused",
    "Connection reset by peer",
    "ConnectTimeoutError",
    "Read timed out",
    "Max retries exceeded",
    "Cannot connect to proxy",
    "Connection broken",
)
BAD_HASH = "DO NOT MATCH THE HASHES"
RESUME = "then run the same command again (finished steps are kept)"


def explain_failure(output: list[str], what: str, log: Path) -> str:
    """The one line for a failed pip run, from its output."""
    text = "\n".join(output)
    if any(sign in text for sign in NO_SPACE):
        return f"no disk space left while installing {what}: free some space, {RESUME}"
    if BAD_HASH in text:
        return f"the download of {what} does not have the expected sha256 and was refused: try another index"
    if any(sign in text for sign in NO_NETWORK):
        return f"cannot reach the package index to fetch {what}: check the network or pip's settings, {RESUME}"
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing:
        python = ".".join(map(str, sys.version_info[:2]))
        return f"the package index has no {missing[1]} for Python {python} here: try Python 3.11 to 3.13"
    errors = (
        [line for line in output if line.startswith(("ERROR", "error"))]
        or output[-1:]
        or ["no output"]
    )
    return f"pip failed on {what} ({errors[-1].strip()}): see {log}, {RESUME}"


def describe(line: str, activity: str) -> str:
    """What pip is doing after this line of output; `activity` is what it did before."""
    size = re.fullmatch(r"Progress (\d+) of (\d+)", line)
    if size:
        done, total = (int(number) / 1e6 for number in size.groups())
        return f"{activity.split(':')[0]}: {done:.0f} of {total:.0f} MB" if total >= 1 else activity
    words = line.split()
    if words[:1] == ["Installing"]:
        return f"unpacking {len(words) - 3} packages"
    if words[:1] in (["Collecting"], ["Downloading"]) and len(words) > 1:
        return f"{words[0].lower()} {words[1].split('/')[-1]}"
    return activity


def run_pip(python: Path, arguments: list[str], what: str, log: Path) -> None:
    """Run `python -m pip ...` with visible progress; raise SetupError with one line on failure."""
    command = [
        str(python),
        "-m",
        "pip",
        *arguments,
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "2",
    ]
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    progress = Progress(what)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )
    try:
        output = _follow(process, progress)
        status = process.wait()
    except BaseException:
        process.kill()
        raise
    make_folder(log.parent)
    with open(log, "a", encoding="utf-8") as handle:
        handle.write("\n".join([f"$ {' '.join(command)}", *output, ""]))
    progress.finish("done" if status == 0 else "failed")
    if status != 0:
        raise SetupError(explain_failure(output, what, log))


def _follow(process: subprocess.Popen, progress: Progress) -> list[str]:
    """All output lines of a process, shown as progress while they come."""
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
    output, activity = [], "starting"
    while True:
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            progress.show(activity)
            continue
        if line is None:
            return output
        if not line.startswith("Progress "):
            output.append(line)
        activity = describe(line, activity)
        progress.show(activity)


def _read_lines(process: subprocess.Popen, lines: queue.Queue[str | None]) -> None:
    """Feed the lines of a process into a queue, None at the end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip("\n"))
    lines.put(None)
