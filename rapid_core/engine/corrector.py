"""The corrector of one image: gaps are estimated again once their far end is computed.

At the evaluation that ends a gap the sampler is given, with the derivative it asks for, what the gap
has moved the latent wrongly: x then is where it would have been (see `quadrature.multistep`). The
size of that shift is an estimate of the local error, free of charge (Milne's device)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..quadrature.multistep import CORRECTOR_TERMS, Step, correction_weights
from ..types import Aim
from .history import Point


class Corrector:
    """What one image was given since its last computed evaluation.

    applies: whether the sampler is one that a shift can be given to (Euler); for others it is only
    measured, as an error estimate."""

    def __init__(self, aim: Aim, applies: bool):
        self.aim = aim
        self.applies = applies
        self.gap: list[Step] = []
        """Steps whose derivative was estimated."""
        self.moved: Tensor | None = None
        """(C, ...) how far they have moved the latent: the sum of their lengths times derivatives."""
        self.owed: Tensor | None = None
        """(C, ...) a shift that could not be given yet."""

    def reset(self) -> None:
        """Forget the gap: its far end will not be a computed evaluation of its own."""
        self.gap = []
        self.moved = None
        self.owed = None

    def estimated(self, step: Step, derivative: Tensor) -> None:
        """A step was made along an estimated derivative (C, ...)."""
        start, stop = step
        way = (stop - start) * derivative.float()
        self.moved = way if self.moved is None else self.moved + way
        self.gap.append(step)

    def shift(self, points: Sequence[Point]) -> Tensor | None:
        """How far the latent is from where it should be, (C, ...) float32, as the computed
        derivatives `points` have it, the present one the latest; the gap ends here. None where
        there was none."""
        gap, moved = self.gap, self.moved
        self.gap = []
        self.moved = None
        used = points[-CORRECTOR_TERMS:]
        sigmas = [p.sigma for p in used if not isinstance(p.sigma, Tensor)]
        if moved is None or len(sigmas) < max(2, len(used)):
            return None
        shift = -moved
        for weight, point in zip(correction_weights(sigmas, gap, self.aim), used, strict=True):
            shift = torch.add(shift, point.value.float(), alpha=weight)
        return shift

    def given(self, step: Step, derivative: Tensor, shift: Tensor | None) -> Tensor:
        """The derivative (C, ...) that takes the sampler over `step` and by `shift`."""
        start, stop = step
        owed = shift if self.owed is None else self.owed if shift is None else self.owed + shift
        self.owed = None
        if owed is None or not self.applies:
            return derivative
        if start == stop:
            self.owed = owed
            return derivative
        return derivative + (owed / (stop - start)).to(derivative.dtype)
