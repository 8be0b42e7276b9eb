"""Prediction weights fitted to a schedule's Gram matrix (`quadrature.gram`), step by step of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...quadrature.gram import TERMS, Gram, GramFit
from ...types import Action, Mode, Observation, PredictionWeights


class GramPredictor:
    """Weights fitted to what one image's run computed so far."""

    def __init__(self, gram: Gram, sigmas: Sequence[float]):
        self.fit = GramFit(gram, sigmas)
        self.skipped: dict[int, tuple[list[int], tuple[float, ...]]] = {}
        """By step that was skipped: steps whose derivatives stood for it, and their weights."""
        self._asked: int | None = None  # step of the evaluation in progress, if it has weights

    def weights(self, observation: Observation) -> PredictionWeights | None:
        """Weights of the latest computed derivatives for the present step; None where one of them
        is not at the beginning of a step. Raises ArithmeticError where they cannot be computed or
        are not finite."""
        step = observation.step
        sigmas = observation.sigmas
        while self.fit.step < step:
            used, weights = self.skipped.get(self.fit.step, ([], ()))
            self.fit.advance(used, weights)
        latest = observation.history[-TERMS:]
        past = sigmas[:step]
        if not latest or any(sigma not in past for sigma in latest) or self.fit.step > step:
            return None
        used = [sigmas.index(sigma) for sigma in latest]
        try:
            weights = self.fit.weights(used)
        except torch.linalg.LinAlgError as error:  # pyright: ignore
            raise ArithmeticError(str(error)) from None
        if not all(map(math.isfinite, weights)):
            raise ArithmeticError("weights are not finite")
        self.skipped[step] = used, weights
        self._asked = step
        return tuple(zip(latest, weights, strict=True))

    def executed(self, action: Action) -> None:
        """Forget the weights of a step that was computed after all."""
        if action.mode is Mode.RUN and self._asked is not None:
            self.skipped.pop(self._asked)
        self._asked = None
