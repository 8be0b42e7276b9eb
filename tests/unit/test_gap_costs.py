"""What gaps cost on one model: seen in full pictures, and gone by."""

import math

import numpy as np
import pytest
import torch

from rapid_core.calibration.gaps import with_gap
from rapid_core.engine.plan import HostFacts, RunPlan, plan_run
from rapid_core.engine.run import Run
from rapid_core.engine.watcher import ELEMENTS, Watcher
from rapid_core.quadrature.gap_costs import SHARE, WORTH, GapCosts, errors_of, gaps_of
from rapid_core.quadrature.spacing import Spacing, best_spaced, difficulty
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.types import Mode, SamplerKind, Window

STEPS = 12
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS)) + (0.0,)
SHAPE = (2, 4, 4)
WAVES = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def derivative(sigma):
    """One that depends on sigma alone, so that a gap changes nothing but what it skips."""
    return WAVES[0] + WAVES[1] * math.sin(6 * sigma) + WAVES[2] * math.exp(-9 * sigma)


def sampled(policy, sigmas=SIGMAS, batch=1, broken=None):
    """A run of Euler in the engine: the latents (B, C, h, w), which steps were computed, the run.
    broken: the step at which the model gives NaN."""
    needs = policy.requirements
    plan = RunPlan(
        policies=(policy,),
        windows=(Window(2.0, -1.0),),
        batch=batch,
        shape=(batch, *SHAPE),
        sigmas=sigmas,
        sampler_kind=SamplerKind.EULER,
        modes=needs.modes,
        prediction_order=needs.prediction_order,
        history=needs.history,
        aim=needs.aim,
        watch=needs.watch,
    )
    run = Run(plan)
    x = torch.zeros(batch, *SHAPE, dtype=torch.float64)
    ran = []
    for i, sigma in enumerate(sigmas[:-1]):
        evaluation = run.begin(x, torch.tensor([sigma], dtype=torch.float64))
        found = torch.zeros_like(x)
        for image in run.images:
            if evaluation.actions[image.number].mode is Mode.RUN:
                found[image.number] = derivative(sigma) * (1 + image.number)
                image.cond("all").add(sigma, found[image.number])
            else:
                found[image.number] = image.predict_cond("all", evaluation)
        if i == broken:
            found[0] = math.nan
        ran += [i] if evaluation.actions[0].mode is Mode.RUN else []
        evaluation.cond_keys.add("all")
        given = run.end(evaluation, x, x - sigma * found)
        run.counter.passed(i)  # the sampler's callback
        x = x + (sigmas[i + 1] - sigma) * (x - given) / sigma
    run.finish()
    return x, ran, run


def test_a_watched_run_tells_what_every_gap_does():
    """Exactly, where the derivative depends on sigma alone: drawn again with that one gap, the run
    ends as far off."""
    watching = SchedulePolicy(speedup=3.0, learn=True, watch=True)
    full, ran, run = sampled(watching)
    assert ran == list(range(STEPS))
    (errors,) = run.gap_errors()
    assert errors.keys() == set(gaps_of(STEPS))
    size = full.square().mean()
    for gap, error in errors.items():
        schedule = Schedule(with_gap(gap, STEPS), SIGMAS)
        x, _, _ = sampled(SchedulePolicy(schedule=schedule, source="a file", safe=False))
        true = float((x - full).square().mean() / size)
        assert error == pytest.approx(true, rel=1e-3, abs=1e-12)


def test_every_image_of_a_batch_is_watched_and_its_size_does_not_count():
    _, _, run = sampled(SchedulePolicy(watch=True), batch=2)
    one, two = run.gap_errors()
    assert one == pytest.approx(two, rel=1e-4)
    assert run.images[0].watcher.bytes > 0 and run.bytes >= 2 * run.images[0].watcher.bytes


def test_a_run_that_was_not_computed_from_end_to_end_shows_nothing():
    _, _, run = sampled(SchedulePolicy(speedup=2.0))
    assert run.gap_errors() == []
    _, _, run = sampled(SchedulePolicy(watch=True), broken=4)
    assert run.gap_errors() == []
    watcher = Watcher(SIGMAS)
    watcher.add(0, derivative(1.0), derivative(1.0))
    assert watcher.errors() is None and not watcher.whole


def test_a_picture_of_nan_was_watched_all_the_same():
    """It says nothing of the next one, where a run that was not looked at step by step does."""
    _, _, run = sampled(SchedulePolicy(watch=True), broken=4)
    assert run.watched and run.gap_errors() == []
    assert not sampled(SchedulePolicy(speedup=2.0))[2].watched


def test_a_watched_run_is_the_full_run_whatever_it_aims_at():
    """Nothing is corrected or moved in it, and mode quality plans nothing."""
    for policy in (SchedulePolicy(watch=True), SchedulePolicy(watch=True, closeness=40.0)):
        x, ran, _ = sampled(policy)
        steps = zip(SIGMAS, SIGMAS[1:], strict=False)
        assert ran == list(range(STEPS))
        assert torch.allclose(x[0], sum((b - a) * derivative(a) for a, b in steps))


def test_few_elements_of_a_large_latent_tell_as_much():
    watcher, shape = Watcher(SIGMAS), (4, 3, 160, 160)
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    rows = [noise[0] + noise[1] * math.sin(6 * s) + noise[2] * s**3 for s in SIGMAS[:-1]]
    for step, row in enumerate(rows):
        watcher.add(step, row, noise[0])
    assert watcher.bytes < 5 * (STEPS + 2) * ELEMENTS
    stacked = torch.stack([row.flatten() for row in rows]).double()
    products = stacked @ stacked.T / stacked.shape[1] / float(noise[0].double().square().mean())
    whole = errors_of(products.numpy(), SIGMAS)
    errors = watcher.errors()
    assert all(errors[gap] == pytest.approx(whole[gap], rel=0.1, abs=1e-9) for gap in whole)


def test_what_a_mask_keeps_is_not_looked_at():
    part = torch.zeros(1, 4, 4)
    part[:, :2] = 1.0
    plain, masked = Watcher(SIGMAS), Watcher(SIGMAS, part)
    for step, sigma in enumerate(SIGMAS[:-1]):
        value = derivative(sigma)
        plain.add(step, value * part, value * part)
        value[:, 2:] = 1e3 * step * step  # the host's own
        masked.add(step, value, value)
    assert masked.errors() == pytest.approx(plain.errors())


def table(scale=lambda sigma: 1.0, sigmas=SIGMAS):
    """Errors as the formula has them, times a scale at the middle of each gap."""
    spacing = Spacing(sigmas)
    return {
        (a, b): 1e-3 * spacing.cost(a, b) * scale((sigmas[a] + sigmas[b]) / 2)
        for a, b in gaps_of(len(sigmas) - 1)
    }


def test_costs_as_the_formula_has_them_change_nothing():
    costs = GapCosts.seen([table(), table()], SIGMAS)
    assert costs.pictures == 2
    for count in range(1, STEPS + 1):
        assert costs.best(count, SIGMAS) == best_spaced(count, SIGMAS)


def test_where_gaps_cost_more_more_is_computed():
    costs = GapCosts.seen([table(lambda sigma: 1e6 if sigma < 0.5 else 1.0)] * 2, SIGMAS)
    plan, usual = costs.best(6, SIGMAS), best_spaced(6, SIGMAS)
    late = slice(STEPS // 2, None)
    assert sum(plan) == sum(usual) == 6 and plan[0] and plan[-1]
    assert sum(plan[late]) > sum(usual[late])
    own = costs.on(SIGMAS)
    spacing = Spacing(SIGMAS, own)
    assert spacing.total(plan) < spacing.total(usual) * 10 ** (-WORTH / 10)


def test_a_plan_that_is_hardly_better_does_not_replace_the_formulas():
    costs = GapCosts.seen([table(lambda sigma: 1.0 + 0.2 * (sigma < 0.5))] * 4, SIGMAS)
    assert all(costs.best(n, SIGMAS) == best_spaced(n, SIGMAS) for n in range(1, STEPS + 1))


def late_gaps_cost(*factors):
    """Costs by one picture a factor: that of gaps late in the run, beside the formula."""
    by_late = [table(lambda sigma, by=by: by if sigma < 0.5 else 1.0) for by in factors]
    return GapCosts.seen(by_late, SIGMAS)


def test_one_picture_alone_changes_no_plan():
    """It does not say how far pictures disagree."""
    usual = best_spaced(6, SIGMAS)
    assert late_gaps_cost(1e6).best(6, SIGMAS) == usual
    assert late_gaps_cost(1e6, 1e6).best(6, SIGMAS) != usual


def test_pictures_that_disagree_about_a_plan_change_none():
    usual = best_spaced(6, SIGMAS)
    agree, disagree = late_gaps_cost(1e6, 1e5, 1e6, 1e5), late_gaps_cost(1e8, 1e8, 1e8, 1e-2)
    assert agree.best(6, SIGMAS) != usual
    # By the mean of costs alone it would be another plan here, too.
    spacing = Spacing(SIGMAS, disagree.on(SIGMAS))
    plan = spacing.best(6)
    assert 10 * math.log10(spacing.total(usual) / spacing.total(plan)) > WORTH
    assert disagree.best(6, SIGMAS) == usual


@pytest.mark.parametrize("steps", [9, 12, 31])
def test_costs_move_to_another_schedule_with_their_sigmas(steps):
    hard = 1e6
    costs = GapCosts.seen([table(lambda sigma: hard if sigma < 0.5 else 1.0)] * 2, SIGMAS)
    sigmas = tuple((1 - i / steps) ** 1.4 for i in range(steps)) + (0.0,)
    formula = Spacing(sigmas)
    for (a, b), cost in costs.on(sigmas).items():
        beside = math.log(cost / formula.cost(a, b)) - SHARE * math.log(1e-3)
        ends = sorted((sigmas[a], sigmas[b]))
        if ends[0] > 0.8:
            assert abs(beside) < 0.1
        if ends[1] < 0.2:
            assert beside == pytest.approx(SHARE * math.log(hard), rel=0.05)
    assert difficulty(sigmas[1]) < difficulty(sigmas[2])
    plan = costs.best(steps // 2, sigmas)
    assert sum(plan) == steps // 2 and plan[0]


def test_costs_are_asked_on_rising_sigmas_and_short_runs_too():
    costs = GapCosts.seen([table()], SIGMAS)
    rising = (0.2, 0.9, 0.5, 0.1, 0.0)
    assert costs.best(2, rising) == best_spaced(2, rising)
    assert costs.best(1, (1.0, 0.0)) == (True,)
    assert sum(costs.best(2, (1.0, 0.6, 0.3, 0.0))) == 2
    assert GapCosts.seen([], SIGMAS).best(5, SIGMAS) == best_spaced(5, SIGMAS)


@pytest.mark.parametrize("equal", [2, 3, 11])
def test_costs_are_gone_by_where_sigmas_stand_still(equal):
    """More of them than the longest gap has steps, too: nothing may divide by a gap's length."""
    costs = GapCosts.seen([table(lambda sigma: 1e6 if sigma < 0.5 else 1.0)] * 2, SIGMAS)
    sigmas = (*SIGMAS[:5], *SIGMAS[5:6] * equal, *SIGMAS[6:])
    steps = len(sigmas) - 1
    for count in range(2, steps + 1):
        assert sum(costs.best(count, sigmas)) == count
    _, ran, _ = sampled(SchedulePolicy(speedup=2.0, costs=costs), sigmas)
    assert 2 <= len(ran) <= steps // 2


def test_products_that_are_not_quite_positive_give_no_negative_error():
    assert min(errors_of(-np.eye(STEPS), SIGMAS).values()) == 0.0


def test_a_watched_run_is_planned_as_one():
    host = HostFacts(shape=(1, *SHAPE), sigmas=SIGMAS)
    plan = plan_run([SchedulePolicy(watch=True)], host)
    assert plan.watch and plan.aim is None
    assert not plan_run([SchedulePolicy()], host).watch
