"""Costs on the demo models, and settings of rivals that cost as much."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

from benchmarks.costs import SPARSITY, cost_function
from demo.world import world_of
from evaluation.decisions import decisions
from evaluation.subjects import Subject
from evaluation.suites import CostOf, Method, Suite
from rapid_core.architectures import describe
from rapid_core.cost import CostModel
from rapid_core.types import Sparsity

SAMPLERS = {
    "euler": 1,
    "dpmpp_2m": 1,
    "res_multistep": 1,
    "uni_pc": 1,
    "heun": 2,
}  # evaluations a step
COLUMNS = (
    "model",
    "target",
    "method",
    "prompts",
    "cost",
    "computed",
    "skipped",
    "psnr",
    "ci",
    "psnr_p5",
    "psnr_worst",
    "psnr_ode",
    "ssim",
    "accuracy",
    "fid",
)
FIRST_SEED = 3000  # of development prompts
LOWEST = 0.001  # threshold that is tried
HALVINGS = 8


def own_cost(subject: Subject, size: int, sparsity: Sparsity = SPARSITY) -> CostOf:
    """Cost on the demo model itself, of pictures of `size` pixels."""
    model = subject.model.model.diffusion_model
    architecture = describe(model)
    assert architecture is not None
    text = world_of(subject.weights).language.tokens
    return cost_function(CostModel(model, architecture), (size // 16) ** 2, text, sparsity)


def cost_on_dev(
    suite: Suite,
    patch: Callable[[Any], Any],
    number: int,
    cost: Callable[[Subject, int], CostOf] = own_cost,
    alone: bool = False,
) -> float:
    """Mean cost of a patch over development prompts, as a share of the full run's. alone: every
    picture in a run of its own."""
    texts = world_of(suite.subject.weights).prompts(number, "dev").prompts()
    model = patch(suite.subject.model)
    cost_of = cost(suite.subject, suite.scale.size)
    size = 1 if alone else number
    costs = []
    for start in range(0, number, size):
        chosen = texts[start : start + size]
        seeds = [FIRST_SEED + start + i for i in range(size)]
        drawn = suite.subject.sample_many(model, chosen, seeds, suite.scale.size, suite.steps)
        computed = round(drawn.computed / size)
        costs += [cost_of(decisions(model, image, computed)) for image in range(size)]
    return mean(costs) / suite.steps


def threshold_at(
    suite: Suite,
    goal: float,
    number: int,
    patch: Callable[[float], Callable[[Any], Any]],
    alone: bool = False,
    high: float = 1.0,
) -> float | None:
    """Smallest threshold at which `patch` costs at most `goal` on development prompts, within 3 %;
    None where even that of `high` costs more."""
    cost_at = partial(cost_on_dev, suite, number=number, alone=alone)
    if cost_at(patch(high)) > goal:
        return None
    low = LOWEST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if cost_at(patch(middle)) <= goal:
            high = middle
        else:
            low = middle
    return high


def fewer_steps(
    target: str, evaluations: float, samplers: dict[str, int] = SAMPLERS
) -> list[Method]:
    """Fewer steps of every sampler, at so many evaluations; rounded up. samplers: evaluations a
    step by name."""
    methods = []
    for sampler, a_step in samplers.items():
        steps = max(2, math.ceil(evaluations / a_step))
        methods.append(Method(f"fewer_{sampler}", target, steps=steps, sampler=sampler))
    return methods
