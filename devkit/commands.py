"""What dev.py's commands do once everything is set up."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from devkit.base_folder import REPOSITORY, make_base_folder, remove_base_folder
from devkit.browser import provide_browser
from devkit.cache import SetupError, make_folder
from devkit.device import has_gpu
from devkit.quiet_process import QuietProcess
from devkit.server import ComfyServer, child_environment, host_arguments, keep_tree_clean

if TYPE_CHECKING:
    import argparse

    from devkit.cli import Ground

NO_TESTS_COLLECTED = 5
TRAININGS = [f"tests/integration/test_training_{name}.py" for name in ("kills", "thresholds")]
DEMO_SCRIPT = REPOSITORY / "demo" / "run.py"


@contextmanager
def temporary_base(cache: Path, kind: str) -> Iterator[Path]:
    """A base folder of its own for one run, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=make_folder(cache / "runs")))
    try:
        yield make_base_folder(folder)
    finally:
        remove_base_folder(folder)


def device_name(python: Path) -> str:
    """The device that ComfyUI will use."""
    return "GPU" if has_gpu(python) else "CPU"


def script_environment(ground: Ground, tree: Path, threads: int | None) -> dict[str, str]:
    """Environment of tests and scripts: where the host is, and a quiet host tree."""
    environment = keep_tree_clean(child_environment(threads), tree)
    return {**environment, "RAPID_HOST_TREE": str(tree)}


def serve(ground: Ground, options: argparse.Namespace) -> int:
    """ComfyUI with the pack and the demo models until Ctrl-C."""
    base = make_base_folder(
        make_folder(ground.cache / "serve")
    )  # kept, so that pictures outlive the server
    version, device = next(iter(ground.hosts)), device_name(ground.python)
    print(f"starting ComfyUI {version} on the {device}, log {base / 'server.log'}", flush=True)
    server = ComfyServer(ground.tree, base, python=ground.python, port=options.port)
    with server:
        print(
            f"ComfyUI is up: {server.url} (pictures in {base / 'output'}; Ctrl-C ends it)",
            flush=True,
        )
        while server.process is not None and server.process.poll() is None:
            time.sleep(0.5)
    raise SetupError(f"ComfyUI ended by itself:\n{server.log_tail()}")


def demo(ground: Ground, options: argparse.Namespace) -> int:
    """Run demo/run.py in the environment, on a base folder of its own."""
    if not DEMO_SCRIPT.is_file():
        raise SetupError(
            f"{DEMO_SCRIPT} not found: the demo is part of the repository, not of the installed pack"
        )
    environment = script_environment(ground, ground.tree, threads=None)
    environment["PYTHONPATH"] = str(REPOSITORY)  # for `devkit` and `demo`; not handed on to ComfyUI
    with temporary_base(ground.cache, "demo") as base:
        command = [
            *(
                str(ground.python),
                str(DEMO_SCRIPT),
                "--prompts",
                str(options.prompts),
                "--out",
                str(options.out),
            ),
            *("--host-tree", str(ground.tree), "--base", str(base)),
        ]
        return subprocess.call(command, env=environment)


def train(ground: Ground, options: argparse.Namespace) -> int:
    """Run training/train_policy.py in the environment, on a demo model's example workflow unless
    another is given."""
    number = options.processes
    threads = max(1, (os.cpu_count() or 1) // number) if number > 1 else None
    environment = script_environment(ground, ground.tree, threads)
    environment["PYTHONPATH"] = str(REPOSITORY)
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        if number > 1
        else []
    )
    with temporary_base(ground.cache, "train") as base:
        scenes, model = base / "prompts.txt", options.model
        subprocess.check_call(
            [str(ground.python), "-m", "demo.prompts", str(scenes)], env=environment
        )
        # First, so that what the user gives comes last and wins. Width: under 1 % of such a small
        # model's cost; seed: no noise of the suites' pictures, which are 0 to 199.
        rest = [
            "--workflow",
            str(REPOSITORY / "example_workflows" / "api" / f"demo_{model}.json"),
            "--prompts",
            str(scenes),
            "--out",
            f"demo-{model}",
            "--policies",
            "trained_policies",
            "--width",
            "32",
            "--seed",
            "50000",
            *options.rest,
        ]
        host = shlex.join(host_arguments(base, has_gpu(ground.python)))
        script = str(REPOSITORY / "training" / "train_policy.py")
        command = [
            str(ground.python),
            *launcher,
            script,
            "--comfyui",
            str(ground.tree),
            "--host-arguments",
            host,
            *rest,
        ]
        return subprocess.call(command, env=environment)


def bench(ground: Ground, options: argparse.Namespace) -> int:
    """Run a suite of benchmarks/ in the environment; what was measured before is kept in its --out
    folder."""
    environment = script_environment(ground, ground.tree, threads=None)
    environment["PYTHONPATH"] = str(REPOSITORY)
    with temporary_base(ground.cache, "bench") as base:
        command = [
            str(ground.python),
            "-m",
            f"benchmarks.{options.suite}",
            "--base",
            str(base),
            *options.rest,
        ]
        return subprocess.call(command, env=environment)


def test(ground: Ground, options: argparse.Namespace) -> int:
    """Linter, then pytest on every host; the run on the main host is shown last and closes the
    output."""
    print("== ruff check", flush=True)
    lint = subprocess.call(
        [str(ground.python), "-m", "ruff", "check", "--output-format", "concise", "."],
        cwd=REPOSITORY,
        env=script_environment(ground, ground.tree, threads=1),
    )
    runs = {
        version: paths
        for number, version in enumerate(ground.hosts)
        if (paths := paths_for(options, main_host=number == 0))
    }
    if any(path == "tests" or "browser" in path for paths in runs.values() for path in paths):
        provide_browser(ground.python)
    statuses = run_pytest(ground, runs, flags(options))
    status = statuses.pop(next(iter(ground.hosts)), 0)
    failed = ["ruff check"] if lint else []
    failed += [
        f"pytest on ComfyUI {v}"
        for v, code in statuses.items()
        if code not in (0, NO_TESTS_COLLECTED)
    ]
    if failed:  # pytest's closing line knows nothing of these
        print(f"failed: {'; '.join(failed)}", flush=True)
    return 1 if failed or status else 0


def run_pytest(ground: Ground, runs: dict[str, list[str]], arguments: list[str]) -> dict[str, int]:
    """Exit codes of pytest by host, the main one last. runs: paths by host, the main one first;
    beside each other where there is a core for each. Some of all tests, about as long as the older
    hosts have less to do, are then run on their core, when they are done."""
    main, beside = next(iter(runs)), 1 < len(runs) <= (os.cpu_count() or 1)
    order = [(version, paths, beside) for version, paths in reversed(runs.items())]
    if beside and runs[main] == ["tests"]:
        others = [f"--ignore={path}" for path in TRAININGS]
        order[-1:] = [
            (main, ["tests/unit", *TRAININGS, "tests/browser"], False),
            (main, ["tests/integration", *others], True),
        ]
    started: list[tuple[str, list[str], Callable[[], int]]] = []
    statuses: dict[str, int] = {}
    with ExitStack() as stack:
        for version, paths, at_once in order:
            older = [] if version == main else ["-m", "not main_host"]
            command = [str(ground.python), "-m", "pytest", *paths, *older, *arguments]
            environment = script_environment(ground, ground.hosts[version], threads=1)
            ended = partial(subprocess.call, command, cwd=REPOSITORY, env=environment)
            if at_once:
                ended = stack.enter_context(QuietProcess(command, REPOSITORY, environment)).show
            started.append((version, paths, ended))
        for version, paths, ended in started:
            print(
                f"== pytest {' '.join(paths)} on ComfyUI {version} ({device_name(ground.python)})",
                flush=True,
            )
            statuses[version] = _worse(statuses.get(version, NO_TESTS_COLLECTED), ended())
    return statuses


def _worse(one: int, other: int) -> int:
    """Of two exit codes of pytest: no tests are no failure where there were some elsewhere."""
    failed = [code for code in (one, other) if code not in (0, NO_TESTS_COLLECTED)]
    return failed[0] if failed else min(one, other)


def is_path(argument: str) -> bool:
    """Whether a pytest argument names a file or folder of tests."""
    path = argument.split("::")[0]
    return path.startswith("tests") and (REPOSITORY / path).exists()


def flags(options: argparse.Namespace) -> list[str]:
    """pytest's flags, without the paths."""
    return [argument for argument in options.pytest_arguments if not is_path(argument)]


def paths_for(options: argparse.Namespace, main_host: bool) -> list[str]:
    """Test folders of one pytest run: all on the main host, only integration tests on others."""
    given = [argument for argument in options.pytest_arguments if is_path(argument)]
    if options.fast:
        paths = given or ["tests/unit"]
    elif main_host:
        paths = given or ["tests"]
    else:
        paths = (
            [path for path in given if "integration" in path] if given else ["tests/integration"]
        )
    return paths
