"""What stands for a derivative that is not computed.

Under Euler a run goes on by x += (sigma_next - sigma) * d, so a skipped evaluation needs the mean
derivative over its step. The polynomial through the latest computed derivatives gives it as a
weighted sum of them: the weights of an Adams-Bashforth method on the run's own sigmas. For other
samplers the polynomial's value at the skipped sigma is the prediction. Either way only a share of
the polynomial's slope is taken, as the run itself measures it."""

from __future__ import annotations

from ..types import Observation, PredictionWeights
from .lagrange import adams_bashforth

MAX_TERMS = 4  # computed derivatives that a prediction may be the sum of

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


def slope_share(observation: Observation) -> float:
    """Share of the polynomial's slope by which a prediction moves on, 0 to 1."""
    if observation.extrapolation_skill is not None:
        share = SHARE_ALWAYS + SHARE_MEASURED * observation.extrapolation_skill
        return min(1.0, max(0.0, share))
    rough = observation.change is not None and observation.change > ROUGH
    return 0.0 if rough else SHARE_AT_FIRST


def prediction_weights(observation: Observation, order: int) -> PredictionWeights | None:
    """Sigmas and weights of the latest computed derivatives, order + 1 of them or fewer, in place
    of the present one; None where no sigmas are known."""
    sigmas = observation.history[-(order + 1) :]
    if not sigmas:
        return None
    stop = observation.sigmas[observation.step + 1] if observation.euler else None
    weights = adams_bashforth(sigmas, observation.sigma, stop)
    # They sum to 1, so that this mixes the polynomial with the last value.
    older = [slope_share(observation) * weight for weight in weights[:-1]]
    return tuple(zip(sigmas, [*older, 1.0 - sum(older)], strict=True))
