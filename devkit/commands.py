"""What dev.py's commands do once everything is set up."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from devkit.base_folder import REPOSITORY, make_base_folder, remove_base_folder
from devkit.cache import SetupError, make_folder
from devkit.device import device_name, has_gpu
from devkit.frozen import frozen
from devkit.server import (
    DEFAULT_PORT,
    ComfyServer,
    host_arguments,
    next_free_port,
    script_environment,
)
from devkit.testing import test

__all__ = ["bench", "demo", "frozen", "serve", "test", "train"]

if TYPE_CHECKING:
    import argparse

    from devkit.cli import Ground

DEMO_SCRIPT = REPOSITORY / "demo" / "run.py"


@contextmanager
def temporary_base(cache: Path, kind: str) -> Iterator[Path]:
    """A base folder of its own for one run, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=make_folder(cache / "runs")))
    try:
        yield make_base_folder(folder)
    finally:
        remove_base_folder(folder)


def serve(ground: Ground, options: argparse.Namespace) -> int:
    """ComfyUI with the pack and the demo models until Ctrl-C."""
    port = options.port or next_free_port(DEFAULT_PORT)
    if options.port is None and port != DEFAULT_PORT:
        print(
            f"port {DEFAULT_PORT} is taken, perhaps by your own ComfyUI: using {port}", flush=True
        )
    # Kept, so that pictures outlive the server.
    base = make_base_folder(make_folder(ground.cache / "serve"))
    version, device = next(iter(ground.hosts)), device_name(ground.python)
    print(f"starting ComfyUI {version} on the {device}, log {base / 'server.log'}", flush=True)
    server = ComfyServer(ground.tree, base, python=ground.python, port=port)
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
    environment = script_environment(ground.tree, threads=None)
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
    environment = script_environment(ground.tree, threads)
    environment["PYTHONPATH"] = str(REPOSITORY)
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        if number > 1
        else []
    )
    with temporary_base(ground.cache, "train") as base:
        scenes, model = base / "prompts.txt", options.model
        subprocess.check_call(
            [str(ground.python), "-m", "demo.prompts", str(scenes), "--model", model],
            env=environment,
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
    environment = script_environment(ground.tree, threads=None)
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
