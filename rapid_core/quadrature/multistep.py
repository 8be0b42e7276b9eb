"""What stands for a derivative that is not computed, and what a gap is once its end is computed.

Under Euler a run goes on by x += (sigma_next - sigma) * d. A skipped evaluation needs an estimate of
d: *predicted* from the computed derivatives before it (Adams-Bashforth), and *corrected* when the
next one has been computed, so that the gap can be interpolated (Adams-Moulton; predict, evaluate,
correct: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, III.1). Each estimate
is a weighted sum of computed derivatives.

What d stands for is the run's aim. For the full picture it is the derivative at the step's beginning,
which is what Euler uses; for the best picture it is the mean over the step, which corrects Euler's
own error, too. For other samplers it is the value at the skipped sigma.

Of a predicting polynomial's slope only a share is taken, as the run itself measures it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Aim, Observation, PredictionWeights
from .lagrange import Sigma, adams_bashforth

MAX_TERMS = 4  # computed derivatives that a prediction may be the sum of
CORRECTOR_TERMS = 3  # of a correction, the new one among them: a parabola

# share = 0.4 + 0.6 * skill. At every computed evaluation the skill of the extrapolation is measured:
# 1 where the line through the two derivatives before was right, 0 where the last value was. It is 0
# and less where guidance makes the beginning of a run rough, near 1 at its end. These two numbers
# were best on the development prompts of both demo models (docs/lab.md).
SHARE_ALWAYS = 0.4
SHARE_MEASURED = 0.6
# Before there is such a measurement: this share, or the last value alone if the relative L1 change
# between the first two derivatives is above ROUGH (SD3-like 0.7 to 2.5, FLUX-like 0.04 to 0.13).
SHARE_AT_FIRST = 0.75
ROUGH = 0.3

Step = tuple[float, float]  # sigmas of its beginning and end
Moments = tuple[Sigma, ...]


def slope_share(observation: Observation) -> float:
    """Share of the polynomial's slope by which a prediction moves on, 0 to 1."""
    if observation.extrapolation_skill is not None:
        share = SHARE_ALWAYS + SHARE_MEASURED * observation.extrapolation_skill
        return min(1.0, max(0.0, share))
    rough = observation.change is not None and observation.change > ROUGH
    return 0.0 if rough else SHARE_AT_FIRST


def slope_share_on_device(change: Tensor, skill: Tensor) -> Tensor:
    """The same as 0-d tensors, of an evaluation that the host does not know yet. change: relative L1;
    skill: nan before there is one."""
    at_first = torch.where(change > ROUGH, 0.0, SHARE_AT_FIRST)
    return torch.where(skill.isnan(), at_first, SHARE_ALWAYS + SHARE_MEASURED * skill).clamp(0, 1)


def prediction_weights(observation: Observation, order: int) -> PredictionWeights | None:
    """Sigmas and weights of the latest computed derivatives, order + 1 of them or fewer, in place
    of the present one; None where no sigmas are known."""
    sigmas = observation.history[-(order + 1) :]
    if not sigmas:
        return None
    mean = observation.euler and observation.aim is not Aim.FULL_PICTURE
    stop = observation.sigmas[observation.step + 1] if mean else None
    weights = adams_bashforth(sigmas, observation.sigma, stop)
    # They sum to 1, so that this mixes the polynomial with the last value.
    older = [slope_share(observation) * weight for weight in weights[:-1]]
    return tuple(zip(sigmas, [*older, 1.0 - sum(older)], strict=True))


def gap_moments(step: Step, origin: Sigma, aim: Aim) -> Moments:
    """What one step of a gap adds to its moments, the sums over its steps of (stop - start) *
    (sigma - origin)**p, p = 0 .. 2: all that a correction has to know of a gap. sigma: the one that
    d stands for, or the mean of the powers over the step. origin: the node before the gap; one a
    token where tokens have gaps of their own. From there, since powers of sigma itself would leave
    little of float32 to a short gap."""
    start, stop = step
    length = stop - start
    a = start - origin
    if aim is Aim.FULL_PICTURE:
        return length, length * a, length * a * a
    b = stop - origin
    return length, length * (a + b) / 2, length * (a * a + a * b + b * b) / 3


def correction_weights(nodes: Sequence[Sigma], moments: Moments) -> list[Sigma]:
    """Weights of the derivatives computed at `nodes`, sigmas from the origin of `moments` on and no
    more than CORRECTOR_TERMS, for the sum of a gap's (stop - start) * d: how far it has moved the
    latent. A Lagrange polynomial's coefficients times the moments."""
    weights = []
    for j, at in enumerate(nodes):
        powers: list[Sigma] = [1.0]  # of the polynomial, the lowest first
        scale: Sigma = 1.0
        for other in (node for m, node in enumerate(nodes) if m != j):
            raised, lowered = [0.0, *powers], [*powers, 0.0]
            powers = [up - other * down for up, down in zip(raised, lowered, strict=True)]
            scale = scale * (at - other)
        total = sum(c * moment for c, moment in zip(powers, moments, strict=False))
        weights.append(total / scale)
    return weights
