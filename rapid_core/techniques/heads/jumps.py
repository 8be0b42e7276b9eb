"""RAPID3's Step-Skip as a sampler of its own: every evaluation's output says how far the next Euler
step goes.

Unlike `rapid3`, which snaps jumps to the sampler's steps, sigmas here are the policy's own (Zhao et
al. 2025: t_next = floor(t a), a in (0, 1) from the step head). In use a is the mode of the head's
Beta distribution. Each image of a batch goes its own way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...quadrature.spacing import max_evaluations
from ...reasons import ReasonCode
from ...types import Reason
from .network import RunHeads, beta_mode, packed
from .rapid3 import CLIP, Rapid3Policy, pooled_vector

NAME = "RAPID Policy Sampler"
LEAST = 0.01  # a jump that would land nearer than this to the end of the run ends there


@dataclass(frozen=True)
class Evaluated:
    """An image whose next sigma is to be chosen."""

    image: int
    """Number of the image in its batch."""
    sigma: float
    """Sigma that was just evaluated."""
    derivative: Tensor
    """(1, C, ...) the derivative there."""
    made: int
    """Evaluations of the image before it."""


@dataclass(frozen=True)
class Jump:
    """One evaluation of the batch, and where its images go from there."""

    x: Tensor
    """(B, C, ...) the latents that were evaluated."""
    denoised: Tensor
    """(B, C, ...) what came out; of images that had arrived before, what came out last."""
    sigmas: Tensor
    """(B,) of the evaluation; of images that had arrived before, their last one."""
    done: tuple[bool, ...]
    """Images that had arrived before it."""
    landings: tuple[float, ...]
    """The sigma that each image goes on to."""


# What evaluates the model at x (B, C, ...) and sigmas (B,); done: images that have arrived, of
# which nothing is wanted any more.
Denoise = Callable[[Tensor, Tensor, tuple[bool, ...]], Tensor]
# What picks the next sigma of images, one each.
Choose = Callable[[Sequence[Evaluated]], Sequence[float]]


def next_sigma(sigma: float, jump: float, end: float, scale: float = 1.0) -> float:
    """Sigma after a jump: floor(t a) with t = round(1000 sigma), in thousandths; `end` within LEAST
    of it.

    scale: what sigmas are relative to, where they are not within 0 .. 1. Raises ValueError for
    NaN."""
    if not math.isfinite(jump):
        raise ValueError(
            f"{NAME}: the step head gave no number; the model's output holds NaN or infinity"
        )
    t = round(1000 * sigma / scale)
    landing = math.floor(t * min(max(jump, CLIP), 1 - CLIP)) / 1000 * scale
    return landing if landing >= end + LEAST * scale else end


def descend(
    denoise: Denoise,
    x: Tensor,
    start: Tensor,
    ends: tuple[float, float],
    most: int,
    choose: Choose,
    tell: Callable[[Jump], None],
) -> Tensor:
    """Euler from sigma `start` (0-d, as a number ends[0]) to ends[1] in at most `most` evaluations
    of each image; the last allowed one goes all the way. x (B, C, ...).

    Images that have arrived stay as they are, and keep the sigma of their last evaluation. What an
    image becomes does not depend on the others. Raises ValueError for a choice that does not go
    down."""
    first, end = ends
    images = [_Image(number, row, start, first) for number, row in enumerate(x.split(1))]
    while not all(image.at <= end for image in images):
        going = [image for image in images if image.at > end]
        done = tuple(image.at <= end for image in images)
        evaluated = _batch([image.x for image in images])
        sigmas = torch.stack([image.sigma for image in images]).to(x.dtype)
        denoised = denoise(evaluated, sigmas, done)
        for image in going:
            image.evaluated(denoised[image.number : image.number + 1])
        free = [image for image in going if image.made + 1 < most]
        chosen = choose([image.to_choose() for image in free]) if free else ()
        for image in going:
            image.landing = end
        for image, landing in zip(free, chosen, strict=True):
            image.landing = max(end, landing)
        for image in going:
            if not image.landing < image.at:
                raise ValueError(
                    f"{NAME}: a jump from sigma {image.at:g} to {image.landing:g} does not go down."
                )
        shown = _batch([image.denoised for image in images])
        tell(Jump(evaluated, shown, sigmas, done, tuple(image.landing for image in images)))
        for image in going:
            image.go(end)
    return _batch([image.x for image in images])


class _Image:
    """One image on its way down."""

    def __init__(self, number: int, x: Tensor, sigma: Tensor, at: float) -> None:
        self.number = number
        self.x = x  # (1, C, ...)
        self.sigma = sigma  # 0-d, of the next evaluation, or of the last
        self.at = at  # the sigma that x is at
        self.made = 0
        self.landing = at
        self.denoised = x
        self.derivative = x

    def evaluated(self, denoised: Tensor) -> None:
        """The model was evaluated at x."""
        self.denoised = denoised
        self.derivative = (self.x - denoised) / self.sigma

    def to_choose(self) -> Evaluated:
        """What a choice is made from."""
        return Evaluated(self.number, self.at, self.derivative, self.made)

    def go(self, end: float) -> None:
        """One Euler step to the landing."""
        landing = self.sigma.new_full((), self.landing)
        self.x = self.x + self.derivative * (landing - self.sigma)
        self.at = self.landing
        self.made += 1
        if self.at > end:
            self.sigma = landing


def _batch(rows: Sequence[Tensor]) -> Tensor:
    """Rows (1, ...) as one batch."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


class StepHead:
    """The step head as what chooses in `descend`.

    steps: of the schedule, which bound the evaluations together with the policy's speedup. end: of
    the run; scale: see `next_sigma`. pooled: gives an image's pooled vector of the model, None
    where it is not known, once its first evaluation is over.

    The head is told the sigma that it jumps from. (Training on a sampler's grid told it the next
    sigma there.)"""

    def __init__(
        self,
        policy: Rapid3Policy,
        steps: int,
        end: float,
        scale: float,
        pooled: Callable[[int], Tensor | None],
    ) -> None:
        self.policy = policy
        self.steps = steps
        self.end = end
        self.scale = scale
        self.pooled = pooled
        self.heads = RunHeads(policy.heads)
        self.blind: set[int] = set()  # images whose pooled vector is not known

    @property
    def notes(self) -> Sequence[Reason]:
        """What it has to say about the run."""
        if not self.blind:
            return ()
        return (Reason(ReasonCode.POOLED_UNKNOWN, file=self.policy.source),)

    def __call__(self, images: Sequence[Evaluated]) -> Sequence[float]:
        """See `Choose`. A host synchronisation beside the engine's: the next evaluation cannot
        begin without it."""
        jumps = torch.stack([self._jump(image) for image in images]).tolist()
        return [
            next_sigma(image.sigma, jump, self.end, self.scale)
            for image, jump in zip(images, jumps, strict=True)
        ]

    def _jump(self, seen: Evaluated) -> Tensor:
        """The most likely jump, 0-d on the device. By itself and not in a batch, so that it does
        not depend on the other images."""
        derivative = seen.derivative
        heads = self.heads.on(derivative.device)
        vector, known = pooled_vector(self.pooled(seen.image), heads.hidden, derivative)
        if known:
            self.blind.discard(seen.image)
        else:
            self.blind.add(seen.image)
        numbers = [seen.sigma]  # as it is, also where the run begins above 1
        if heads.numbers > 1:  # the share of all evaluations that may still be computed
            left = max_evaluations(self.policy.speedup, self.steps) - seen.made
            numbers.append(left / self.steps)
        # Filled and not copied to the device, which would be waited for.
        filled = torch.stack([derivative.new_full((), number) for number in numbers])
        logits = heads({"step": packed(derivative)}, filled[None], vector[None])["step"]
        return beta_mode(logits[0])
