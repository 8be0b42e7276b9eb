"""Schedule files: which steps are computed, one schedule a budget, and what prediction weights are
fitted to.

Tensors: `sigmas` (N + 1,) float32; `plan.<i>.computed` (N,) uint8 for the i-th budget;
`gram.products` and `gram.means` (N, N) float64, or neither."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..quadrature.gram import RIDGE, Gram
from ..techniques.step_skip.schedule import Schedule, SchedulePolicy
from .format import PolicyFile, shown

TENSORS = ("plan.", "sigmas", "gram.")  # what their names begin with
MAX_STEPS = 10_000
SAME_BUDGET = 0.02  # relative difference of speed-ups that are the same budget
# The fit adds RIDGE times the mean square of some derivatives to a part of the matrix; half of that
# may make good what is below zero, so that the sum can be inverted, whichever part it is.
MIN_EIGENVALUE = -0.5 * RIDGE  # as a multiple of the smallest mean square
# A mean over a step is about as large as the derivatives at its ends; far more would overflow.
MAX_MEAN = 1e3  # as a multiple of the largest mean square
MAX_SPAN = 1e12  # of the mean squares, the largest over the smallest
MAX_SQUARE = 1e30


def schedule_tensors(schedules: Sequence[Schedule]) -> dict[str, Tensor]:
    """Tensors of a schedule file, one schedule a budget, in the file's order; they share sigmas and
    Gram matrix."""
    tensors = {"sigmas": torch.tensor(schedules[0].sigmas, dtype=torch.float32)}
    for i, schedule in enumerate(schedules):
        tensors[f"plan.{i}.computed"] = torch.tensor(schedule.computed, dtype=torch.uint8)
    gram = schedules[0].gram
    if gram is not None:
        tensors["gram.products"] = gram.products
        tensors["gram.means"] = gram.means
    return tensors


def schedules_of(file: PolicyFile) -> list[Schedule]:
    """The schedules of a file, one a budget. Raises PolicyError."""
    sigmas = sigmas_of(file)
    steps = len(sigmas) - 1
    gram = _gram(file, steps)
    schedules = []
    for i, budget in enumerate(file.budgets):
        field = f"plan.{i}.computed"
        computed = file.tensor(field, (steps,), torch.uint8).bool().tolist()
        most = max(1, steps / budget * (1 + SAME_BUDGET))
        if not computed[0] or sum(computed) > most:
            raise file.field_error(
                field,
                f"computes {sum(computed)} of {steps} steps; accepted is a schedule with the first "
                f"among them, and at {budget:g} times the speed at most {steps / budget:.1f}",
            )
        schedules.append(Schedule(tuple(computed), sigmas, gram))
    return schedules


def sigmas_of(file: PolicyFile) -> tuple[float, ...]:
    """The falling sigmas (N + 1,) that a file was made on. Raises PolicyError."""
    tensor = file.tensor("sigmas", (None,), torch.float32)
    if not 2 < len(tensor) <= MAX_STEPS + 1:
        raise file.field_error(
            "sigmas", f"has {len(tensor)} values; accepted is 3 to {MAX_STEPS + 1}"
        )
    sigmas = tuple(tensor.tolist())
    if any(b >= a for a, b in itertools.pairwise(sigmas)) or sigmas[-1] < 0:
        accepted = "values that fall from step to step and end at 0 or above"
        raise file.refusal("sigmas", list(sigmas), accepted)
    return sigmas


def _gram(file: PolicyFile, steps: int) -> Gram | None:
    """What weights are fitted to; None in a file that leaves them to Adams-Bashforth."""
    if not any(name.startswith("gram.") for name in file.tensors):
        return None
    products = file.tensor("gram.products", (steps, steps), torch.float64)
    means = file.tensor("gram.means", (steps, steps), torch.float64)
    squares = products.diagonal()
    smallest = float(squares.min())
    largest = float(squares.max())
    if not torch.allclose(products, products.T) or smallest <= 0:
        raise file.field_error(
            "gram.products",
            f"has values from {shown(smallest)} on its diagonal; accepted is a symmetrical matrix "
            "with values above 0 there",
        )
    if largest > MAX_SQUARE or largest > MAX_SPAN * smallest:
        raise file.field_error(
            "gram.products",
            f"has values from {smallest:.3g} to {largest:.3g} on its diagonal; accepted is at most "
            f"{MAX_SQUARE:g}, and a span of {MAX_SPAN:g}",
        )
    eigenvalue = float(torch.linalg.eigvalsh(products)[0])
    if not eigenvalue >= MIN_EIGENVALUE * smallest:
        raise file.field_error(
            "gram.products",
            f"has an eigenvalue of {eigenvalue:.3g}; accepted is a matrix of inner products, which "
            "has none below 0",
        )
    highest = float(means.abs().max())
    if highest > MAX_MEAN * largest:
        raise file.field_error(
            "gram.means",
            f"has values up to {highest:.3g}; accepted is at most {MAX_MEAN * largest:.3g}, "
            f"{MAX_MEAN:g} times the largest of gram.products",
        )
    return Gram(products, means)


def nearest_schedule(file: PolicyFile, speedup: float) -> Schedule:
    """The schedule of a file that was made for the budget nearest to a speed-up. Raises
    PolicyError."""
    schedules = schedules_of(file)
    distances = [abs(math.log(budget / speedup)) for budget in file.budgets]
    return schedules[distances.index(min(distances))]


def schedule_policy(file: PolicyFile, speedup: float) -> SchedulePolicy:
    """The policy of a schedule file: the nearest schedule, thinned out where a speed-up is higher.
    Raises PolicyError."""
    schedule = nearest_schedule(file, speedup)
    return SchedulePolicy(speedup=speedup, schedule=schedule, source=file.name)
