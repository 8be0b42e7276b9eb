"""Policies out of policy files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..policy_file import PolicyError, PolicyFile
from .schedule import Plan, SchedulePolicy
from .threshold import ThresholdPolicy

MOST_WEIGHTS = 4  # computed derivatives that a plan's forecast may be the sum of
SAME = 0.02  # relative difference of speed-ups that are the same budget


def plan_tensors(plans: Sequence[Plan]) -> dict[str, torch.Tensor]:
    """Tensors of a schedule file: what `plans_of` reads, one plan a budget, in the file's order."""
    out = {"sigmas": torch.tensor(plans[0].schedule, dtype=torch.float32)}
    for i, plan in enumerate(plans):
        weights = torch.zeros(len(plan.computed), MOST_WEIGHTS)
        for step, some in enumerate(plan.weights):
            if some:
                weights[step, -len(some) :] = torch.tensor(some)
        out[f"plan.{i}.computed"] = torch.tensor(plan.computed, dtype=torch.uint8)
        out[f"plan.{i}.weights"] = weights
        out[f"plan.{i}.terms"] = torch.tensor([len(some) for some in plan.weights], dtype=torch.uint8)
    return out


def plans_of(file: PolicyFile) -> list[Plan]:
    """The plans of a schedule file, one a budget. Raises PolicyError."""
    sigmas = file.tensor("sigmas", (None,), torch.float32)
    schedule, steps = tuple(sigmas.tolist()), len(sigmas) - 1
    if steps < 2 or any(b >= a for a, b in zip(schedule, schedule[1:], strict=False)):
        raise file.wrong("sigmas", "must fall from step to step, over 2 steps at least")
    out = []
    for i, budget in enumerate(file.budgets):
        on = file.tensor(f"plan.{i}.computed", (steps,), torch.uint8).bool().tolist()
        weights = file.tensor(f"plan.{i}.weights", (steps, MOST_WEIGHTS), torch.float32).tolist()
        terms = file.tensor(f"plan.{i}.terms", (steps,), torch.uint8).tolist()
        if not on[0] or sum(on) > steps / budget * (1 + SAME):
            raise file.wrong(f"plan.{i}.computed", f"computes {sum(on)} of {steps} steps; the first must be among "
                             f"them, and {budget:g} times the speed allows {steps / budget:.1f}")  # fmt: skip
        for step, number in enumerate(terms):
            if number > min(MOST_WEIGHTS, sum(on[:step])) or (number and on[step]):
                raise file.wrong(f"plan.{i}.terms", f"step {step} cannot be the sum of {number} computed derivatives")
        some = tuple(tuple(w[MOST_WEIGHTS - n :]) for w, n in zip(weights, terms, strict=True))
        out.append(Plan(tuple(on), some, schedule))
    return out


def check_family(file: PolicyFile, family: str) -> None:
    """Raise PolicyError for a policy of another model family."""
    if file.architecture != family:
        raise PolicyError(f"policy {file.name}: architecture = {file.architecture!r}, trained on {file.base_model}; "
                          f"this model is {family}. Choose a policy of its family, or none.")  # fmt: skip


def policy_of(file: PolicyFile, speedup: float, guard: float) -> SchedulePolicy | ThresholdPolicy:
    """The file's policy at a speed-up. Between the budgets it was made for, the nearest plan is moved, thresholds are
    interpolated."""
    if file.kind == "schedule":
        plans = plans_of(file)
        nearest = min(range(len(plans)), key=lambda i: abs(math.log(file.budgets[i] / speedup)))
        return SchedulePolicy(speedup, guard=guard, plan=plans[nearest], source=file.name)
    if file.kind == "threshold":
        return ThresholdPolicy(threshold_of(file, speedup), guard=guard)
    raise file.wrong("kind", f"= {file.kind!r} cannot be used by this node")


def threshold_of(file: PolicyFile, speedup: float) -> float:
    """Cache Reuse's threshold at a speed-up, between those of the budgets on a line of logarithms."""
    budgets = file.budgets
    found = file.tensor("thresholds", (len(budgets),), torch.float32).tolist()
    if min(found) <= 0:
        raise file.wrong("thresholds", "must be above 0")
    if speedup <= budgets[0] or len(budgets) == 1:
        return found[0]
    above = next((i for i, b in enumerate(budgets) if b >= speedup), len(budgets) - 1)
    low, high = above - 1, above
    place = min(1.0, (speedup - budgets[low]) / (budgets[high] - budgets[low]))
    return math.exp((1 - place) * math.log(found[low]) + place * math.log(found[high]))
