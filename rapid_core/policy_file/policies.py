"""Policies out of policy files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..architectures import describe
from ..engine.sparse import NAMES
from ..quadrature.gram import Gram
from ..techniques.heads.network import Module
from ..techniques.heads.rapid3 import OUTPUTS, Heads, HeadsPolicy
from ..techniques.heads.rapid_plus import MODES, NUMBERS, PlannedPolicy
from ..techniques.heads.tpdm import FAMILY, KIND, TPDMHeads, TPDMPolicy
from ..techniques.step_skip.schedule import Plan, SchedulePolicy
from ..techniques.step_skip.threshold import IN_A_ROW, ThresholdPolicy
from ..types import Sparsity
from .format import PolicyError, PolicyFile

PLUS = "rapid+"  # heads on top of plans
STRUCTURES = ("rapid3", PLUS, KIND)  # of heads; a file that names none has the first
NOWHERE = torch.device(
    "meta"
)  # where heads are made before they are filled: nothing drawn, and sizes cost nothing
PLAN_TENSORS = ("plan.", "sigmas", "gram.")
LONGEST = 8  # evaluations in a row that thresholds of the trainer may leave out
SAME = 0.02  # relative difference of speed-ups that are the same budget


def plan_tensors(plans: Sequence[Plan]) -> dict[str, torch.Tensor]:
    """Tensors of a schedule file: what `plans_of` reads, one plan a budget, in the file's order."""
    out = {"sigmas": torch.tensor(plans[0].schedule, dtype=torch.float32)}
    for i, plan in enumerate(plans):
        out[f"plan.{i}.computed"] = torch.tensor(plan.computed, dtype=torch.uint8)
    if (gram := plans[0].gram) is not None:
        out |= {"gram.products": gram.products, "gram.means": gram.means}
    return out


def plans_of(file: PolicyFile) -> list[Plan]:
    """The plans of a schedule file, one a budget. Raises PolicyError."""
    sigmas = file.tensor("sigmas", (None,), torch.float32)
    schedule, steps = tuple(sigmas.tolist()), len(sigmas) - 1
    if steps < 2 or any(b >= a for a, b in zip(schedule, schedule[1:], strict=False)):
        raise file.field_error("sigmas", "must fall from step to step, over 2 steps at least")
    gram, out = _gram(file, steps), []
    for i, budget in enumerate(file.budgets):
        on = file.tensor(f"plan.{i}.computed", (steps,), torch.uint8).bool().tolist()
        if not on[0] or sum(on) > max(1, steps / budget * (1 + SAME)):
            raise file.field_error(
                f"plan.{i}.computed",
                f"computes {sum(on)} of {steps} steps; the first must be among "
                f"them, and {budget:g} times the speed allows {steps / budget:.1f}",
            )
        out.append(Plan(tuple(on), schedule, gram))
    return out


def _gram(file: PolicyFile, steps: int) -> Gram | None:
    """What weights are fitted to; None in a file that leaves them to Adams-Bashforth."""
    if not any(name.startswith("gram.") for name in file.tensors):
        return None
    products, means = (
        file.tensor(f"gram.{name}", (steps, steps), torch.float64) for name in ("products", "means")
    )
    if not torch.allclose(products, products.T) or not products.diagonal().min() > 0:
        raise file.field_error("gram.products", "must be symmetrical and above 0 on the diagonal")
    return Gram(products, means)


def head_tensors(heads: Heads) -> dict[str, torch.Tensor]:
    """Tensors of a heads file: what `heads_of` reads."""
    return {name: value.float() for name, value in heads.state_dict().items()}


def head_metadata(
    heads: Heads, forecast_order: int, densities: Sequence[float], backend: str = "auto"
) -> dict:
    """Metadata of a heads file beside what all files have. backend: of the sparse attention, if a
    head chooses it."""
    sparse = {"sparse_backend": backend} if "sparse" in heads.heads else {}
    return {
        "heads": list(heads.heads),
        "channels": heads.channels,
        "hidden": heads.hidden,
        "numbers": heads.numbers,
        "width": heads.width,
        "scales": heads.scales,
        "forecast_order": forecast_order,
        "densities": list(densities),
        **sparse,
    }


def heads_of(file: PolicyFile) -> Heads:
    """The heads of a heads file, for use only. Raises PolicyError."""
    names = file.number("heads")
    if (
        not isinstance(names, list)
        or not names
        or any(name not in tuple(OUTPUTS) for name in names)
    ):
        raise file.field_error("heads", f"= {names!r}; wanted are some of {', '.join(OUTPUTS)}")
    sizes = {
        field: _whole(file, field, 1, 65536) for field in ("channels", "hidden", "numbers", "width")
    }
    scales = file.number("scales")
    if (
        not isinstance(scales, dict)
        or set(scales) != set(names)
        or not all(_positive(v) for v in scales.values())
    ):
        raise file.field_error(
            "scales", f"= {scales!r}; wanted is a positive number for each of {', '.join(names)}"
        )
    with NOWHERE:
        heads = Heads(heads=names, scales=scales, **sizes)
    return _filled(file, heads, PLAN_TENSORS if structure_of(file) == PLUS else ())


def tpdm_metadata(heads: TPDMHeads) -> dict:
    """Metadata of a file of TPDM's heads beside what all files have."""
    return {
        "structure": KIND,
        "heads": list(heads.heads),
        "hidden": heads.hidden,
        "side": heads.side,
        "width": heads.width,
    }


def tpdm_of(file: PolicyFile) -> TPDMHeads:
    """TPDM's heads of a heads file, for use only. Raises PolicyError."""
    if file.architecture != FAMILY:
        raise file.field_error(
            "architecture",
            f"= {file.architecture!r}; heads of structure {KIND} look at the tokens of "
            f"{FAMILY} models",
        )
    if file.number("heads") != ["step"]:
        raise file.field_error(
            "heads", f"= {file.number('heads')!r}; wanted is the step head alone"
        )
    most = {"hidden": 16384, "side": 1024, "width": 1024}
    hidden, side, width = (_whole(file, field, 1, high) for field, high in most.items())
    if side % 2:
        raise file.field_error("side", f"= {side}; wanted is an even number of tokens")
    with NOWHERE:
        heads = TPDMHeads(hidden, side, width)
    return _filled(file, heads)


def structure_of(file: PolicyFile) -> str:
    """What the heads of a heads file are made like, one of STRUCTURES. Raises PolicyError."""
    found = file.metadata.get("structure", STRUCTURES[0])
    if found not in STRUCTURES:
        raise file.field_error("structure", f"= {found!r}; known are {', '.join(STRUCTURES)}")
    return found


def _filled(file: PolicyFile, heads: Module, others: tuple[str, ...] = ()) -> Module:
    """Heads with the file's tensors in them, which must be theirs and no others but those that
    begin with `others`."""
    wanted = heads.state_dict()
    extra = {name for name in file.tensors if name not in wanted and not name.startswith(others)}
    if extra:
        raise file.field_error(sorted(extra)[0], "is not a tensor of these heads")
    found = {name: file.tensor(name, tuple(value.shape)).float() for name, value in wanted.items()}
    heads.requires_grad_(False).load_state_dict(found, assign=True)
    return heads.train(False)


def _whole(file: PolicyFile, field: str, low: int, high: int) -> int:
    value = file.number(field)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise file.field_error(field, f"= {value!r}; wanted is a whole number from {low} to {high}")
    return value


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-6 < value < 1e6


def heads_policy(file: PolicyFile, speedup: float) -> HeadsPolicy:
    """The policy of a heads file. Raises PolicyError."""
    if structure_of(file) == KIND:
        return TPDMPolicy(tpdm_of(file), speedup, source=file.name)
    heads, densities = heads_of(file), file.number("densities")
    if (
        not isinstance(densities, list)
        or len(densities) != 3
        or not all(_positive(d) and d < 1 for d in densities)
    ):
        raise file.field_error(
            "densities", f"= {densities!r}; wanted are three numbers between 0 and 1"
        )
    order = _whole(file, "forecast_order", 0, 2)
    sparsity = Sparsity(_backend(file)) if "sparse" in heads.heads else None
    if structure_of(file) != PLUS:
        if heads.numbers != 1:
            raise file.field_error("numbers", f"= {heads.numbers}; wanted is 1, the noise level")
        if "pace" in heads.heads:
            raise file.field_error(
                "heads", f"= {', '.join(heads.heads)}; a pace head needs plans (structure {PLUS})"
            )
        return HeadsPolicy(heads, speedup, order, tuple(densities), sparsity, file.name)
    mode = file.metadata.get("mode", "cap")
    if mode not in MODES or heads.numbers != NUMBERS:
        raise file.field_error(
            "mode",
            f"= {mode!r} with {heads.numbers} numbers; wanted is one of {', '.join(MODES)}, with "
            f"{NUMBERS}",
        )
    if "pace" not in heads.heads or "step" in heads.heads:
        raise file.field_error(
            "heads",
            f"= {', '.join(heads.heads)}; heads that begin with a plan need the pace head in "
            "place of the step head",
        )
    return PlannedPolicy(
        heads,
        speedup,
        order,
        tuple(densities),
        sparsity,
        file.name,
        mode=mode,
        plan=nearest_plan(file, speedup),
        ladder=tuple(reversed(plans_of(file))),
    )


def _backend(file: PolicyFile) -> str:
    """What computes the sparse attention that heads choose."""
    found = file.metadata.get("sparse_backend", "auto")
    if found not in NAMES:
        raise file.field_error(
            "sparse_backend", f"= {found!r}; wanted is one of {', '.join(NAMES)}"
        )
    return found


def nearest_plan(file: PolicyFile, speedup: float) -> Plan:
    """The plan of a file that was made for the budget nearest to a speed-up. Raises PolicyError."""
    plans = plans_of(file)
    return plans[min(range(len(plans)), key=lambda i: abs(math.log(file.budgets[i] / speedup)))]


def jumps_policy(file: PolicyFile, speedup: float) -> HeadsPolicy:
    """The policy of a heads file whose step head is to choose noise levels. Raises PolicyError."""
    instead = "has no step head to choose noise levels with; connect it to RAPID Accelerate instead"
    if file.kind != "heads":
        raise file.field_error("kind", f"= {file.kind!r} {instead}")
    why = {
        KIND: "a sampler does not see its tokens",
        PLUS: "its jumps are from step to step of a plan",
    }
    if structure_of(file) in why:
        found = structure_of(file)
        raise file.field_error(
            "structure", f"= {found!r}: {why[found]}; connect it to RAPID Accelerate instead"
        )
    policy = heads_policy(file, speedup)
    if "step" not in policy.heads.heads:
        raise file.field_error("heads", f"= {', '.join(policy.heads.heads)}: {instead}")
    return policy


def check_base(file: PolicyFile, base: Any) -> None:
    """Raise PolicyError where a policy was not made for the family or size of the host's model
    `base`."""
    architecture, network = describe(base.diffusion_model), base.diffusion_model
    check_family(file, architecture.family if architecture else type(network).__name__)
    channels = getattr(getattr(base, "latent_format", None), "latent_channels", None)
    check_model(file, channels, architecture.width(network))


def check_family(file: PolicyFile, family: str) -> None:
    """Raise PolicyError for a policy of another model family."""
    if file.architecture != family:
        raise PolicyError(
            f"policy {file.name}: architecture = {file.architecture!r}, trained on {file.base_model}; "
            f"this model is {family}. Choose a policy of its family, or none."
        )


def check_model(file: PolicyFile, channels: int | None, hidden: int) -> None:
    """Raise PolicyError for a policy made for latents or a model of another size. Schedules and
    thresholds that do not say for which size are believed."""
    sizes = {"hidden": hidden}
    if file.kind == "heads" and structure_of(file) != KIND:
        sizes["channels"] = channels
    for field, there in sizes.items():
        if file.kind != "heads" and field not in file.metadata:
            continue
        wanted = _whole(file, field, 1, 65536)
        if there is not None and wanted != there:
            raise file.field_error(
                field,
                f"= {wanted}, trained on {file.base_model}; this model has {there}. It is of "
                "another size: choose a policy made for this model, or none",
            )


def policy_of(file: PolicyFile, speedup: float) -> SchedulePolicy | ThresholdPolicy | HeadsPolicy:
    """The file's policy at a speed-up. Between the budgets it was made for, the nearest plan is
    moved, thresholds are interpolated; to heads it is a ceiling. Raises PolicyError."""
    if file.kind == "schedule":
        return SchedulePolicy(speedup, plan=nearest_plan(file, speedup), source=file.name)
    if file.kind == "threshold":
        return threshold_policy(file, speedup)
    return heads_policy(file, speedup)


def threshold_policy(file: PolicyFile, speedup: float) -> ThresholdPolicy:
    """Cache Reuse with the file's threshold. Raises PolicyError."""
    longest = (
        _whole(file, "max_consecutive", 1, 100) if "max_consecutive" in file.metadata else IN_A_ROW
    )
    return ThresholdPolicy(threshold_of(file, speedup), max_consecutive=longest, source=file.name)


def threshold_of(file: PolicyFile, speedup: float) -> float:
    """Cache Reuse's threshold at a speed-up, between those of the budgets on a line of
    logarithms."""
    budgets = file.budgets
    found = file.tensor("thresholds", (len(budgets),), torch.float32).tolist()
    if min(found) <= 0:
        raise file.field_error("thresholds", "must be above 0")
    if speedup <= budgets[0] or len(budgets) == 1:
        return found[0]
    above = next((i for i, b in enumerate(budgets) if b >= speedup), len(budgets) - 1)
    low, high = above - 1, above
    place = min(1.0, (speedup - budgets[low]) / (budgets[high] - budgets[low]))
    return math.exp((1 - place) * math.log(found[low]) + place * math.log(found[high]))
