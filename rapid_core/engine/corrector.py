"""The corrector of one image: gaps are estimated again once their far end is computed.

At the evaluation that ends a gap the sampler is given, with the derivative it asks for, what the gap
has moved the latent wrongly: x then is where it would have been (see `quadrature.multistep`). The
size of that shift is an estimate of the local error, free of charge (Milne's device).

Where tokens are chosen each has gaps of its own. What is known of a gap then is a number a token
in place of one for all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..quadrature.multistep import (
    CORRECTOR_TERMS,
    Moments,
    Step,
    correction_weights,
    gap_moments,
)
from ..types import Aim
from .history import Point


class Corrector:
    """What one image was given since its last computed evaluation.

    applies: whether the sampler is one that a shift can be given to (Euler); for others it is only
    measured, as an error estimate."""

    def __init__(self, aim: Aim, applies: bool):
        self.aim = aim
        self.applies = applies
        self.moments: Moments | None = None
        """Of the steps whose derivative was estimated, see `gap_moments`: numbers, or tensors that
        broadcast against the latent where tokens have gaps of their own; None for no such step."""
        self.moved: Tensor | None = None
        """(C, ...) how far they have moved the latent: the sum of their lengths times derivatives."""
        self.owed: Tensor | None = None
        """(C, ...) a shift that could not be given yet."""

    def reset(self) -> None:
        """Forget the gap: its far end will not be a computed evaluation of its own."""
        self.moments = None
        self.moved = None
        self.owed = None

    def estimated(
        self,
        step: Step,
        derivative: Tensor,
        points: Sequence[Point],
        where: Tensor | None = None,
    ) -> None:
        """A step was made along an estimated derivative (C, ...). points: those that are computed;
        where: mask that broadcasts against the latent, of the tokens that have it estimated."""
        if not points:
            return
        start, stop = step
        way = (stop - start) * derivative.float()
        moments = gap_moments(step, points[-1].sigma, self.aim)
        if where is not None:
            way = way.masked_fill(~where, 0.0)
            moments = tuple(where * moment for moment in moments)
        if self.moments is not None and self.moved is not None:
            way = self.moved + way
            moments = tuple(a + b for a, b in zip(self.moments, moments, strict=True))
        self.moved = way
        self.moments = moments

    def shift(self, points: Sequence[Point], where: Tensor | None = None) -> Tensor | None:
        """How far the latent is from where it should be, (C, ...) float32, as the computed
        derivatives `points` have it, the present one the latest; the gap ends here. None where
        there was none. where: mask of the tokens that were computed; the gaps of others go on."""
        moments, moved = self.moments, self.moved
        if moments is None or moved is None:
            return None
        self._end(where)
        used = points[-CORRECTOR_TERMS:]
        if len(used) < 2:
            return None
        nodes = [p.sigma - used[-2].sigma for p in used]
        shift = -moved
        for weight, point in zip(correction_weights(nodes, moments), used, strict=True):
            shift = shift + weight * point.value.float()
        if where is not None or any(isinstance(node, Tensor) for node in nodes):
            # Two of a token's points may be at one sigma; and others are told nothing.
            told = shift.isfinite() if where is None else shift.isfinite() & where
            shift = shift.masked_fill(~told, 0.0)
        return shift

    def _end(self, where: Tensor | None) -> None:
        """The gaps of these tokens are over, of all for None."""
        if where is None or self.moments is None or self.moved is None:
            self.moments = None
            self.moved = None
            return
        self.moments = tuple(~where * moment for moment in self.moments)
        self.moved = self.moved.masked_fill(where, 0.0)

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

    @property
    def bytes(self) -> int:
        """Memory of what gaps have moved the latent, and of what is owed."""
        return sum(t.nbytes for t in (self.moved, self.owed) if t is not None)
