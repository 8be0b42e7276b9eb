"""Command line of dev.py and the set-up that its commands share."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from devkit import commands, testing
from devkit.cache import SetupError, cache_root, exclusive, make_folder
from devkit.environment import (
    Environment,
    add_templates,
    add_types,
    check_requirements,
    environment_key,
    install,
    make_environment,
)
from devkit.hosts import (
    DEFAULT_HOST,
    HOSTS,
    OLDER_HOST,
    check_user_tree,
    provide_host,
    version_of,
)
from devkit.server import DEFAULT_PORT

SUITES = (
    "region",
    "clock",
    "sparse",
    "policy",
    "dial",
    "learn",
    "headroom",
    "models",
    "gpu",
    "hosts",
)


@dataclass(frozen=True)
class Ground:
    """What a command runs on: an interpreter, and ComfyUI trees by version."""

    cache: Path
    environment: Environment
    hosts: dict[str, Path]

    @property
    def python(self) -> Path:
        """Interpreter of the environment."""
        return self.environment.python

    @property
    def tree(self) -> Path:
        """The first ComfyUI tree."""
        return next(iter(self.hosts.values()))


def build_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--comfyui", type=Path, metavar="PATH", help="an installed ComfyUI to use (or COMFYUI_PATH)"
    )
    shared.add_argument(
        "--host",
        choices=list(HOSTS),
        help=f"ComfyUI release to fetch and use (default {DEFAULT_HOST})",
    )
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__)
    # Without abbreviations: --mode of training is not --model, and what is handed on is not ours.
    kinds = parser.add_subparsers(dest="command", required=True)
    test = kinds.add_parser(
        "test",
        parents=[shared],
        allow_abbrev=False,
        help="check the code and run the tests of the main host in a few minutes, or only the tests "
        "that are named; other flags go to pytest",
    )
    extent = test.add_mutually_exclusive_group()
    extent.add_argument("--fast", action="store_true", help="unit tests only")
    extent.add_argument(
        "--all",
        action="store_true",
        help="everything: an older host, all models, trainings, the whole browser suite, types",
    )
    test.add_argument(
        "--host-tree",
        type=Path,
        metavar="FOLDER",
        help="the integration tests on the ComfyUI in this folder, of any version, in dev.py's "
        "environment; what its requirements.txt asks for and the environment lacks is named first",
    )
    test.add_argument(
        "--install",
        action="store_true",
        help="with --host-tree: an environment of its own with what that ComfyUI asks for",
    )
    serve = kinds.add_parser(
        "serve", parents=[shared], help="run ComfyUI with this pack and the demo models"
    )
    serve.add_argument(
        "--port",
        type=int,
        metavar="N",
        help=f"port on this machine (default: the first from {DEFAULT_PORT} on that is free)",
    )
    demo = kinds.add_parser(
        "demo", parents=[shared], help="draw full and accelerated pictures and compare them"
    )
    demo.add_argument(
        "--prompts", type=int, default=2, metavar="N", help="number of prompts (default 2)"
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        metavar="DIR",
        help="where pictures and report go",
    )
    frozen = kinds.add_parser(
        "frozen",
        parents=[shared],
        help="draw many small pictures with a revision and with the working tree, and compare them",
    )
    frozen.add_argument(
        "--against", required=True, metavar="REVISION", help="the revision to compare with"
    )
    frozen.add_argument(
        "--only", default="", metavar="TEXT", help="only runs whose name holds this text"
    )
    bench = kinds.add_parser(
        "bench",
        parents=[shared],
        allow_abbrev=False,
        help="run a suite of benchmarks/; other flags go to the suite (--quick, --out ...)",
    )
    bench.add_argument("suite", choices=SUITES, help="what to measure")
    train = kinds.add_parser(
        "train",
        parents=[shared],
        allow_abbrev=False,
        help="train a policy on a demo model; other flags go to training/train_policy.py",
    )
    train.add_argument(
        "--model", choices=("flux", "sd3"), default="flux", help="demo model (default flux)"
    )
    train.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="processes sharing the work (default 1)",
    )
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parsed flags; what `test` does not know itself is kept for pytest."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("test", "bench", "train"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    options.pytest_arguments = [argument for argument in rest if argument != "--"]
    if options.command == "test":
        refused = testing.refused_tree(options)
        if refused is not None:
            parser.error(refused)
    free = options.comfyui is None and options.host is None and given_tree(options) is None
    if free and os.environ.get("COMFYUI_PATH"):
        options.comfyui = Path(os.environ["COMFYUI_PATH"])
    if options.comfyui is not None and options.host is not None:
        parser.error(
            "--comfyui and --host exclude each other: give the installed ComfyUI or the release to fetch"
        )
    port = options.port if options.command == "serve" else None
    if port is not None and not 0 < port < 65536:
        parser.error(f"--port {port}: give a number from 1 to 65535")
    for command, name in (("demo", "prompts"), ("train", "processes")):
        if options.command == command and getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: give 1 or more")
    return options


def given_tree(options: argparse.Namespace) -> Path | None:
    """The folder of --host-tree, which only `test` has."""
    return getattr(options, "host_tree", None)


def wanted_hosts(options: argparse.Namespace) -> list[str]:
    """Releases that a command runs on, the main one first."""
    if options.host is not None:
        return [options.host]
    both = options.command == "test" and options.all
    return [DEFAULT_HOST, OLDER_HOST] if both else [DEFAULT_HOST]


def prepare(options: argparse.Namespace) -> Ground:
    """Make or reuse environment and hosts."""
    cache = make_folder(cache_root())
    tree = given_tree(options)
    tree = None if tree is None else check_user_tree(tree, "--host-tree")
    with exclusive(cache / "setup.lock", print):
        if options.comfyui is not None:
            installed = check_user_tree(options.comfyui)
            say_where(installed)
            environment = provide_environment(cache, installed, options, pinned=False)
            return Ground(cache, environment, {"installed": installed})
        if tree is not None:
            say_where(tree)
            if options.install:
                environment = provide_environment(cache, tree, options, pinned=False)
                return Ground(cache, environment, {version_of(tree): tree})
        # Old releases run on the newest one's requirements, so that one environment serves all.
        scratch = make_environment(
            cache / "environments" / "downloader", purpose="downloading", gib=0.5
        )
        names = wanted_hosts(options) if tree is None else []
        hosts = {name: provide_host(name, cache, scratch.python, scratch.log) for name in names}
        newest = provide_host(DEFAULT_HOST, cache, scratch.python, scratch.log)
        environment = provide_environment(cache, newest, options, pinned=True)
        if tree is not None:
            check_requirements(environment, tree)
            hosts = {version_of(tree): tree}
        return Ground(cache, environment, hosts)


def say_where(tree: Path) -> None:
    """Say which ComfyUI of the user's will be run."""
    print(
        f"ComfyUI: {tree} (with dev.py's own environment; nothing is written there)",
        flush=True,
    )


def provide_environment(
    cache: Path, tree: Path, options: argparse.Namespace, pinned: bool
) -> Environment:
    """The environment for a ComfyUI tree's requirements, with what only one command needs."""
    requirements = (tree / "requirements.txt").read_text(encoding="utf-8")
    environment = make_environment(cache / "environments" / environment_key(requirements))
    install(environment, requirements, pinned)
    if options.command == "serve":
        add_templates(environment, requirements)
    if options.command == "test" and options.all:
        add_types(environment)
    return environment


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    options = parse(arguments)
    if threading.current_thread() is threading.main_thread():
        # So that `finally` blocks stop child processes when this one is asked to end.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        ground = prepare(options)
        print(
            f"set-up ready in {time.monotonic() - started:.1f} s; interpreter {ground.python}",
            flush=True,
        )
        return getattr(commands, options.command)(ground, options)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        print(
            f"error: no disk space left ({error.filename or cache_root()}): free some and run again",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
