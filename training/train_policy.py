"""Train a policy on the workflow that you already run.

    python training/train_policy.py --workflow my_graph_api.json --prompts prompts.txt --out NAME

The workflow is in API form (ComfyUI: Workflow > Export (API)); prompts.txt has one prompt a line.
The policy appears in models/rapid_policies as NAME.safetensors, with a card NAME.md beside it.
Stopped at any moment, the same command goes on where it was. `torchrun --nproc-per-node N
training/train_policy.py ...` shares the work among N processes, each on its own GPU where there are
as many; on several machines they need one folder --state."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from datetime import timedelta
from pathlib import Path

# Not first: ComfyUI has a module `nodes`, too. And without this folder, whose clip.py or files.py a
# pack might import.
sys.path[:] = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]
sys.path.append(str(Path(__file__).resolve().parents[1]))

from rapid_core.engine.sparse import NAMES  # noqa: E402
from rapid_core.policy_file.format import MOST_SPEEDUP  # noqa: E402
from rapid_core.policy_file.policies import PLUS  # noqa: E402
from rapid_core.techniques.heads.rapid3 import HEADS, OUTPUTS  # noqa: E402
from rapid_core.techniques.heads.rapid_plus import MODES  # noqa: E402
from training.features import FEATURES  # noqa: E402
from training.graph import Graph, WorkflowError  # noqa: E402
from training.heads import train_heads  # noqa: E402
from training.host import Host, find_tree  # noqa: E402
from training.methods import LR, METHODS, MORE_PLANS, OMEGA, searches  # noqa: E402
from training.plans import train_plans  # noqa: E402
from training.processes import ProcessLost, rank, several, size  # noqa: E402
from training.rewards import REWARDS, parsed  # noqa: E402
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


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--workflow", type=Path, required=True, help="API workflow to train on")
    found.add_argument("--prompts", type=Path, required=True, help="text file, one prompt a line")
    found.add_argument("--out", required=True, help="name of the policy")
    found.add_argument(
        "--policies",
        type=Path,
        help="folder of the policy (default: ComfyUI's models/rapid_policies)",
    )
    found.add_argument(
        "--state",
        type=Path,
        help="folder of what is kept between runs (default: rapid_training/NAME)",
    )
    found.add_argument(
        "--comfyui", type=Path, help="ComfyUI's folder (default: the one this pack lies in)"
    )
    found.add_argument(
        "--host-arguments",
        default="",
        help="ComfyUI's own flags in one text, with an "
        'equals sign: --host-arguments="--lowvram --base-directory DIR"',
    )
    found.add_argument("--sampler", help="id of the sampler node, where the workflow has several")
    found.add_argument(
        "--text", nargs="*", default=[], metavar="ID.NAME", help="inputs that hold the prompt"
    )
    found.add_argument(
        "--kind",
        choices=("schedule", "threshold", *METHODS),
        default="schedule",
        help="what is "
        "trained: a searched schedule, Cache Reuse's threshold for every speed-up, RAPID3's heads as "
        "published, or heads that begin with a schedule (rapid+)",
    )
    found.add_argument(
        "--speedups",
        nargs="+",
        type=float,
        default=[2.0, 3.0, 4.0],
        help="speed-ups to make it for",
    )
    found.add_argument(
        "--calibration",
        type=int,
        default=16,
        help="prompts that plans or thresholds are searched on",
    )
    found.add_argument(
        "--held-out",
        type=int,
        default=16,
        help="prompts that the result is measured on: "
        "of heads the file's last, else those after --calibration",
    )
    found.add_argument(
        "--plans", type=int, default=120, help="plans that are tried for each speed-up"
    )
    found.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="schedule file that a search or rapid+ begins with "
        "(default: even spacing; rapid+ searches first)",
    )
    found.add_argument(
        "--oracle",
        type=int,
        default=4,
        help="held-out prompts that plans are searched for one by one",
    )
    found.add_argument(
        "--target",
        choices=("dense", "solution"),
        default="dense",
        help="what pictures are to be "
        "near: the dense picture, or the solution of the model's ODE, as dense sampling is itself",
    )
    heads = found.add_argument_group("heads")
    heads.add_argument(
        "--heads",
        nargs="+",
        choices=tuple(OUTPUTS),
        help="heads to train (default: rapid3 step, cache and sparse, rapid+ pace)",
    )
    heads.add_argument(
        "--sparse-backend",
        choices=NAMES,
        default="auto",
        help="what computes the attention that the "
        "sparse head thins out, in training and in use (default: what was measured faster than dense "
        "attention; where nothing was, that head is not trained)",
    )
    heads.add_argument(
        "--mode",
        choices=MODES,
        default="cap",
        help="rapid+: no image spends more than its budget, or "
        "images spend it in the mean (average)",
    )
    heads.add_argument(
        "--advantages",
        choices=("values", "ranks"),
        help="what a group's rewards count by (default: rapid3 values, as published, rapid+ ranks)",
    )
    heads.add_argument(
        "--train-prompts",
        type=int,
        help="prompts that heads learn on (default: all but --held-out)",
    )
    heads.add_argument("--iterations", type=int, default=100, help="updates")
    heads.add_argument(
        "--prompts-per-update", type=int, default=4, help="groups of rollouts an update"
    )
    heads.add_argument(
        "--group", type=int, default=8, help="rollouts of a prompt, from the same noise"
    )
    heads.add_argument(
        "--lr", type=float, help="learning rate (default: rapid3 .001, rapid+ .0002)"
    )
    heads.add_argument(
        "--reward",
        nargs="+",
        default=["psnr"],
        metavar="NAME[:WEIGHT]",
        help="quality of a picture: "
        f"the weighted mean of some of {', '.join(REWARDS)}. psnr and decibels are of the latent, the "
        "others decode; lpips, imagereward and clip need packages and weights, judge prompts of the "
        "demo's scenes",
    )
    heads.add_argument(
        "--omega",
        type=float,
        help="weight beside --reward of a discriminator, which learns to tell "
        "dense pictures from the policy's (default: rapid3 1, rapid+ 0, which is none)",
    )
    heads.add_argument(
        "--discriminator-warm-up", type=int, default=100, help="its steps before the first update"
    )
    heads.add_argument(
        "--features",
        choices=("auto", *FEATURES),
        default="auto",
        help="what it looks at: CLIP, the "
        "demo's training judge or fixed random convolutions (default: CLIP, or random without it)",
    )
    heads.add_argument(
        "--discount",
        type=float,
        default=0.97,
        help="rapid3: what an equivalent step costs (lambda)",
    )
    heads.add_argument("--width", type=int, default=128, help="channels of the heads")
    found.add_argument("--seed", type=int, default=0, help="of noise and search")
    found.add_argument(
        "--patience",
        type=float,
        default=2.0,
        metavar="HOURS",
        help="for how long processes that were started by torchrun wait for the slowest of them",
    )
    found.add_argument("--licence", default="unspecified", help="of the policy file")
    found.add_argument(
        "--quick",
        action="store_true",
        help="a few prompts and plans: whether it runs, not how well",
    )
    return found


def read_prompts(path: Path, needed: int) -> list[str]:
    """Prompts of a file. Raises SystemExit where there are too few."""
    try:
        lines = [
            line.strip()
            for line in path.read_text(encoding="utf-8-sig").split("\n")
            if line.strip()
        ]
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SystemExit(f"{path} is not UTF-8 text; save it as such") from None
    given, lines = (
        len(lines),
        list(dict.fromkeys(lines)),
    )  # one that is learned on must not be among the held-out ones
    if len(lines) < given:
        print(
            f"{path}: {given - len(lines)} of {given} prompts are there twice and count once",
            flush=True,
        )
    if len(lines) < needed:
        raise SystemExit(
            f"{path} has {len(lines)} prompts; {needed} are needed: --calibration, where a schedule or "
            "thresholds are searched, and --held-out, twice where heads follow a search"
        )
    return lines


def host_flags(text: str) -> list[str]:
    """ComfyUI's flags out of one text. Raises SystemExit for those that it obeys only when it
    starts as a server."""
    flags = shlex.split(text, posix=os.name != "nt")  # paths of Windows have backslashes
    flags = [flag.strip("'\"") for flag in flags] if os.name == "nt" else flags
    refused = [flag for flag in flags if flag.split("=")[0] in ONLY_SERVED]
    if refused:
        raise SystemExit(
            f"--host-arguments: {', '.join(refused)} would do nothing here. Instead of --cuda-device and "
            "--default-device set CUDA_VISIBLE_DEVICES, instead of the folders give --base-directory"
        )
    return flags


def _needed(args: argparse.Namespace) -> int:
    """Prompts that a file must have."""
    if searches(args):
        return args.calibration + 2 * args.held_out
    return (1 if args.kind in METHODS else args.calibration) + args.held_out


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """The flags with what --quick means. Raises SystemExit for what makes no sense."""
    if args.quick:
        args.calibration, args.held_out, args.plans, args.oracle = 2, 2, 4, 1
        (
            args.iterations,
            args.prompts_per_update,
            args.group,
            args.width,
            args.discriminator_warm_up,
        ) = 2, 1, 4, 16, 4
        args.speedups, args.train_prompts = args.speedups[: 2 if args.kind == PLUS else 1], 2
    bad = [s for s in args.speedups if not 1 < s <= MOST_SPEEDUP]
    if bad or sorted(set(args.speedups)) != args.speedups:
        raise SystemExit(
            f"--speedups {args.speedups}: give rising numbers above 1 and at most {MOST_SPEEDUP:g}"
        )
    for name in ("calibration", "held_out", "plans", "iterations", "prompts_per_update", "width"):
        if getattr(args, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(args, name)}: give 1 or more")
    args.heads = args.heads or (list(HEADS) if args.kind == "rapid3" else ["pace"])
    if args.kind in METHODS and ("pace" in args.heads, "step" in args.heads)[args.kind == PLUS]:
        raise SystemExit(
            f"--heads {' '.join(args.heads)}: rapid3 has step, cache and sparse, rapid+ pace in place of "
            "step"
        )
    if args.kind == PLUS and "pace" not in args.heads:
        raise SystemExit(
            f"--heads {' '.join(args.heads)}: rapid+ begins with a schedule, which the pace head leaves; "
            "name pace, too"
        )
    if searches(args) and len(args.speedups) < 2 and args.heads == ["pace"]:
        raise SystemExit(
            f"--speedups {args.speedups[0]:g}: the pace head chooses among the plans of several "
            f"speed-ups; {MORE_PLANS}"
        )
    args.advantages = args.advantages or ("ranks" if args.kind == PLUS else "values")
    args.lr = LR.get(args.kind, 1.0) if args.lr is None else args.lr
    if args.omega is None:
        args.omega = OMEGA.get(args.kind, 0.0)
    if not 0 <= args.omega < float("inf") or args.discriminator_warm_up < 0:
        raise SystemExit("--omega and --discriminator-warm-up must be 0 or more")
    try:
        parsed(args.reward)
    except ValueError as error:
        raise SystemExit(f"--reward: {error}") from None
    if args.train_prompts is not None and args.train_prompts < 1:
        raise SystemExit(f"--train-prompts {args.train_prompts}: give 1 or more")
    if (
        args.group < 2
        or not 0 < args.discount < 1
        or not args.lr > 0
        or not args.patience > 0
        or args.oracle < 0
    ):
        raise SystemExit(
            "--group must be 2 or more, --discount between 0 and 1, --lr and --patience above 0, --oracle "
            "0 or more"
        )
    return args


def main() -> None:
    args = checked(parser().parse_args())
    prompts = read_prompts(args.prompts, _needed(args))
    state = args.state or Path("rapid_training") / args.out
    with several(timedelta(hours=args.patience)):
        host = Host(find_tree(args.comfyui), host_flags(args.host_arguments))
        folder = args.policies or host.policies()
        if args.kind in METHODS and args.prompts_per_update % size() and rank() == 0:
            print(
                f"{size()} processes share {args.prompts_per_update} groups an update: some will wait. Give "
                "--prompts-per-update a multiple of their number",
                flush=True,
            )
        try:
            graph = Graph.read(args.workflow, host, args.sampler, args.text)
            if len(graph.site.texts) > 1 and rank() == 0:
                where = ", ".join(f"{node}.{name}" for node, name in graph.site.texts)
                print(f"the prompt goes into {where}; --text ID.NAME names others", flush=True)
            command = shlex.join(
                [Path(sys.argv[0]).name, "--workflow", args.workflow.name, *_shown(args)]
            )
            train = {"schedule": train_plans, "threshold": train_thresholds}.get(
                args.kind, train_heads
            )
            file, table = train(
                graph,
                prompts,
                args,
                state,
                folder / f"{args.out}.safetensors",
                f"training/{command}",
            )
        except (WorkflowError, ProcessLost, ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from None
        if rank() == 0:
            print(f"{table}\npolicy: {file.path}")


def _shown(args: argparse.Namespace) -> list[str]:
    """Flags that decide the result."""
    plan = [
        "start",
        "target",
        "speedups",
        "calibration",
        "held_out",
        "plans",
        "oracle",
        "seed",
        "sampler",
        "text",
    ]
    heads = [
        "kind",
        "heads",
        "sparse_backend",
        "train_prompts",
        "iterations",
        "prompts_per_update",
        "group",
        "lr",
        "reward",
        "mode",
        "advantages",
        "omega",
        "discriminator_warm_up",
        "features",
        "discount",
        "width",
    ]
    if args.kind == "threshold":
        plan = ["kind", *(name for name in plan if name not in ("start", "plans", "oracle"))]
    elif args.kind != "schedule":
        plan = heads + [
            name
            for name in plan
            if searches(args) or name not in ("calibration", "plans", "oracle")
        ]
    given = {f"--{name.replace('_', '-')}": getattr(args, name) for name in plan}
    return [
        text
        for flag, value in given.items()
        if value not in (None, [])
        for text in (flag, *map(_named, _listed(value)))
    ]


def _named(value: object) -> str:
    return (
        value.name if isinstance(value, Path) else str(value)
    )  # where a file lies is nobody's business


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


if __name__ == "__main__":
    main()
