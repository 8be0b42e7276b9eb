"""Kinds `rapid3` and `rapid+`: what heads begin with, learning (`grpo`), and what they are worth on
prompts they have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from tqdm import tqdm

from evaluation.plots import Panel
from rapid_core.calibration.search import latent_psnr
from rapid_core.policy_file.format import PolicyFile
from rapid_core.reasons import text
from rapid_core.techniques.sparse_attention.policy import SparsePolicy
from rapid_core.types import Sparsity
from training.grpo import Trainer
from training.host import attach, last_record
from training.job import Job, Result
from training.methods import DENSITIES, Method, Published, RapidPlus
from training.processes import all_gather, broadcast_from_rank0, rank, shard
from training.schedules import read_schedules, train_schedules
from training.scorer import scorer_for
from training.state import JsonCache


def train_heads(job: Job) -> tuple[PolicyFile, str]:
    """Train heads on the first prompts, measure them on the last `held_out` ones, and write them;
    returns the file and its card's table."""
    scorer = scorer_for(job)
    heads = tuple(broadcast_from_rank0(lambda: list(useful_heads(job))))
    job = replace(job, config=replace(job.config, heads=heads))
    config = job.config
    split = len(job.prompts) - config.held_out
    held_out = job.prompts[split:]
    job = replace(job, prompts=job.prompts[:split])
    method = method_of(job)
    learned_on = replace(job, prompts=job.prompts[: config.train_prompts])
    trainer = Trainer(learned_on, method, scorer, held_out)
    trainer.train()
    rows = [measure(trainer, budget, split) for budget in method.speedups]
    text_table = table(rows)
    file = job.finish(
        Result(
            kind="heads",
            metadata={
                "method": config.kind,
                "measured": rows,
                **method.metadata(trainer.heads, scorer.about),
            },
            tensors=method.tensors(trainer.heads),
            policies={
                f"{budget:g}": method.policy(trainer.heads, budget) for budget in method.speedups
            },
            clock_prompt=held_out[0],
            clock_seed=config.seed + split,
            clock_file=f"clock-{trainer.iteration}.json",
            about=f"Heads of kind {config.kind}. PSNR of latents to {config.target_in_words}, on "
            "prompts not learned on:",
            table=text_table,
            panels=panels(trainer.log, rows),
        )
    )
    ends = {
        f"held_out/{key}_{r['budget']:g}x": r[key]
        for r in rows
        for key in ("psnr", "equivalent_steps")
    }
    trainer.board.add(trainer.iteration, ends)
    trainer.board.close()
    return file, text_table


def useful_heads(job: Job) -> Sequence[str]:
    """The heads to train: without the sparse one where attention stays dense whatever it says,
    since what is void is no choice. Raises ValueError where none is left."""
    config = job.config
    if "sparse" not in config.heads:
        return config.heads
    policy = SparsePolicy(density=min(DENSITIES), sparsity=Sparsity(config.sparse_backend))
    model = attach(job.graph.model, policy)
    job.graph.sample(job.prompts[0], config.seed, model)
    record = last_record(model)
    if any(e.cost[0] < e.full_cost[0] for e in record.evaluations):
        return config.heads
    others = [name for name in config.heads if name != "sparse"]
    why = "; ".join(map(text, record.notes))
    problem = f"the sparse head has nothing to choose on this machine: {why}"
    remedy = ""
    if config.sparse_backend == "auto":
        remedy = "; --sparse-backend gather computes it all the same"
    if not others:
        raise ValueError(problem + remedy)
    if rank() == 0:
        print(f"{problem}. Trained are {', '.join(others)}{remedy}", flush=True)
    return others


def method_of(job: Job) -> Method:
    """What the config's kind names. rapid+ begins with the schedule file `start`, or with one that
    is searched now on these prompts. Raises ValueError for a file that does not go with the
    workflow or the flags."""
    config = job.config
    if config.kind == "rapid3":
        return Published(config)
    if config.start is not None:
        return RapidPlus(config, read_schedules(config.start, job.graph))
    search = replace(
        job,
        config=replace(config, kind="schedule"),
        state=job.state / "plan",
        out=job.out.with_stem(f"{job.out.stem}-plan"),
    )
    file, _ = train_schedules(search)
    return RapidPlus(config, file)


def measure(trainer: Trainer, budget: float, first: int) -> dict[str, float]:
    """The heads' most likely choices on prompts they have not seen, the first of that number, and
    those of fresh heads: of rapid+, the schedule."""
    folder = trainer.job.state / f"held_out-{trainer.iteration}"
    own = []
    bar = tqdm(
        shard(list(enumerate(trainer.held_out))),
        desc=f"held out at {budget:g}x",
        unit="picture",
        disable=rank() > 0,
    )
    for i, prompt in bar:

        def once(i: int = i, prompt: str = prompt) -> tuple[float, float, float]:
            target = trainer.reference_of(prompt, first + i)
            latents, steps = trainer.draw(target, budget)
            untrained, _ = trainer.draw(target, budget, heads=trainer.fresh)
            psnr = latent_psnr(latents, target.latent)
            return psnr, steps[0], latent_psnr(untrained, target.latent)

        # A file a picture: processes share the folder, and a killed one goes on where it was.
        cache = JsonCache(folder / f"{budget:g}-{i}.json", alone=True)
        own.append(cache.get("psnr, equivalent steps, psnr untrained", once))
    psnr, steps, untrained = zip(*all_gather(own), strict=True)
    return {
        "budget": budget,
        "psnr": mean(psnr),
        "worst": min(psnr),
        "equivalent_steps": mean(steps),
        "least_steps": min(steps),
        "most_steps": max(steps),
        "psnr_untrained": mean(untrained),
    }


def table(rows: Sequence[dict[str, float]]) -> str:
    """What was measured on held-out prompts, as Markdown."""
    head = (
        "| budget | equivalent steps (least, most) | PSNR of the latent, dB | worst | "
        "before training |"
    )
    lines = [
        f"| {r['budget']:g} | "
        f"{r['equivalent_steps']:.2f} ({r['least_steps']:.2f}, {r['most_steps']:.2f}) | "
        f"{r['psnr']:.2f} | {r['worst']:.2f} | {r['psnr_untrained']:.2f} |"
        for r in rows
    ]
    return "\n".join([head, "|" + "---|" * 5, *lines])


def panels(log: Sequence[dict], rows: Sequence[dict[str, float]]) -> list[Panel]:
    """Plots of the card: the course of training, and held-out prompts."""
    updates = [line["iteration"] for line in log]
    steps = [r["equivalent_steps"] for r in rows]
    quality = {"rollouts": (updates, [line["psnr"] for line in log])}
    reward = {"reward": (updates, [line["reward"] for line in log])}
    ends = {
        "heads": (steps, [r["psnr"] for r in rows]),
        "worst": (steps, [r["worst"] for r in rows]),
    }
    return [
        Panel("quality while learning", "update", "PSNR, dB", quality),
        Panel("rewards", "update", "mean reward", reward),
        Panel("held-out prompts", "equivalent steps", "PSNR, dB", ends),
    ]
