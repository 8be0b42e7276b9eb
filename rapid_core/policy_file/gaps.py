"""Gaps files: what every gap of watched pictures would have cost.

Tensors: `sigmas` (N + 1,) float32; `picture.<id>` (N, LONGEST) float32 for each picture: the error of
a gap as a share of the latent's mean square, by the computed step before it and how many steps it
has, less one; 0 where a run has no such gap. An id is 32 hex digits. Metadata: `pictures`, a list of
the ids, the newest last."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..quadrature.gap_costs import LONGEST, Gap, GapCosts, distinct, gaps_of
from ..quadrature.spacing import Spacing
from ..techniques.step_skip.schedule import SchedulePolicy
from .format import PolicyFile, is_number, shown
from .schedules import MAX_STEPS, sigmas_of

PREFIX = "picture."
ID = re.compile(r"[0-9a-f]{32}")
MAX_ERROR = 1e30


def sigmas_problem(sigmas: Sequence[float]) -> str:
    """What keeps gaps on these sigmas (N + 1,) from having a cost; nothing where all have one."""
    sigmas = torch.tensor(sigmas, dtype=torch.float32).tolist()  # as a file has them
    steps = len(sigmas) - 1
    if not 2 < steps <= MAX_STEPS:
        return f"are those of {steps} steps; accepted is 3 to {MAX_STEPS}"
    if not all(a > b >= 0 for a, b in itertools.pairwise(sigmas)):
        return "do not fall from step to step; accepted are values that do and end at 0 or above"
    formula = Spacing(sigmas)
    if not all(formula.cost(i, i + 2) for i in range(steps - 1)):
        return "are too near each other to tell what lies between them"
    return ""


def errors_tensor(table: Mapping[Gap, float], sigmas: Sequence[float]) -> Tensor:
    """The errors of a picture as a file has them. sigmas (N + 1,), falling. Raises ValueError where
    the table has other gaps than the run, an error that is none, or the run none at all."""
    steps = len(sigmas) - 1
    problem = sigmas_problem(sigmas)
    if problem:
        raise ValueError(f"sigmas of a watched picture {problem}")
    if table.keys() != set(gaps_of(steps)):
        raise ValueError(
            f"a table of {len(table)} gap errors is not that of a run of {steps} steps"
        )
    wrong = [error for error in table.values() if not is_number(error, 0, MAX_ERROR)]
    if wrong:
        raise ValueError(f"the error of a gap is {wrong[0]}; accepted is 0 to {MAX_ERROR:g}")
    errors = torch.zeros(steps, LONGEST)
    for (before, after), error in table.items():
        errors[before, after - before - 2] = error
    return errors


def table_of(errors: Tensor) -> dict[Gap, float]:
    """The error of every gap. errors (N, LONGEST), as a file has them."""
    rows = errors.tolist()
    return {
        (before, after): rows[before][after - before - 2] for before, after in gaps_of(len(rows))
    }


def gap_tensors(sigmas: Sequence[float], pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a gaps file. sigmas (N + 1,), falling; pictures: errors (N, LONGEST) by id."""
    tensors = {"sigmas": torch.tensor(sigmas, dtype=torch.float32)}
    for name, errors in pictures.items():
        tensors[f"{PREFIX}{name}"] = errors
    return tensors


def gap_metadata(pictures: Iterable[str]) -> dict[str, Any]:
    """Metadata of a gaps file beside what all files have. pictures: ids, the newest last."""
    return {"pictures": list(pictures)}


def pictures_of(file: PolicyFile) -> dict[str, Tensor]:
    """The errors (N, LONGEST) of a file's pictures by id, at least one, the newest last. Raises
    PolicyError."""
    if file.kind != "gaps":
        raise file.refusal("kind", file.kind, "gaps")
    sigmas = sigmas_of(file)
    problem = sigmas_problem(sigmas)
    if problem:
        raise file.field_error("sigmas", problem)
    names = file.json("pictures")
    tensors = sorted(name for name in file.tensors if name.startswith(PREFIX))
    listed = isinstance(names, list) and all(isinstance(n, str) and ID.fullmatch(n) for n in names)
    if not listed or not names or sorted(f"{PREFIX}{name}" for name in names) != tensors:
        accepted = f"a list of the ids of its {len(tensors)} pictures, 32 hex digits each"
        raise file.refusal("pictures", names, accepted)
    return {name: _errors(file, f"{PREFIX}{name}", len(sigmas) - 1) for name in names}


def _errors(file: PolicyFile, field: str, steps: int) -> Tensor:
    errors = file.tensor(field, (steps, LONGEST), torch.float32)
    lowest, highest = float(errors.min()), float(errors.max())
    if lowest < 0 or highest > MAX_ERROR:
        values = shown(lowest if lowest < 0 else highest)
        raise file.field_error(field, f"holds {values}; accepted is 0 to {MAX_ERROR:g}")
    return errors


def costs_of(file: PolicyFile) -> GapCosts:
    """What gaps cost by the pictures of a file, each once. Raises PolicyError."""
    tables = map(table_of, pictures_of(file).values())
    return GapCosts.seen(distinct(tables), sigmas_of(file))


def gap_policy(file: PolicyFile, speedup: float) -> SchedulePolicy:
    """The policy of a gaps file: the steps where skipping the others costs least on its model.
    Raises PolicyError."""
    return SchedulePolicy(speedup=speedup, costs=costs_of(file), source=file.name)
