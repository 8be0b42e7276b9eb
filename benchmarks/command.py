"""What the commands of the suites on demo models share: flags, and how they are run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path

from devkit.comfy_process import Comfy, load_everything
from evaluation.batches import add_share


def suite_flags(about: str | None) -> ArgumentParser:
    """A parser with the flags that every suite has."""
    flags = ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter)
    flags.add_argument("--out", type=Path, default=Path("bench_output"))
    add_share(flags)
    flags.add_argument(
        "--quick", action="store_true", help="two small pictures: whether it runs, not how well"
    )
    return flags


def run_suite(flags: ArgumentParser, run: Callable[[Comfy, Namespace], str]) -> None:
    """Read the command line, load the host and everything of ours, run, and print what came of it."""
    flags.add_argument("--base", type=Path, required=True)
    args = flags.parse_args()
    print(run(load_everything(args.base), args))
