"""Pages of docs/results and the table of README, made from the JSON in docs/results.

After a file there has changed: python -m benchmarks.results
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import (
    METHODS,
    MODELS,
    TARGETS,
    Column,
    Row,
    figure,
    in_order,
    interval,
    number,
    table,
    text,
)

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / "docs" / "results"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- results: made by `python -m benchmarks.results` -->\n", "<!-- end of results -->\n"

HOW_TO_READ = """\
- **cost**: FLOPs as a share of the full run. **computed**: evaluations that called the model, mean per picture.
- **to the full picture**: PSNR in dB between a picture and the one of the same seed, sampler and steps with every
  evaluation computed; the mean, with its 95 % interval, the 5th percentile and the worst picture. Pictures that are equal
  bit for bit are left out of these means. Other samplers have other full pictures, so their rows show "-".
- **to the converged picture**: PSNR in dB to the exact solution of the model's ODE, which the sampler only approximates.
- **accuracy**: share of colours, backgrounds and shapes that are as the prompt says, by rules and a small classifier.
- **FID**: Fréchet distance to true scenes on that classifier's features, lower is better. It depends on the number of
  prompts: compare only rows with the same number.
- All pictures are of [small demo models](../../demo/models/README.md), 256 px, on a CPU. **Nothing here was measured on
  public weights or on a GPU.**"""


@dataclass(frozen=True)
class Page:
    """A page of docs/results."""

    name: str
    title: str
    about: str
    """One sentence for the list of pages."""
    body: Callable[[], str]

    def render(self) -> str:
        """The page in Markdown."""
        made = "<!-- Made by `python -m benchmarks.results` from the JSON beside it. -->"
        return f"{made}\n\n# {self.title}\n\n{self.about}\n\n{self.body()}\n"


def load(name: str) -> list[Row]:
    """Rows of a file in docs/results."""
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data["rows"] if isinstance(data, dict) else data


# Columns of rows of quality.
def target(row: Row) -> str:
    """The budget that a row was made for."""
    return TARGETS[row["suite"]][row["target"]]


def method(row: Row) -> str:
    """A method's name."""
    return METHODS[row["method"]]


def to_full(row: Row) -> str:
    """PSNR to the full picture, where the row has one."""
    if row["ci"] is None:
        return "equal" if row["method"] != "dense" and row["equal"] == row["prompts"] else "-"
    return interval(row["psnr"], row["ci"])


QUALITY = [
    Column("method", method),
    Column("prompts", lambda row: str(row["prompts"])),
    figure("cost", "cost", 2),
    figure("computed", "computed"),
    Column("to the full picture", to_full),
    Column("5th percentile", lambda row: number(row["psnr_p5"] if row["ci"] else None)),
    Column("worst", lambda row: number(row["psnr_worst"] if row["ci"] else None)),
    figure("to the converged picture", "psnr_ode"),
    figure("accuracy", "accuracy", 3),
    figure("FID", "fid", 3),
]


def quality(name: str, model: str, extra: list[Column] | None = None) -> str:
    """A file's rows of one model."""
    columns = [Column("target", target), *QUALITY]
    columns[4:4] = extra or []
    return table(columns, in_order(row for row in load(name) if row["model"] == model))


def differences(suite: str, model: str) -> str:
    """Paired differences on one model."""
    rows = [r for r in load("differences") if (r["suite"], r["model"]) == (suite, model)]
    goals = {"full": "the full picture", "converged": "the converged picture"}
    columns = [
        Column("target", target),
        Column("method", method),
        Column("against", lambda row: METHODS[row["against"]]),
        Column("nearer to", lambda row: goals[row["to"]]),
        Column("prompts", lambda row: str(row["prompts"])),
        Column("difference, dB", lambda row: interval(row["difference"], row["ci"], sign=True)),
    ]
    return table(columns, in_order(rows))


def demo() -> str:
    """The demo's own comparison, and the demo models."""
    speed = [
        Column("model", lambda row: MODELS[row["model"]]),
        Column("method", method),
        figure("computed", "computed"),
        figure("seconds", "seconds", 2),
        figure("measured speed-up", "speedup", 2),
        figure("theoretical speed-up", "allowed_speedup", 2),
        Column("to the full picture", to_full),
        Column("worst", lambda row: number(row["psnr_worst"] if row["ci"] else None)),
        figure("to the converged picture", "psnr_ode"),
        figure("SSIM", "ssim", 4),
        figure("accuracy", "accuracy", 3),
    ]
    return f"""\
`python3 dev.py demo --prompts 32`: 28 Euler steps, 32 prompts that were not used for anything else, cfg 2.5 on the SD3-like
model. Quality at 256 px; seconds at 512 px, median of 5 prompts, methods one after the other for each prompt. ComfyUI
0.30.0, torch 2.13, x86-64 CPU, 2 threads. The threshold of each method was fitted on 16 other prompts to compute about half
of the evaluations. Fewer steps are as many as Cache Reuse computes on average, rounded up. The converged picture has 200
evaluations of a second-order solver. Data: [demo_report.json](demo_report.json).

{table(speed, load("demo_report"))}

- As shipped, EasyCache adds to its input in place, which ruins its pictures in float32 (half precision is not affected).
  Here it was given a copy of its input. On SD3 it skips nothing, since it wraps a call that SD3's model does not make.
- The two worst pictures of Cache Reuse on the FLUX-like model are at 34.4 and about 35 dB, below the worst of fewer steps.
- The demo's scenes are easy: all methods show what the prompt says, and differ in details.
- A second-order solver is a stronger rival than fewer Euler steps: 19 or 20 steps of dpmpp_2m come nearer to the converged
  picture (47 to 49 dB on 4 to 8 prompts) than 28 steps of Euler. See [one dial](one_dial.md).

## The demo models themselves

`python -m demo.evaluate`, 256 px, 28 Euler steps. The classifier is right on 100 % of true scenes. Data:
[logs](../../demo/models/logs).

{models()}

At 512 px (24 prompts) colours and backgrounds are 1.000 with FLUX-like and SD3-like, shapes 0.970 and 0.924. Trained for 5.1
(the last half hour on two cores), 2.3 and 3.2 hours on one CPU core each. The Lumina-like model was never tuned on. How rough
the trajectories are (relative change of the derivative from step to step): FLUX-like 0.03 to 0.04 at first, 0.014 to 0.03 in
the middle, 0.18 at the last step; SD3-like with guidance 0.19 to 0.26, 0.04 and 0.17. Public models were not measured."""


def models() -> str:
    """What the demo models draw."""
    rows = []
    for name, title in MODELS.items():
        path = REPOSITORY / "demo" / "models" / "logs" / f"{name}_evaluation.json"
        rows.append({"title": title, **json.loads(path.read_text(encoding="utf-8"))})
    columns = [
        Column("model", lambda row: f"{row['title']}, cfg {row['settings']['cfg']:g}"),
        Column("prompts", lambda row: str(row["settings"]["prompts"])),
        Column("object colour", lambda row: number(row["model"]["object_colour"], 3)),
        Column("background", lambda row: number(row["model"]["background"], 3)),
        Column("shape", lambda row: number(row["model"]["shape"], 3)),
        Column("to the converged picture", lambda row: number(row["psnr_to_ode"]["mean"])),
        Column("worst", lambda row: number(row["psnr_to_ode"]["worst"])),
        Column("of prompts", lambda row: str(row["psnr_to_ode"]["prompts"])),
    ]
    return table(columns, rows)


def one_dial() -> str:
    """RAPID Accelerate and its rivals."""
    return f"""\
`python3 dev.py bench policy --models flux --speedups 2 2.8 3 4` and `--models sd3 --speedups 2 3 4`: 28 Euler steps, cfg 2.5
on the SD3-like model, scheduler `simple`. Data: [policy_flux.json](policy_flux.json), [policy_sd3.json](policy_sd3.json),
[differences.json](differences.json).

{HOW_TO_READ}
- The searched schedules are [demo-flux-solution](../../policies/demo-flux-solution.md) and
  [demo-sd3-solution](../../policies/demo-sd3-solution.md). They were searched on 16 and 8 other prompts towards the same
  converged solution that they are measured against, while samplers keep their scheduler.
- Caches have the smallest threshold that meets the cost on 8 development prompts. EasyCache and LazyCache keep their own
  start and end; with these they cannot compute as little as a quarter. Cache Reuse at 4x, or without its safety check,
  skips more in a row than by default.
- RAPID3's heads are [ours](../training.md#heads), on a small scale: 32 channels, 40 prompts, 1,920 rollouts, rewarded by
  nearness to the solution in place of ImageReward, a discriminator on random features in place of CLIP, dense attention at
  256 px. They choose their cost themselves, at 1.1x freely. At 2x, 3x and 4x they are stopped when the budget is spent, which
  they were not trained for.

## FLUX-like

{quality("policy_flux", "flux")}

## SD3-like, cfg 2.5

{quality("policy_sd3", "sd3")}

## Differences, paired over prompts

FLUX-like:

{differences("policy", "flux")}

SD3-like:

{differences("policy", "sd3")}

## What this says

- The searched schedule is nearest to the converged picture at every budget of both models. A third of FLUX-like's
  evaluations, placed and weighted well, is nearer to it (46.5 dB) than all 28 are (43.8).
- To the full picture, without a policy file, Accelerate is ahead of Cache Reuse except on FLUX-like at 2x, and always ahead
  of fewer steps. The worst pictures of SD3-like at 4x are as bad as those of as few steps (18.3 and 19.5 dB).
- Cache Reuse cannot skip two thirds of SD3-like's evaluations with its safety check on (at thresholds up to 1), and without
  it goes wrong at 4x.
- At 2.8x, where RAPID3 claims no loss, FLUX-like's FID with the schedule is 0.241 (full run 0.243, other noise 0.252 to
  0.329, so both are below that range), and 97.5 % of colours, backgrounds and shapes are right (full run 97.8, other noise
  98.2 to 98.3). LazyCache has low FIDs on FLUX-like and is farthest from the model's own pictures.
- heun, uni_pc and res_multistep are not ahead of dpmpp_2m anywhere.
- Deciding by the picture gained nothing. RAPID3's heads spend 15.3 evaluations on scenes of three and more objects and 14.1
  on others; with the decisions made for other pictures theirs are as good. Heads on a schedule learn to follow it: with each
  of three seeds, and on SD3-like, their pictures are those of the schedule. Cache Reuse does give crowded scenes more (at 2x
  12.4 evaluations without objects and 15.9 with six on FLUX-like; 12.5 and 15.2 on SD3-like) and stays behind the schedule.
- Schedules of another search (seed 70000) are 0.5 to 1.6 dB behind the shipped ones."""


def region() -> str:
    """RAPID Region Adaptive and its rivals."""
    clock = [
        Column("model", lambda row: f"{MODELS[row['model']]}, {row['steps']} steps"),
        Column("share of tokens", lambda row: {0.1875: "3/16"}.get(row["share"], f"1/{1 / row['share']:.0f}")),
        Column("full run, s", lambda row: number(sum(row["dense_seconds"]) / len(row["dense_seconds"]), 0)),
        figure("seconds", "seconds", 0),
        figure("measured speed-up", "speedup", 2),
        figure("theoretical speed-up", "allowed", 2),
        figure("measured / theoretical", "of_allowed", 2),
        figure("keys and values, MiB", "mebibytes", 0),
    ]
    parts = {model: quality(f"region_{model}", model) for model in ("sd3", "flux", "lumina")}
    pairs = {model: differences("region", model) for model in ("sd3", "flux", "lumina")}
    return f"""\
`python3 dev.py bench region --models sd3 flux lumina`: 28 Euler steps (Lumina-like 30), cfg 2.5 on SD3-like and Lumina-like.
Everything is compared at the cost of "fixed share" or just above, except the published schedule, which is cheaper at 1/2
and 1/4. Data: [region_sd3.json](region_sd3.json), [region_flux.json](region_flux.json),
[region_lumina.json](region_lumina.json), [differences.json](differences.json).

{HOW_TO_READ}
- **target**: share of the tokens that "fixed share" computes in its partial evaluations; beside these some evaluations
  compute all tokens. The last target is about the published headline cost.
- References of the first 64 prompts (SD3-like) and 24 (FLUX-like) are Heun's with 100 steps, the others ipndm's with 100
  (67 dB and more from Heun's, at half the evaluations).
- Thresholds of "per-token error" and of Cache Reuse were fitted to the cost on 8 development prompts. Nothing else was tuned
  on the Lumina-like model.

## SD3-like, cfg 2.5

{parts["sd3"]}

## FLUX-like

{parts["flux"]}

## Lumina-like, cfg 2.5, 30 steps

{parts["lumina"]}

## Differences, paired over prompts

SD3-like:

{pairs["sd3"]}

FLUX-like:

{pairs["flux"]}

Lumina-like:

{pairs["lumina"]}

## What this says

- Per-token error, the node's default, is nearer to the full picture than a fixed share at the same cost, on all models.
- The published method is 20 to 23 dB farther from the full picture; its schedule costs 14 % (1/2) to 28 % (1/4) less. At the
  published headline cost (0.39; ours 1 to 3 % more) it is 7.7 and 8.8 dB farther. What makes the difference is that keys
  and values of tokens that are not computed are predicted.
- Against Cache Reuse, which skips whole evaluations, it is ahead on SD3-like at 1/2, level at 1/4, and behind on FLUX-like.
  It comes nearest at high costs, where single tokens can wait but no whole evaluation can. Demo pictures are smooth in time,
  which favours skipping whole evaluations.
- On Lumina-like `paper` is farthest from the full and from the converged picture, yet its FID is the lowest (0.156 and 0.152
  against 0.171) and its accuracy level (0.938 against 0.934): FID says little between pictures that all show what they should.
- At the headline cost a fixed share is no way to sample Lumina-like: skip whole evaluations there. "Per-token error" cannot
  be had at that cost.
- To the converged picture, at 1/2 and 1/4 on SD3-like and FLUX-like, fewer steps of dpmpp_2m are ahead of every row on Euler's
  steps, and of the full Euler run except at 1/4 on SD3-like. At 0.39 of the cost they are not.
- On dpmpp_2m itself the nodes add to it (24 prompts): at 0.6 of the cost Cache Reuse is 4.9 and 3.6 dB nearer to the
  converged picture than fewer steps of dpmpp_2m, per-token error 5.0 and 3.8.
- Full Euler with 30 steps is no nearer to Lumina-like's converged picture than 22 steps of dpmpp_2m.
- The one SD3-like picture at 20 dB is "gradient blue background, huge orange checked cross top left": the prompt does not say
  which way the gradient runs. Fixed share, random and `paper` turn it by 90 degrees; the cross is there. Per-token error
  keeps it.

## Seconds

`python3 dev.py bench clock`: random weights of hidden size 480 or 512, 6 to 8 blocks, 4,096 image tokens (1024 px) and 77
text tokens, no guidance, float32, one thread of an x86-64 CPU, ComfyUI 0.30.0, torch 2.13. Six evaluations of each run
compute all tokens, as in the published schedules. The whole sampling loop, against the mean of a full run before and one
after it. Data: [region_clock.json](region_clock.json).

{table(clock, load("region_clock"))}

The machine's other core was busy meanwhile, except for the Lumina-like model at 1/4, which was measured again alone: beside
other work it had come to 2.18, 0.89 of the theoretical speed-up. An earlier run of the FLUX-like model, compared with the
mean of three full runs while the machine sped up from 162 to 137 s, gave 0.89, 0.97, 0.97 and 1.05 (1/2 to 1/8). The paper's
headline speed-ups are 2.36 on SD3 (28 steps) and 2.51 on Lumina (30 steps); at a share of 3/16 the clock shows 2.80 and 2.55."""


def sparse() -> str:
    """RAPID Sparse Attention and its rivals."""
    costs = {
        name: {(r["model"], r["target"], r["method"]): r for r in load(f"sparse_{name}")}
        for name in ("flux-dev", "sd3-medium")
    }

    def cost_as(name: str) -> Column:
        return Column(
            f"cost as {name}",
            lambda row: number(costs[name][row["model"], row["target"], row["method"]]["cost"], 2),
        )

    extra = [cost_as(name) for name in costs]
    return f"""\
Most of this is not in its favour.

{HOW_TO_READ}

## Attention mass

Share of the true attention mass that is kept, on queries and keys recorded from three evaluations of development prompts
(`python3 dev.py bench sparse --parts mass`). "Best possible" knows the mass; "RAPID of best" is the mean over attentions,
and the worst of them. Data: [sparse_mass.json](sparse_mass.json).

{mass()}

The demo models spread their attention widely: even the best quarter of the tiles holds only 60 to 75 % of the mass.

## Seconds

Speed-up of one attention with selection, against the faster of ComfyUI's and PyTorch's own; hidden size 512, 77 text tokens,
one thread of an idle x86-64 CPU, float32, medians of 9 (`python3 dev.py bench sparse --parts clock`). Data:
[sparse_clock.json](sparse_clock.json).

{sparse_clock()}

"Difference predicted" keeps its tiles from the measurement; an evaluation that measures takes a dense and a sparse attention.
Earlier runs of the same code, some beside other work, gave 1.15 to 1.5 and 1.97 to 2.5 with means at 4,096 tokens.

## Quality

`python3 dev.py bench sparse --parts quality --models flux sd3 --prompts 24`: 28 Euler steps, tiles of 16 tokens; the first
block is dense, and every third evaluation has dense attention and measures the difference. The cost is that of the demo
model, and of the same decisions on FLUX.1-dev and SD3-medium at 1024 px. Rivals are fitted to the cost on the demo model.
Data: [sparse_demo.json](sparse_demo.json), [sparse_flux-dev.json](sparse_flux-dev.json),
[sparse_sd3-medium.json](sparse_sd3-medium.json).

FLUX-like:

{quality("sparse_demo", "flux", extra)}

SD3-like, cfg 2.5:

{quality("sparse_demo", "sd3", extra)}

## What this says

- Keeping the difference to dense attention gains 23 to 29 dB over means alone.
- It is still a loss. Attention is a tenth of the demo models' cost at 256 px and a fifth of FLUX.1-dev's at 1024 px, and an
  evaluation that measures costs more than a full one. What sparse attention saves, skipping one evaluation in twenty saves at
  67 to 75 dB.
- Costed as SD3-medium, where attention is a third, density 0.125 comes to 0.86 of the full cost at 51 to 52 dB; Cache Reuse has
  58 and 60 dB at 0.73 and 0.74 ([region adaptive](region_adaptive.md)).
- It does not add to Cache Reuse: on 8 development prompts of each model Cache Reuse alone was 3 to 8 dB better at every cost,
  since its estimate takes the error of sparse attention for roughness."""


def mass() -> str:
    """Attention mass by selection."""
    rows = load("sparse_mass")
    kept = {(r["model"], r["size"], r["tile"], r["density"], r["selection"]): r for r in rows}
    keys = sorted({key[:4] for key in kept}, key=lambda k: (k[0], -k[2], -k[1], -k[3]))
    names = {
        "RAPID": "ours",
        "best possible": "oracle",
        "local window": "window",
        "random tiles": "random",
    }

    def share(selection: str) -> Callable[[Row], str]:
        return lambda row: number(kept[*row["key"], selection]["mass"], 3)

    def of_best(row: Row) -> str:
        ours = kept[*row["key"], "ours"]
        return f"{number(ours['of_oracle'], 3)}, {number(ours['worst_of_oracle'], 3)}"

    columns = [
        Column("model, size", lambda row: f"{MODELS[row['key'][0]]}, {row['key'][1]} px"),
        Column("tile", lambda row: str(row["key"][2])),
        Column("density", lambda row: str(row["key"][3])),
        *(Column(title, share(selection)) for title, selection in names.items()),
        Column("RAPID of best: mean, worst", of_best),
    ]
    return table(columns, ({"key": key} for key in keys))


def sparse_clock() -> str:
    """Speed-ups of single attentions."""
    rows = [row for row in load("sparse_clock") if row["backend"] == "gather"]
    by = {(r["tokens"], r["head_size"], r["density"], r["left_out"]): r["speedup"] for r in rows}
    keys = sorted({key[:3] for key in by}, key=lambda k: (-k[0], k[1], -k[2]))
    stands_in = {"nothing stands in": "dropped", "means": "means", "difference predicted": "forecast"}

    def speedup(kind: str) -> Callable[[Row], str]:
        return lambda row: number(by[*row["key"], kind], 2)

    columns = [
        Column("image tokens", lambda row: f"{row['key'][0]:,}"),
        Column("heads of", lambda row: str(row["key"][1])),
        Column("density", lambda row: str(row["key"][2])),
        *(Column(title, speedup(kind)) for title, kind in stands_in.items()),
    ]
    return table(columns, ({"key": key} for key in keys))


def heads() -> str:
    """Trained heads."""
    trained = [
        Column("heads", lambda row: f"{MODELS[row['model']]}, {row['what']}"),
        text("seed", "seed"),
        text("updates", "updates"),
        text("held-out prompts", "prompts"),
        Column("speed-ups", lambda row: ", ".join(f"{budget}x" for budget in row["budgets"])),
        Column("dB to the converged solution", same_as_schedule),
    ]
    ablations = [
        text("heads", "heads"),
        text("reward", "reward"),
        Column("discriminator", lambda row: "yes" if row["discriminator"] else "no"),
        Column("equivalent steps", lambda row: f"{row['equivalent_steps']:g}"),
        figure("dB to the converged solution", "psnr"),
    ]
    return f"""\
How they are trained is in [training](../training.md#heads), what else was tried in [the laboratory book](../lab.md). Their
pictures beside those of their rivals are in [one dial](one_dial.md). PSNR here is of latents.

## Heads that begin with a searched schedule (`rapid+`)

They learn that leaving their schedule costs, and nothing more: on held-out prompts no decision is another than the
schedule's. Data: [heads_trained.json](heads_trained.json).

{table(trained, load("heads_trained"))}

In `--mode average` every picture is given the schedule's evaluations too, crowded or empty, though the price of more fell to
0 at 3x.

## RAPID3's heads

After 60 updates they are at 46.7 dB on 16 held-out prompts at 14.8 equivalent steps (9 to 17); a searched schedule has 52.7 dB
at 14. That was with dense attention at 256 px. Trained once more with `--sparse-backend gather` they never choose sparse
attention either: 47.0 dB at 15.2 (14 to 17).

Ablations: 15 updates of 2 prompts, one seed, the same 16 held-out prompts, `--sparse-backend gather`. The searched schedule has
51.7 dB at 9. Data: [heads_ablations.json](heads_ablations.json).

{table(ablations, load("heads_ablations"))}

At 28 equivalent steps the cache head never reuses and the sparse head is never sparse. What differs is above all how much they
spend: a reward that hardly falls with quality buys speed. To the judge the shapes of pictures of one or two evaluations are
as probable (0.89) as those of full ones (0.91), and SSIM, at which the demo's smooth scenes are all alike, is 0.95 at 33 dB;
so neither says when to stop. All are behind the searched schedule, which is no wonder after 240 rollouts."""


def same_as_schedule(row: Row) -> str:
    """What was measured of heads that follow their schedule."""
    figures = ", ".join(number(value) for value in row["psnr"] or [])
    return f"the schedule's: {figures}" if figures else "the schedule's"


PAGES = (
    Page(
        "demo",
        "The demo's comparison",
        "RAPID Cache Reuse beside ComfyUI's own EasyCache and LazyCache, and fewer steps; the demo models.",
        demo,
    ),
    Page(
        "one_dial",
        "One dial: RAPID Accelerate",
        "RAPID Accelerate with and without a policy file, Cache Reuse, caches, heads and fewer steps at equal cost.",
        one_dial,
    ),
    Page(
        "region_adaptive",
        "RAPID Region Adaptive",
        "Some tokens in place of all, beside the published method, Cache Reuse and fewer steps at equal cost; seconds.",
        region,
    ),
    Page(
        "sparse_attention",
        "RAPID Sparse Attention",
        "Attention mass, seconds of single attentions, and pictures.",
        sparse,
    ),
    Page("heads", "Trained heads", "Learned policies: what they learned, and ablations.", heads),
)


def index() -> str:
    """docs/results/README.md."""
    pages = "\n".join(f"- [{page.title}]({page.name}.md): {page.about}" for page in PAGES)
    return f"""\
<!-- Made by `python -m benchmarks.results`. -->

# Results

Every page is made by `python -m benchmarks.results` from the JSON files beside it.

{pages}

How to read the tables:

{HOW_TO_READ}
"""


# README's five rows: a name, and the method on each model.
FIVE = (
    ("**RAPID Accelerate**, `speedup` 2", {"flux": "default_plan", "sd3": "default_plan"}),
    ("**RAPID Cache Reuse**", {"flux": "cache_reuse", "sd3": "cache_reuse"}),
    ("no pack, half of the steps with euler", {"flux": "fewer_euler", "sd3": "fewer_euler"}),
    ("no pack, half of the steps with dpmpp_2m", {"flux": "fewer_dpmpp_2m", "sd3": "fewer_dpmpp_2m"}),
    ("ComfyUI's EasyCache (FLUX-like), LazyCache (SD3-like)", {"flux": "easycache", "sd3": "lazycache"}),
)


def five_rows() -> str:
    """README's table: about half of the evaluations, both models."""
    figures = {
        (row["model"], row["method"]): row
        for model in ("flux", "sd3")
        for row in load(f"policy_{model}")
        if row["target"] == "2x"
    }

    def cell(model: str, name: str) -> Callable[[Row], str]:
        return lambda row: decibels(figures[model, row["methods"][model]][name])

    columns = [
        text("about half of the evaluations", "name"),
        *(
            Column(f"{MODELS[model]}: to the {goal} picture", cell(model, name))
            for model in ("flux", "sd3")
            for goal, name in (("full", "psnr"), ("converged", "psnr_ode"))
        ),
    ]
    return table(columns, ({"name": name, "methods": methods} for name, methods in FIVE))


def decibels(value: float | None) -> str:
    """A PSNR with its unit."""
    return "-" if value is None else f"{value:.1f} dB"


def with_rows(readme: str) -> str:
    """A README with its five rows as they should be."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{five_rows()}\n\n{END}{rest.split(END)[1]}"


def files() -> dict[Path, str]:
    """What every made file should hold."""
    pages = {FOLDER / f"{page.name}.md": page.render() for page in PAGES}
    readme = with_rows(README.read_text(encoding="utf-8"))
    return {FOLDER / "README.md": index(), **pages, README: readme}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8", newline="\n")
