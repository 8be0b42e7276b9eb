"""What a run in full shows of its model: inner products of its derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quadrature.gap_costs import Gap, errors_of
from ..transfer import to_device

# Elements of a latent that are looked at: the mean square of any sum of derivatives is then known
# within some percent, whatever the latent's size.
ELEMENTS = 16_384


class Watcher:
    """The derivatives of one image at some elements of the latent, step by step.

    part (C, ...) or None: what is sampled, where the rest of the latent is given (inpainting)."""

    def __init__(self, sigmas: tuple[float, ...], part: Tensor | None = None):
        self.sigmas = sigmas
        self.part = part
        self.rows: dict[int, Tensor] = {}
        self.picture: Tensor | None = None
        """(n,) the denoised latent of the last step."""
        self._places: Tensor | None = None
        self._sampled: Tensor | None = None

    def add(self, step: int, derivative: Tensor, denoised: Tensor) -> None:
        """The step was computed in full: its derivative (C, ...) and what the model made of it. Of
        several evaluations of a step the first counts, which is at the step's beginning."""
        if self._places is None:
            self._choose(derivative)
        self.rows.setdefault(step, self._at_places(derivative))
        if step == len(self.sigmas) - 2:
            self.picture = self._at_places(denoised)

    def _choose(self, like: Tensor) -> None:
        number = like.numel()
        if number <= ELEMENTS:
            places = torch.arange(number)
        else:  # not evenly: that would hit the same columns in every row
            generator = torch.Generator().manual_seed(0)
            places = torch.randint(number, (ELEMENTS,), generator=generator)
        self._places = to_device(places, like.device)
        if self.part is not None:
            part = to_device(self.part, like.device).expand(like.shape).flatten()
            self._sampled = part[self._places] > 0

    def _at_places(self, value: Tensor) -> Tensor:
        chosen = value.flatten()[self._places].float()
        return chosen if self._sampled is None else chosen * self._sampled

    def errors(self) -> dict[Gap, float] | None:
        """Of every gap, as a share of the latent's mean square; None where a step was not computed,
        or numbers are not finite. Fetches from the device."""
        if self.picture is None or not self.whole:
            return None
        rows = torch.stack([self.rows[step] for step in sorted(self.rows)]).cpu().double()
        size = self.picture.cpu().double().square().mean()
        products = rows @ rows.T / rows.shape[1] / size
        if not products.isfinite().all():
            return None
        return errors_of(products.numpy(), self.sigmas)

    @property
    def whole(self) -> bool:
        """Whether all steps were seen."""
        return len(self.rows) == len(self.sigmas) - 1

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        kept = [*self.rows.values(), *(t for t in (self.picture, self._places) if t is not None)]
        return sum(t.nbytes for t in kept)
