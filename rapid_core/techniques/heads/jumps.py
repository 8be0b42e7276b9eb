"""RAPID3's Step-Skip as a sampler of its own: every evaluation's output says how far the next Euler
step goes.

Unlike `heads`, which snaps jumps to the sampler's steps, noise levels here are the policy's own
(Zhao et al. 2025: t_next = floor(t a), a in (0, 1) from the step head). In use a is the mode of the
head's Beta distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..step_skip.schedule import max_evaluations
from .network import beta_mode, on_device, packed
from .rapid3 import CLIP, HeadsPolicy, blind, pooled_vector

LEAST = 0.01  # a jump that would land nearer than this to the end of the run ends there

# What picks the next noise level: from the one just evaluated, the derivative there (1, C, ...) and
# the number of evaluations before it.
Choose = Callable[[float, Tensor, int], float]


def next_level(level: float, jump: float, end: float, scale: float = 1.0) -> float:
    """Noise level after a jump from `level`: floor(t a) with t = round(1000 level), in thousandths;
    `end` within LEAST of it. scale: what noise levels are relative to, where they are not within 0
    .. 1. Raises ValueError for NaN."""
    if not math.isfinite(jump):
        raise ValueError(
            "RAPID Policy Sampler: the step head gave no number; the model's output holds NaN or infinity"
        )
    t = round(1000 * level / scale)
    found = math.floor(t * min(max(jump, CLIP), 1 - CLIP)) / 1000 * scale
    return found if found >= end + LEAST * scale else end


def descend(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    ends: tuple[float, float],
    most: int,
    choose: Choose,
    tell: Callable[[Tensor, Tensor, Tensor, float], None],
) -> Tensor:
    """Euler from noise level `start` (0-d, as a number ends[0]) to ends[1] in at most `most`
    evaluations of denoise(x, sigma); the last allowed one goes all the way. x (1, C, ...). tell:
    (x, denoised, sigma, next level) of each. Raises ValueError for a choice that does not go
    down."""
    (level, end), sigma, made = ends, start, 0
    while level > end:
        denoised = denoise(x, sigma)
        derivative = (x - denoised) / sigma
        after = end if made + 1 >= most else max(end, choose(level, derivative, made))
        if not after < level:
            raise ValueError(
                f"RAPID Policy Sampler: a jump from noise level {level:g} to {after:g} does not go down."
            )
        tell(x, denoised, sigma, after)
        following = sigma.new_full((), after)
        x = x + derivative * (following - sigma)
        level, sigma, made = after, following, made + 1
    return x


class StepHead:
    """The step head in one image's run. steps: of the schedule, which bound the evaluations
    together with the policy's speedup; pooled: gives the model's pooled vector, None where it is
    not known, once the first evaluation is over.

    The head is told the level that it jumps from. (Training on a sampler's grid told it the next
    level there.)"""

    def __init__(
        self,
        policy: HeadsPolicy,
        steps: int,
        end: float,
        scale: float,
        pooled: Callable[[], Tensor | None],
    ):
        self.policy, self.steps, self.end, self.scale, self.pooled = (
            policy,
            steps,
            end,
            scale,
            pooled,
        )
        self.notes: list[str] = []

    def __call__(self, level: float, derivative: Tensor, made: int) -> float:
        """See `Choose`. A host synchronisation beside the engine's: the next evaluation cannot
        begin without it."""
        heads = on_device(self.policy.heads, derivative.device)
        vector, known = pooled_vector(self.pooled(), heads.hidden, derivative)
        self.notes = [] if known else [blind(self.policy.source)]
        numbers = [level / self.scale]
        if (
            heads.numbers > 1
        ):  # the share of all evaluations that may still be computed, counted as in training
            numbers.append((max_evaluations(self.policy.speedup, self.steps) - made) / self.steps)
        filled = torch.stack(
            [derivative.new_full((), n) for n in numbers]
        )  # a copy to the device would be waited for
        logits = heads({"step": packed(derivative)}, filled[None], vector[None])["step"]
        return next_level(level, float(beta_mode(logits[0])), self.end, self.scale)
