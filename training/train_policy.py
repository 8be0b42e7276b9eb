"""Train a policy on the workflow that you already run.

    python training/train_policy.py --workflow my_graph_api.json --prompts prompts.txt --out NAME

The workflow is in API form (ComfyUI: Workflow > Export (API)); prompts.txt has one prompt a line.
The policy appears in models/rapid_policies as NAME.safetensors, with a card NAME.md beside it.
Stopped at any moment, the same command goes on where it was. `torchrun --nproc-per-node N
training/train_policy.py ...` shares the work among N processes, each on its own GPU where there are
as many; on several machines they need one folder --state."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

# Not first: ComfyUI has a module `nodes`, too. And without this folder, whose clip.py or files.py a
# pack might import.
sys.path[:] = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]
sys.path.append(str(Path(__file__).resolve().parents[1]))

from rapid_core.policy_file.format import PolicyFile  # noqa: E402
from training.config import METHODS, parse  # noqa: E402
from training.graph import Graph, WorkflowError  # noqa: E402
from training.heads import train_heads  # noqa: E402
from training.host import Host, find_tree  # noqa: E402
from training.job import Job  # noqa: E402
from training.processes import ProcessLost, distributed, rank, world_size  # noqa: E402
from training.schedules import train_schedules  # noqa: E402
from training.thresholds import train_thresholds  # noqa: E402

# ComfyUI's main.py obeys these before it imports what is imported here.
ONLY_SERVED = (
    "--cuda-device",
    "--default-device",
    "--input-directory",
    "--output-directory",
    "--temp-directory",
    "--user-directory",
)
TRAININGS: dict[str, Callable[[Job], tuple[PolicyFile, str]]] = {
    "schedule": train_schedules,
    "threshold": train_thresholds,
    **dict.fromkeys(METHODS, train_heads),
}


def read_prompts(path: Path, needed: int) -> list[str]:
    """Prompts of a file, each once. Raises SystemExit where there are too few."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SystemExit(f"{path} is not UTF-8 text; save it as such") from None
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    prompts = list(dict.fromkeys(lines))  # none that is learned on is among the held-out ones, too
    if len(prompts) < len(lines):
        print(
            f"{path}: {len(lines) - len(prompts)} of {len(lines)} prompts are there twice and count "
            "once",
            flush=True,
        )
    if len(prompts) < needed:
        raise SystemExit(
            f"{path} has {len(prompts)} prompts; {needed} are needed: --calibration, where a schedule "
            "or thresholds are searched, or --train-prompts, and --held-out, twice where heads follow "
            "a search"
        )
    return prompts


def host_flags(text: str) -> list[str]:
    """ComfyUI's flags out of one text. Raises SystemExit for those that it obeys only when it
    starts as a server."""
    windows = os.name == "nt"  # whose paths have backslashes
    flags = shlex.split(text, posix=not windows)
    if windows:
        flags = [flag.strip("'\"") for flag in flags]
    refused = [flag for flag in flags if flag.split("=")[0] in ONLY_SERVED]
    if refused:
        raise SystemExit(
            f"--host-arguments: {', '.join(refused)} would do nothing here. Instead of --cuda-device "
            "and --default-device set CUDA_VISIBLE_DEVICES, instead of the folders give "
            "--base-directory"
        )
    return flags


def main() -> None:
    config = parse(description=__doc__)
    prompts = read_prompts(config.prompts, config.prompts_needed)
    with distributed(timedelta(hours=config.patience)):
        host = Host(find_tree(config.comfyui), host_flags(config.host_arguments))
        uneven = config.prompts_per_update % world_size()
        if config.kind in METHODS and uneven and rank() == 0:
            print(
                f"{world_size()} processes share {config.prompts_per_update} groups an update: some "
                "will wait. Give --prompts-per-update a multiple of their number",
                flush=True,
            )
        try:
            graph = Graph.read(config.workflow, config.sampler, config.text)
            if len(graph.site.texts) > 1 and rank() == 0:
                places = ", ".join(f"{node}.{name}" for node, name in graph.site.texts)
                print(f"the prompt goes into {places}; --text ID.NAME names others", flush=True)
            job = Job(
                graph,
                prompts,
                config,
                state=config.state or Path("rapid_training") / config.out,
                out=(config.policies or host.policies()) / f"{config.out}.safetensors",
            )
            file, table = TRAININGS[config.kind](job)
        except (WorkflowError, ProcessLost, ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from None
        if rank() == 0:
            print(f"{table}\npolicy: {file.path}")


if __name__ == "__main__":
    main()
