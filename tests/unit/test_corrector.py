"""Gaps that are estimated again once their far end is computed."""

import math

import pytest
import torch

from rapid_core.engine.plan import RunPlan
from rapid_core.engine.run import Run
from rapid_core.techniques.step_skip.schedule import SchedulePolicy
from rapid_core.types import Aim, Mode, SamplerKind, Window

STEPS = 12
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS)) + (0.0,)
A, B, C = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def derivative(sigma, order):
    """A derivative that depends on sigma alone, so that a run is a sum."""
    return A + order * B * sigma + (order == 2) * C * sigma**2


def integral(order):
    """Of the derivative from 1 to 0."""
    return -(A + order * B / 2 + (order == 2) * C / 3)


def sample(policy, order, euler=True, computed=None):
    """A run of Euler on the toy, in the engine: the latent, and which steps were computed.

    computed: numbers of the steps that are computed, whatever the policy says."""
    plan = RunPlan(
        policies=(policy,),
        windows=(Window(2.0, -1.0),),
        shape=(1, 2, 4, 4),
        sigmas=SIGMAS,
        sampler_kind=SamplerKind.EULER if euler else SamplerKind.ONE_EVALUATION,
        modes=policy.requirements.modes,
        prediction_order=policy.requirements.prediction_order,
        history=policy.requirements.history,
        aim=policy.requirements.aim,
    )
    run = Run(plan)
    x = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    ran = []
    for i in range(STEPS):
        sigma = SIGMAS[i]
        evaluation = run.begin(x, torch.tensor([sigma], dtype=torch.float64))
        if computed is not None and i in computed:
            evaluation.force_full("told")
        if evaluation.actions[0].mode is Mode.RUN:
            found = derivative(sigma, order)
            run.images[0].cond("all").add(sigma, found)
            ran.append(i)
        else:
            found = run.images[0].predict_cond("all", evaluation)
        evaluation.cond_keys.add("all")
        denoised = x - sigma * found
        before = denoised.clone()
        given = run.end(evaluation, x, denoised)
        assert torch.equal(denoised, before)
        x = x + (SIGMAS[i + 1] - sigma) * (x - given) / sigma
    run.finish()
    return x[0], ran, run


def full(order):
    """Where all of the steps lead."""
    return sum((SIGMAS[i + 1] - SIGMAS[i]) * derivative(SIGMAS[i], order) for i in range(STEPS))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_run_whose_derivative_is_a_parabola_ends_at_the_full_picture(order):
    """Exact from the second gap on; the first has two computed ends only, which make a line."""
    x, ran, _ = sample(SchedulePolicy(speedup=1.8), order)
    assert len(ran) == 6
    first = ran[1] if ran[1] > 1 else ran[2]
    if order < 2:
        assert torch.allclose(x, full(order), atol=1e-5)
    else:
        far = (x - full(order)).abs().max()
        plain = (integral(order) - full(order)).abs().max()
        assert first <= 3 and far < 0.1 * plain


@pytest.mark.parametrize("order", [0, 1])
def test_the_best_picture_is_the_integral(order):
    x, ran, _ = sample(SchedulePolicy(speedup=1.8, aim=Aim.BEST_PICTURE), order)
    assert len(ran) == 6
    # The last step has no far end: of a line its mean is known by as much of the slope as is taken.
    assert torch.allclose(x, integral(order), atol=3e-2 if order else 1e-5)
    if order:
        assert (x - integral(1)).abs().max() < 0.2 * (full(1) - integral(1)).abs().max()


def test_without_gaps_the_full_picture_is_left_alone():
    x, ran, run = sample(SchedulePolicy(speedup=1.0), 2)
    assert ran == [*range(STEPS)] and torch.allclose(x, full(2), atol=1e-6)
    assert not run.images[0].gap_errors


def test_other_samplers_are_given_what_they_asked_for_and_the_error_is_measured():
    x, ran, run = sample(SchedulePolicy(speedup=1.8), 2, euler=False)
    errors = run.images[0].gap_errors
    assert errors and all(math.isfinite(e) and e >= 0 for e in errors.values())
    assert set(errors) <= set(ran)
    corrected, _, _ = sample(SchedulePolicy(speedup=1.8), 2)
    assert (x - full(2)).abs().max() > 2 * (corrected - full(2)).abs().max()


def test_the_error_of_a_gap_that_was_predicted_rightly_is_nothing():
    _, _, run = sample(SchedulePolicy(speedup=1.8), 0)
    assert max(run.images[0].gap_errors.values()) < 1e-12
    _, _, rough = sample(SchedulePolicy(speedup=1.8), 2)
    assert max(rough.images[0].gap_errors.values()) > 1e-8
