"""Prediction weights fitted on whole runs."""

import torch

from rapid_core.quadrature.gram import Gram
from rapid_core.quadrature.spacing import evenly_spaced
from rapid_core.techniques.step_skip.schedule import Schedule
from rapid_testing.runs import bending, products_of, weights_by_hand

STEPS = 12
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS)) + (0.0,)


def final_error(schedule, derivatives, parts=1):
    """Error of the last latent where every derivative is the true run's, relative to how far the
    run goes."""
    error, way = torch.zeros(64), torch.zeros(64)
    weights = [None] * STEPS if schedule.gram is None else weights_by_hand(schedule)
    for i in range(STEPS):
        length = SIGMAS[i + 1] - SIGMAS[i]
        true = derivatives[i * parts : (i + 1) * parts].mean(0)
        used = derivatives[i * parts]
        if not schedule.computed[i]:
            used = sum(w * derivatives[SIGMAS.index(sigma) * parts] for sigma, w in weights[i])
        error, way = error + length * (used - true), way + length * true
    return float(error.norm() / way.norm())


def test_what_two_derivatives_span_is_predicted_exactly():
    derivatives = bending(SIGMAS, bend=0)
    gram = Gram.of(products_of(derivatives), STEPS)
    schedule = Schedule(evenly_spaced(5, STEPS), SIGMAS, gram)
    assert not gram.within
    assert final_error(schedule, derivatives) < 1e-3


def test_with_refined_steps_the_errors_of_computed_steps_are_made_good_too():
    """Euler's own error is in the computed steps; the weights of the others pay it back."""
    derivatives = bending(SIGMAS, parts=8, bend=0)
    gram = Gram.of(products_of(derivatives), STEPS)
    schedule = Schedule(evenly_spaced(5, STEPS)[:-1] + (False,), SIGMAS, gram)
    full = Schedule((True,) * STEPS, SIGMAS)
    assert gram.within
    assert final_error(schedule, derivatives, 8) < 1e-3
    assert final_error(full, derivatives, 8) > 0.01
