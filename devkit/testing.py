"""What `dev.py test` runs: checks of the code, and pytest on one or two ComfyUI releases."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from devkit.base_folder import REPOSITORY
from devkit.browser import provide_browser
from devkit.device import device_name
from devkit.linters import failed_linters
from devkit.quiet_process import QuietProcess
from devkit.server import script_environment

if TYPE_CHECKING:
    import argparse

    from devkit.cli import Ground

NO_TESTS_COLLECTED = 5
MOST_WORKERS = 4  # each holds a ComfyUI with its models, 2 GB of memory
# Everything, in the order in which workers take it: long files first, so that no core waits for the
# last one, and the browser's last (see tests/conftest.py). Files, because pytest puts those of a
# folder into an order of its own.
INTEGRATION = ("tests/integration/test_training*.py", "tests/integration/test_*.py")
EVERYTHING = (*INTEGRATION, "tests/unit/test_*.py", "tests/browser/test_*.py")


@dataclass(frozen=True)
class Run:
    """One run of pytest: the ComfyUI release, the paths of tests, and flags beside the user's."""

    host: str
    paths: tuple[str, ...]
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the output calls it."""
        many = len(self.paths) > 5
        paths = f"({len(self.paths)} files)" if many else " ".join(self.paths)
        return f"pytest {' '.join([paths, *self.flags])} on ComfyUI {self.host}"

    def command(self, ground: Ground, arguments: list[str]) -> list[str]:
        """Its command line; what the user gives comes last and wins."""
        return [str(ground.python), "-m", "pytest", *self.paths, *self.flags, *arguments]


def test(ground: Ground, options: argparse.Namespace) -> int:
    """The checks of the code and the tests; the summary of the main release's run comes last."""
    environment = script_environment(ground.tree, threads=1)
    failed = []
    if not given_paths(options) and options.host_tree is None:
        failed += failed_linters(ground.python, environment, types=options.all)
    runs = planned_runs(options, list(ground.hosts))
    if any(path == "tests" or "browser" in path for run in runs for path in run.paths):
        provide_browser(ground.python)
    statuses = run_all(ground, runs, flags(options))
    failed += [run.name for run, status in zip(runs, statuses, strict=True) if is_failure(status)]
    if failed and failed != [runs[-1].name]:  # pytest's closing line knows nothing of the others
        print(f"failed: {'; '.join(failed)}", flush=True)
    nothing = all(status == NO_TESTS_COLLECTED for status in statuses)
    return 1 if failed or nothing else 0


def is_failure(status: int) -> bool:
    """Whether an exit code of pytest is a failure; a run without tests is none beside others."""
    return status not in (0, NO_TESTS_COLLECTED)


def planned_runs(options: argparse.Namespace, hosts: list[str]) -> list[Run]:
    """The runs of pytest in the order of their output. hosts: the main release first."""
    main, *older = hosts
    paths = tuple(given_paths(options))
    if options.host_tree is not None:
        every = ("-m", "not main_host", *worker_flags())
        return [Run(main, paths) if paths else Run(main, files(INTEGRATION), every)]
    if not options.all:
        if paths or options.fast:
            return [Run(main, paths or ("tests/unit",))]
        return [
            Run(main, ("tests/unit",), ("-m", "not slow")),
            Run(main, ("tests/integration", "tests/browser"), ("-m", "quick")),
        ]
    other = ("-m", "not main_host")
    if paths:
        elsewhere = tuple(path for path in paths if "integration" in path)
        return [*(Run(host, elsewhere, other) for host in older if elsewhere), Run(main, paths)]
    spread = worker_flags()
    return [
        *(Run(host, files(INTEGRATION), (*other, *spread)) for host in older),
        Run(main, files(EVERYTHING), spread),
    ]


def refused_tree(options: argparse.Namespace) -> str | None:
    """Why --host-tree cannot be followed with the other flags; None where it can."""
    if options.host_tree is None:
        return "--install is for --host-tree: give that, too" if options.install else None
    for flag in ("comfyui", "host", "fast", "all"):
        if getattr(options, flag):
            return f"--host-tree and --{flag} exclude each other: give one of the two"
    for path in given_paths(options):
        if not path.startswith("tests/integration"):
            return f"--host-tree runs integration tests, and {path} is none: name paths in tests/integration"
    return None


def files(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Files of tests, each at the first pattern that it fits."""
    found = [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern))]
    return tuple(dict.fromkeys(path.relative_to(REPOSITORY).as_posix() for path in found))


def worker_flags() -> tuple[str, ...]:
    """pytest-xdist's flags: a worker for each core takes whole files, whose fixtures may be long."""
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    if workers == 1:
        return ()
    return ("-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder")


def run_all(ground: Ground, runs: list[Run], arguments: list[str]) -> list[int]:
    """Exit codes of the runs. Two that have no workers of their own run beside each other."""
    beside = len(runs) > 1 and (os.cpu_count() or 1) > 1 and not any("-n" in r.flags for r in runs)
    started: list[Callable[[], int]] = []
    statuses = []
    with ExitStack() as stack:
        for run in runs:
            command = run.command(ground, arguments)
            environment = script_environment(ground.hosts[run.host], threads=1)
            ended = partial(subprocess.call, command, cwd=REPOSITORY, env=environment)
            if beside:
                ended = stack.enter_context(QuietProcess(command, REPOSITORY, environment)).show
            started.append(ended)
        for run, ended in zip(runs, started, strict=True):
            print(f"== {run.name} ({device_name(ground.python)})", flush=True)
            statuses.append(ended())
    return statuses


def is_path(argument: str) -> bool:
    """Whether a pytest argument names a file or folder of tests."""
    path = argument.split("::")[0]
    return path.startswith("tests") and (REPOSITORY / path).exists()


def given_paths(options: argparse.Namespace) -> list[str]:
    """The tests that the user names."""
    return [argument for argument in options.pytest_arguments if is_path(argument)]


def flags(options: argparse.Namespace) -> list[str]:
    """pytest's flags, without the paths."""
    return [argument for argument in options.pytest_arguments if not is_path(argument)]
