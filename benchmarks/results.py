"""Tables of README and docs/results, made from the JSON in docs/results.

A page holds its words, and for each table two marks; what is between them is made here. After a file
of figures has changed: python -m benchmarks.results
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.dial.curve import TOLERANCE
from benchmarks.names import METHODS, MODELS, RELEASES, TARGETS, TOPICS, in_order
from devkit.base_folder import REPOSITORY
from evaluation.rows import read
from evaluation.tables import Column, Row, figure, interval, number, table, text

FOLDER = REPOSITORY / "docs" / "results"
MARKED = re.compile(
    r"(?P<begin><!-- table (?P<name>[\w-]+): made by `python -m benchmarks\.results` -->\n)"
    r".*?"
    r"(?P<end><!-- end of table -->)",
    re.DOTALL,
)


def pages() -> list[Path]:
    """Pages with tables that are made here."""
    return [REPOSITORY / "README.md", *sorted(FOLDER.glob("*.md"))]


def with_tables(page: str) -> str:
    """A page with its tables as they should be. Raises KeyError for a table that is not known."""

    def made(match: re.Match[str]) -> str:
        return f"{match['begin']}\n{TABLES[match['name']]()}\n\n{match['end']}"

    return MARKED.sub(made, page)


def load(name: str) -> list[Row]:
    """Rows of a file in docs/results, under the names of today."""
    return read(FOLDER / f"{name}.json")


# Columns of rows of quality.
def model(row: Row) -> str:
    """A model's name."""
    return MODELS[row["model"]]


def target(row: Row) -> str:
    """The budget that a row was made for."""
    return TARGETS[row["suite"]][row["target"]]


def method(row: Row) -> str:
    """A method's name."""
    return METHODS[row["method"]]


def to_full(row: Row) -> str:
    """PSNR to the full picture with its interval, where the row has one."""
    if row["ci"] is None:
        return "equal" if row["method"] != "full" and row["equal"] == row["prompts"] else "-"
    return interval(row["psnr"], row["ci"])


def worst(row: Row) -> str:
    """The worst picture, where any differs from the full one."""
    return number(row["psnr_worst"] if row["ci"] else None)


def fifth(row: Row) -> str:
    """The 5th percentile, where any picture differs from the full one."""
    return number(row["psnr_p5"] if row["ci"] else None)


CONVERGED = figure("to the converged picture", "psnr_ode")
QUALITY = [
    Column("method", method),
    text("prompts", "prompts"),
    figure("cost", "cost", 2),
    figure("computed", "computed"),
    Column("to the full picture", to_full),
    Column("5th percentile", fifth),
    Column("worst", worst),
    CONVERGED,
    figure("accuracy", "accuracy", 3),
    figure("FID", "fid", 3),
]


def quality(name: str, of: str, costs: tuple[str, ...] = (), suite: str = "") -> str:
    """A file's rows of the model `of`. costs: files of the same rows, costed as other models; suite:
    of the rows, where the file has several."""
    columns = [Column("target", target), *QUALITY]
    columns[4:4] = [cost_as(cost) for cost in costs]
    rows = (row for row in load(name) if row["model"] == of and suite in ("", row["suite"]))
    return table(columns, in_order(rows))


def cost_as(name: str) -> Column:
    """The cost of the same decisions on another model."""
    costs = {(r["model"], r["target"], r["method"]): r["cost"] for r in load(f"sparse_{name}")}
    return Column(
        f"cost as {name}",
        lambda row: number(costs[row["model"], row["target"], row["method"]], 2),
    )


def differences(suite: str, of: str) -> str:
    """Paired differences on the model `of`."""
    goals = {"full": "the full picture", "converged": "the converged picture"}
    columns = [
        Column("target", target),
        Column("method", method),
        Column("against", lambda row: METHODS[row["against"]]),
        Column("nearer to", lambda row: goals[row["to"]]),
        text("prompts", "prompts"),
        Column("difference, dB", lambda row: interval(row["difference"], row["ci"], sign=True)),
    ]
    found = (row for name in ("differences", "dial_differences") for row in load(name))
    rows = [r for r in found if (r["suite"], r["model"]) == (suite, of)]
    return table(columns, in_order(rows))


# The dial.
def curve(of: str) -> str:
    """Some places of the curve of every sampler, and where it is not monotone."""
    shown = (1.2, 1.5, 2.0, 3.0, 4.0, 6.0)
    data = json.loads((FOLDER / f"curve-{of}.json").read_text(encoding="utf-8"))
    rows: dict[str, Row] = {}
    for point in data["points"]:
        row = rows.setdefault(point["sampler"], {"sampler": point["sampler"]})
        row[f"{point['speedup']:g}x"] = point

    def place(speedup: float) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            point = row[f"{speedup:g}x"]
            return ", ".join(number(point[name]) for name in ("mean", "worst"))

        return cell

    def rises(name: str) -> Callable[[Row], str]:
        """Where pictures come nearest again at a higher speed-up, and how often they do."""

        def cell(row: Row) -> str:
            points = [p for p in data["points"] if p["sampler"] == row["sampler"]]
            behind = [
                (high[name] - low[name], low["speedup"], high["speedup"])
                for low, high in itertools.combinations(points, 2)
                if high[name] - low[name] > TOLERANCE
            ]
            if not behind:
                return "none"
            by, low, high = max(behind)
            number_of = len({speedup for _, speedup, _ in behind})
            return f"{number_of} of {len(points)}, {by:.1f} dB most ({low:g}x, {high:g}x)"

        return cell

    columns = [
        text("sampler", "sampler"),
        *(Column(f"{speedup:g}x", place(speedup)) for speedup in shown),
        Column("behind a higher speed-up in the mean", rises("mean")),
        Column("in the worst picture", rises("worst")),
    ]
    return table(columns, rows.values())


def quality_mode(of: str) -> str:
    """What mode quality gives of what is asked."""
    rows = []
    for path in sorted(FOLDER.glob(f"quality-{of}-*.json"), reverse=True):
        data = json.loads(path.read_text(encoding="utf-8"))
        rows += [{**row, "size": data["size"]} for row in data["rows"]]

    def range_of(row: Row) -> str:
        low, high = row["computed_range"]
        return f"{number(row['computed'])} ({low:.0f} to {high:.0f})"

    columns = [
        Column("size", lambda row: f"{row['size']} px"),
        text("sampler", "sampler"),
        Column("asked for", lambda row: f"{row['asked']} dB"),
        text("prompts", "prompts"),
        Column("computed of 28", range_of),
        figure("mean", "psnr"),
        figure("5th percentile", "psnr_p5"),
        figure("worst", "psnr_worst"),
        Column("at most 2 dB below", lambda row: f"{row['kept']:.0%}"),
        figure("5th percentile, mode speed with as many computed", "speed_p5"),
    ]
    return table(columns, rows)


def few(of: str) -> str:
    """One and two skipped evaluations in runs of few steps."""
    names = {
        "as_it_comes": "`speedup` 2 as it comes",
        "full_picture": "skipped and predicted (`even_so`)",
        "best_picture": "the same, `aim` best picture",
        "fewer_euler": "as many fewer Euler steps",
    }
    rows = [
        {**row, "steps": int(row["suite"].rsplit("_", 1)[1])}
        for row in load("dial_few")
        if row["model"] == of and row["method"] in names
    ]
    columns = [
        text("steps", "steps"),
        Column("skipped", lambda row: row["target"].removesuffix(" skipped")),
        Column("method", lambda row: names[row["method"]]),
        text("prompts", "prompts"),
        figure("computed", "computed"),
        Column("to the full picture", to_full),
        Column("worst", worst),
        CONVERGED,
    ]
    order = list(names)
    return table(
        columns, sorted(rows, key=lambda r: (r["steps"], r["target"], order.index(r["method"])))
    )


# Samplers.
def samplers(of: str) -> str:
    """Every sampler of the host with RAPID Accelerate as it comes, on the model `of`."""

    def how_many(row: Row) -> str:
        if row["error"] is not None:
            return "-"
        return f"{number(row['computed'])} of {number(row['evaluations'])}"

    def near(row: Row) -> str:
        return "equal" if row["equal"] == row["prompts"] else number(row["psnr"])

    columns = [
        text("sampler", "sampler"),
        Column("computed", how_many),
        Column("to its own full picture", lambda row: "-" if row["error"] else near(row)),
        figure("worst", "psnr_worst"),
        Column(
            "beside as few steps, dB",
            lambda row: interval(row.get("difference"), row.get("difference_ci"), sign=True),
        ),
        Column("what the report says", lambda row: row["error"] or row["reason"] or "-"),
    ]
    return table(columns, (row for row in load("samplers") if row["model"] == of))


# The demo.
def demo() -> str:
    """RAPID Accelerate and Cache Reuse beside ComfyUI's own caches."""
    columns = [
        Column("model", model),
        Column("method", method),
        figure("computed", "computed"),
        figure("seconds", "seconds", 2),
        figure("measured speed-up", "speedup_measured", 2),
        figure("theoretical speed-up", "speedup_theoretical", 2),
        Column("to the full picture", to_full),
        Column("worst", worst),
        CONVERGED,
        figure("SSIM", "ssim", 4),
        figure("accuracy", "accuracy", 3),
    ]
    return table(columns, load("demo_report"))


def demo_models() -> str:
    """What the demo models draw."""
    logs = REPOSITORY / "demo" / "models" / "logs"
    files = {title: logs / f"{name}_evaluation.json" for name, title in MODELS.items()}
    rows = [
        {"title": title, **json.loads(file.read_text(encoding="utf-8"))}
        for title, file in files.items()
        if file.is_file()  # a model's whose weights are there
    ]
    columns = [
        Column("model", lambda row: f"{row['title']}, cfg {row['settings']['cfg']:g}"),
        Column("prompts", lambda row: str(row["settings"]["prompts"])),
        Column("object colour", lambda row: number(row["model"].get("object_colour"), 3)),
        Column("background", lambda row: number(row["model"]["background"], 3)),
        # Of the emoji world: the object itself.
        Column("shape", lambda row: number(row["model"].get("shape", row["model"]["object"]), 3)),
        Column("to the converged picture", lambda row: number(row["psnr_to_ode"]["mean"])),
        Column("worst", lambda row: number(row["psnr_to_ode"]["worst"])),
        Column("of prompts", lambda row: str(row["psnr_to_ode"]["prompts"])),
    ]
    return table(columns, rows)


def trajectories() -> str:
    """How smooth sampling is on demo models, and how much work their pictures need."""

    def change(first: int, last: int | None) -> Callable[[Row], str]:
        def mean(row: Row) -> str:
            part = row["velocity_change"][first:last]
            return number(sum(part) / len(part), 3)

        return mean

    files = sorted(FOLDER.glob("trajectories_*.json"))
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    columns = [
        Column(
            "model", lambda row: f"{MODELS[row['settings']['model']]}, {row['settings']['world']}"
        ),
        Column("prompts", lambda row: str(row["prompts"])),
        Column("change at first", change(0, 4)),
        Column("in the middle", change(4, -4)),
        Column("in the last step", change(-1, None)),
        Column("evaluations for 40 dB", lambda row: number(row["needed_mean"])),
        Column("their deviation", lambda row: number(row["needed_deviation"])),
        Column(
            "10 %, 50 %, 90 %", lambda row: ", ".join(number(n) for n in row["needed_10_50_90"])
        ),
    ]
    return table(columns, rows)


# Seconds of RAPID Accelerate.
def accelerate_clock() -> str:
    """Seconds by speed-up, on models that are compute-bound."""
    columns = [
        Column("model", lambda row: f"{MODELS[row['model']]}, {row['steps']} steps"),
        Column("speed-up asked for", lambda row: f"{row['speedup_asked']:g}x"),
        figure("seconds", "seconds"),
        figure("measured speed-up", "speedup_measured", 2),
        figure("theoretical speed-up", "speedup_theoretical", 2),
        figure("measured / theoretical", "of_theoretical", 2),
    ]
    return table(columns, load("accelerate_clock"))


# Seconds of Region Adaptive.
def region_clock() -> str:
    """Seconds by share of tokens."""

    def share(row: Row) -> str:
        found = "3/16" if row["share"] == 0.1875 else f"1/{1 / row['share']:.0f}"
        return f"{found}, `paper`" if row.get("preset") == "paper" else found

    def sized(row: Row) -> str:
        size = row.get("pixels", 1024)
        where = "" if size == 1024 else f", {size} px"
        return f"{MODELS[row['model']]}, {row['steps']} steps{where}"

    def full_run(row: Row) -> str:
        return number(sum(row["full_seconds"]) / len(row["full_seconds"]), 0)

    columns = [
        Column("model", sized),
        Column("share of tokens", share),
        Column("full run, s", full_run),
        figure("seconds", "seconds", 0),
        figure("measured speed-up", "speedup_measured", 2),
        figure("theoretical speed-up", "speedup_theoretical", 2),
        figure("measured / theoretical", "of_theoretical", 2),
        figure("keys and values, MiB", "mebibytes", 0),
    ]
    return table(columns, load("region_clock"))


# Sparse attention.
def sparse_mass() -> str:
    """Attention mass by selection."""
    selections = {
        "RAPID": "ours",
        "best possible": "oracle",
        "local window": "window",
        "random tiles": "random",
    }
    rows: dict[tuple, Row] = {}
    for row in load("sparse_mass"):
        case = (row["model"], -row["tile"], -row["size"], -row["density"])
        rows.setdefault(case, dict(row))[row["selection"]] = row

    def mass(selection: str) -> Callable[[Row], str]:
        return lambda row: number(row[selection]["mass"], 3)

    def of_best(row: Row) -> str:
        ours = row["ours"]
        return f"{number(ours['of_oracle'], 3)}, {number(ours['worst_of_oracle'], 3)}"

    columns = [
        Column("model, size", lambda row: f"{MODELS[row['model']]}, {row['size']} px"),
        text("tile", "tile"),
        text("density", "density"),
        *(Column(title, mass(selection)) for title, selection in selections.items()),
        Column("RAPID of best: mean, worst", of_best),
    ]
    return table(columns, (rows[case] for case in sorted(rows)))


def sparse_clock() -> str:
    """Speed-ups of single attentions."""
    stands_in = {
        "nothing stands in": "none",
        "means": "means",
        "difference predicted": "predict",
    }
    rows: dict[tuple, Row] = {}
    for row in load("sparse_clock"):
        if row["backend"] == "gather":
            case = (-row["tokens"], row["head_size"], -row["density"])
            rows.setdefault(case, dict(row))[row["compensation"]] = row

    def speedup(kind: str) -> Callable[[Row], str]:
        return lambda row: number(row[kind]["speedup_measured"], 2)

    columns = [
        Column("image tokens", lambda row: f"{row['tokens']:,}"),
        text("heads of", "head_size"),
        text("density", "density"),
        *(Column(title, speedup(kind)) for title, kind in stands_in.items()),
    ]
    return table(columns, (rows[case] for case in sorted(rows)))


# Trained heads.
def heads_trained() -> str:
    """Heads that begin with a searched schedule."""

    def psnr(row: Row) -> str:
        figures = ", ".join(number(value) for value in row["psnr"] or [])
        return f"the schedule's: {figures}" if figures else "the schedule's"

    columns = [
        Column("heads", lambda row: f"{MODELS[row['model']]}, {row['what']}"),
        text("seed", "seed"),
        text("updates", "updates"),
        text("held-out prompts", "prompts"),
        Column("speed-ups", lambda row: ", ".join(f"{budget}x" for budget in row["budgets"])),
        Column("dB to the converged solution", psnr),
    ]
    return table(columns, load("heads_trained"))


def heads_ablations() -> str:
    """RAPID3's heads under other rewards, and by themselves."""
    columns = [
        text("heads", "heads"),
        text("reward", "reward"),
        Column("discriminator", lambda row: "yes" if row["discriminator"] else "no"),
        Column("equivalent steps", lambda row: f"{row['equivalent_steps']:g}"),
        figure("dB to the converged solution", "psnr"),
    ]
    return table(columns, load("heads_ablations"))


# What a card would hold.
GPU_KINDS = {"run": "all tokens", "some of the tokens": "half of the tokens", "reuse": "reuse"}


def announced() -> list[Row]:
    """Cases of models of real sizes, as they were counted on fake tensors."""
    data = json.loads((FOLDER / "gpu_announced.json").read_text(encoding="utf-8"))
    return [{**model, **case} for model in data["rows"] for case in model["cases"]]


def gpu_memory() -> str:
    """What is held on the device beside the full run, beside what was announced."""

    def mebibytes(name: str) -> Callable[[Row], str]:
        return lambda row: number(row[name] / 2**20)

    def ratio(row: Row) -> str:
        return number(row["announced"] / row["held"] if row["held"] else None, 2)

    columns = [
        text("model", "title"),
        text("what", "case"),
        Column("announced, MiB", mebibytes("announced")),
        Column("in memory, MiB", mebibytes("held")),
        Column("announced / in memory", ratio),
    ]
    return table(columns, (row for row in announced() if "failed" not in row))


def gpu_flops() -> str:
    """FLOPs of one evaluation, beside what torch counts."""

    def teraflops(name: str) -> Callable[[Row], str]:
        return lambda row: number(None if row[name] is None else row[name] / 1e12, 2)

    def ratio(row: Row) -> str:
        return number(row["cost"] / row["counted"] if row["cost"] else None, 4)

    def billions(row: Row) -> str:
        return number(row["parameters"] / 1e9 if "parameters" in row else None)

    columns = [
        text("model", "title"),
        Column("parameters, 10^9", billions),
        Column("what", lambda row: GPU_KINDS[row["kind"]]),
        Column("counted by torch, 10^12", teraflops("counted")),
        Column("by the pack, 10^12", teraflops("cost")),
        Column("pack / torch", ratio),
    ]
    rows: dict[tuple, Row] = {}
    for case in announced():
        for found in case.get("flops", ()):
            rows.setdefault((case["model"], found["kind"]), {**case, **found})
    return table(columns, rows.values())


# What is learned of a model.
LEARNED = {
    "learned_0": "nothing (as it comes)",
    "learned_1": "the first picture",
    "learned_2": "two pictures",
    "learned_4": "four pictures",
    "fours_2": "four others",
    "fours_3": "four others",
    "fours_4": "four others",
    "learned_8": "eight pictures",
    "calibrated_few": "RAPID Calibrate, few",
    "calibrated_normal": "RAPID Calibrate, normal",
    "calibrated_long": "RAPID Calibrate, long",
    "prior_flux": "eight pictures of the FLUX-like model",
    "prior_sd3": "eight pictures of the SD3-like model",
    "prior_lumina": "eight pictures of the Lumina-like model",
    "even": "nothing, evenly spaced steps",
}


def learned(of: str) -> str:
    """How much nearer pictures come after so much was learned, towards what each aim has."""
    data = json.loads((FOLDER / "learn.json").read_text(encoding="utf-8"))
    found = [r for r in data["rows"] if r["model"] == of and r["suite"] == "learn"]
    drawn = data["machine"]["full_pictures"][of]
    rows = {(r["method"], r["target"]): r for r in found}
    gains = {
        (r["method"], r["target"]): r
        for r in load("learn_differences")
        if r["model"] == of and r["suite"] == "learn"
    }
    targets = list(dict.fromkeys(r["target"] for r in found if r["method"] == "learned_0"))

    def decibels(target: str) -> Callable[[Row], str]:
        name = "psnr_ode" if target.endswith("best") else "psnr"

        def cell(row: Row) -> str:
            key = (row["method"], target)
            if row["method"] == "learned_0":
                return number(rows[key][name])
            if key not in gains:
                return "-"
            gain = gains[key]
            same = gain.get("same_plan")
            return "same steps" if same else interval(gain["difference"], gain["ci"], sign=True)

        return cell

    columns = [
        Column("learned from", lambda row: LEARNED[row["method"]]),
        Column("drawn for it, in full pictures", lambda row: number(drawn.get(row["method"], 0))),
        *(Column(f"{target} picture, dB", decibels(target)) for target in targets),
    ]
    there = {r["method"] for r in found}
    return table(columns, ({"method": name} for name in LEARNED if name in there))


# Model classes of the host.
ROUNDING = 1e-5  # of the largest value: no more than other orders of sums make
PICTURES = 1e-3  # the same of whole pictures, after all steps
NOT_KNOWN = ("blocks_unknown", "unknown_to_region")


def host_of_models() -> str:
    """The release of ComfyUI that the classes are of."""
    return json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))["host"]


def host_models(*kinds: str, blocks: bool = True) -> str:
    """What every node does on model classes of these kinds. blocks: with the nodes that act inside
    of the model."""
    columns = [
        Column("models", lambda row: row["known_as"]),
        Column("ComfyUI's class", lambda row: f"`{row['class']}`"),
        Column("RAPID Accelerate skips", lambda row: acted(row, "accelerate", "skipped")),
        Column("Cache Reuse skips", lambda row: acted(row, "skip", "skipped")),
    ]
    if blocks:
        columns += [
            Column("Cache Reuse reuses blocks", lambda row: acted(row, "reuse", "reused")),
            Column("Region Adaptive, some tokens", lambda row: acted(row, "region", "partial")),
            Column("Sparse Attention", lambda row: acted(row, "sparse", "sparse")),
        ]
    columns += [
        Column("batch of 2", lambda row: equal(row, "batch")),
        Column("prompts in one call and in two", lambda row: equal(row, "cfg")),
        Column("not exercised", lambda row: row["note"] or "-"),
    ]
    return table(columns, (row for row in load("models") if row["kind"] in kinds))


def acted(row: Row, node: str, count: str) -> str:
    """What a node did on a class, or why nothing."""
    found = row.get(node)
    if found is None:
        return f"not built: {row['error']}"
    if "error" in found:
        return f"**{found['error']}**"
    if not found.get(count):
        reason = found["reason"]
        return "not known" if reason["code"] in NOT_KNOWN else f"full: {reason['text']}"
    exact = "" if "exact" not in found else f", exact to {found['exact']:.0e}"
    if found.get("exact", 0.0) < ROUNDING:
        exact = exact and ", exact"
    return f"{found[count]} of {found['evaluations']}{exact}"


def equal(row: Row, name: str) -> str:
    """Whether a batch, or calls that were joined, gave what single ones give; a difference beside
    that of the host's own full run."""
    found = row.get(name)
    if found is None:
        return "-"
    if "error" in found:
        return f"**{found['error']}**"
    if "host" in found:
        return f"ComfyUI: {found['host'].split(': ', 1)[-1]}"
    if not found.get("same_decisions", True):
        return "**other decisions**"
    if found["accelerate"] < PICTURES:
        return "equal"
    return f"differs by {found['accelerate']:.0e}, in full by {found['full']:.0e}"


# Releases of the host.
def hosts() -> list[Row]:
    """One row a ComfyUI, with what became of every topic; releases that nobody has run, too."""
    rows = {row["host"]: row for row in load("hosts")}
    nothing = [{"host": name, "why": None, "topics": {}} for name in RELEASES if name not in rows]
    found = [*rows.values(), *nothing]
    return sorted(found, key=lambda row: version_key(row["host"]))


def version_key(name: str) -> tuple:
    """Releases by their numbers, folders after them."""
    version, *rest = name.split(" ")
    return len(rest), [int(part) if part.isdigit() else 0 for part in version.split(".")], name


def host_runs() -> str:
    """What was run of each ComfyUI, when and on what."""

    def total(row: Row, count: Callable[[Row], int]) -> int:
        return sum(count(topic) for topic in row["topics"].values())

    def dates(row: Row) -> str:
        found = sorted({topic["date"] for topic in row["topics"].values()})
        return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else "-"

    def run_of(row: Row) -> str:
        return f"{len(row['topics'])} of {len(TOPICS)}"

    columns = [
        text("ComfyUI", "host"),
        Column("topics that were run", run_of),
        Column("passed", lambda row: str(total(row, lambda topic: topic["passed"]))),
        Column("skipped", lambda row: str(total(row, lambda t: sum(t["skipped"].values())))),
        Column("failed", lambda row: str(total(row, lambda topic: len(topic["failed"])))),
        Column("when", dates),
        Column("PyTorch", lambda row: row.get("torch", "-")),
        Column("Python", lambda row: row.get("python", "-")),
        Column("what is to be said", lambda row: in_a_cell(row["why"] or "-")),
    ]
    return table(columns, hosts())


def host_topics() -> str:
    """What became of every topic on every ComfyUI."""
    columns = [Column("tests", lambda row: row["title"])]
    columns += [
        Column(found["host"], lambda row, found=found: outcome(found, row["name"]))
        for found in hosts()
    ]
    rows = ({"name": name, "title": title} for name, title in TOPICS.items())
    return table(columns, rows)


def outcome(host: Row, name: str) -> str:
    """What became of a topic on a ComfyUI."""
    topic = host["topics"].get(name)
    if topic is None:
        return "not run"
    passed, failed, missing = topic["passed"], len(topic["failed"]), topic["missing"]
    skipped = sum(topic["skipped"].values())
    parts = [f"**{failed} failed**"] if failed else []
    parts += [f"{passed} passed"] if passed else []
    if skipped:
        reasons = list(topic["skipped"])
        why = in_a_cell(reasons[0]) if len(reasons) == 1 else f"{len(reasons)} reasons, see below"
        parts.append(f"{skipped} skipped ({why})")
    parts += [f"**{missing} without an outcome**"] if missing else []
    return ", ".join(parts)


def host_skipped() -> str:
    """Why tests were skipped."""
    columns = [
        text("ComfyUI", "host"),
        Column("tests", lambda row: TOPICS[row["topic"]]),
        text("skipped", "count"),
        Column("why", lambda row: in_a_cell(row["why"])),
    ]
    rows = [
        {"host": row["host"], "topic": name, "why": why, "count": count}
        for row in hosts()
        for name, topic in in_topics(row)
        for why, count in topic["skipped"].items()
    ]
    return table(columns, rows) if rows else "None of those that were run."


def host_failed() -> str:
    """Tests that failed, and what they said."""
    columns = [
        text("ComfyUI", "host"),
        Column("tests", lambda row: TOPICS[row["topic"]]),
        Column("test", lambda row: f"`{in_a_cell(row['test'])}`"),
        Column("what it said", lambda row: in_a_cell(row["why"])),
    ]
    rows = [
        {"host": row["host"], "topic": name, "test": test, "why": why}
        for row in hosts()
        for name, topic in in_topics(row)
        for test, why in topic["failed"].items()
    ]
    return table(columns, rows) if rows else "None of those that were run."


def in_topics(host: Row) -> list[tuple[str, Row]]:
    """Topics of a ComfyUI that were run, in the order in which they are shown."""
    return [(name, host["topics"][name]) for name in TOPICS if name in host["topics"]]


def in_a_cell(words: str) -> str:
    """Words that a test or an error said, as a cell of a table can hold them."""
    return " ".join(words.split()).replace("|", "\\|")


# README's rows: a name, and on each model the file and the method at 2x.
FIVE = (
    ("**RAPID Accelerate**, `speedup` 2", ("dial", "full_picture"), ("dial", "full_picture")),
    (
        "**RAPID Accelerate**, `speedup` 2, `aim` best picture",
        ("dial", "best_picture"),
        ("dial", "best_picture"),
    ),
    ("no pack, half of the steps with euler", ("dial", "fewer_euler"), ("dial", "fewer_euler")),
    (
        "no pack, half of the steps with dpmpp_2m",
        ("dial", "fewer_dpmpp_2m"),
        ("dial", "fewer_dpmpp_2m"),
    ),
    (
        "ComfyUI's EasyCache (FLUX-like), LazyCache (SD3-like)",
        ("policy_flux", "easycache"),
        ("policy_sd3", "lazycache"),
    ),
)


def five_rows() -> str:
    """About half of the evaluations, both models."""

    def decibels(of: str, place: int, name: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            file, method = row["methods"][place]
            (found,) = (
                r
                for r in load(file)
                if (r["model"], r["method"], r["target"]) == (of, method, "2x")
            )
            return "-" if found[name] is None else f"{number(found[name])} dB"

        return cell

    columns = [
        text("about half of the evaluations", "name"),
        *(
            Column(f"{MODELS[of]}: to the {goal} picture", decibels(of, place, name))
            for place, of in enumerate(("flux", "sd3"))
            for goal, name in (("full", "psnr"), ("converged", "psnr_ode"))
        ),
    ]
    return table(columns, ({"name": name, "methods": methods} for name, *methods in FIVE))


COSTED_AS = ("flux-dev", "sd3-medium")
TABLES: dict[str, Callable[[], str]] = {
    "five_rows": five_rows,
    "demo": demo,
    "demo_models": demo_models,
    "trajectories": trajectories,
    "dial_flux": lambda: quality("dial", "flux", suite="dial_speed"),
    "dial_sd3": lambda: quality("dial", "sd3", suite="dial_speed"),
    "dial_differences_flux": lambda: differences("dial_speed", "flux"),
    "dial_differences_sd3": lambda: differences("dial_speed", "sd3"),
    "curve_flux": lambda: curve("flux"),
    "curve_sd3": lambda: curve("sd3"),
    "quality_flux": lambda: quality_mode("flux"),
    "quality_sd3": lambda: quality_mode("sd3"),
    "few_flux": lambda: few("flux"),
    "few_sd3": lambda: few("sd3"),
    "accelerate_clock": accelerate_clock,
    "policy_flux": lambda: quality("policy_flux", "flux"),
    "policy_sd3": lambda: quality("policy_sd3", "sd3"),
    "policy_differences_flux": lambda: differences("policy", "flux"),
    "policy_differences_sd3": lambda: differences("policy", "sd3"),
    "learned_flux": lambda: learned("flux"),
    "learned_sd3": lambda: learned("sd3"),
    "learned_lumina": lambda: learned("lumina"),
    "samplers_flux": lambda: samplers("flux"),
    "samplers_sd3": lambda: samplers("sd3"),
    "region_sd3": lambda: quality("region_sd3", "sd3"),
    "region_flux": lambda: quality("region_flux", "flux"),
    "region_corrected_flux": lambda: quality("region_corrected", "flux"),
    "region_corrected_sd3": lambda: quality("region_corrected", "sd3"),
    "region_lumina": lambda: quality("region_lumina", "lumina"),
    "region_differences_sd3": lambda: differences("region", "sd3"),
    "region_differences_flux": lambda: differences("region", "flux"),
    "region_differences_lumina": lambda: differences("region", "lumina"),
    "region_clock": region_clock,
    "sparse_mass": sparse_mass,
    "sparse_clock": sparse_clock,
    "sparse_flux": lambda: quality("sparse_demo", "flux", COSTED_AS),
    "sparse_sd3": lambda: quality("sparse_demo", "sd3", COSTED_AS),
    "models_image": lambda: host_models("image"),
    "models_video": lambda: host_models("video"),
    "models_others": lambda: host_models("audio", "3D"),
    "models_unet": lambda: host_models("UNet", blocks=False),
    "host_runs": host_runs,
    "host_topics": host_topics,
    "host_skipped": host_skipped,
    "host_failed": host_failed,
    "gpu_memory": gpu_memory,
    "gpu_flops": gpu_flops,
    "heads_trained": heads_trained,
    "heads_ablations": heads_ablations,
}


def make_pages() -> None:
    """Write all tables of all pages anew."""
    for path in pages():
        made = with_tables(path.read_text(encoding="utf-8"))
        path.write_text(made, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    make_pages()
