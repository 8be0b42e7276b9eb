"""What happens in a run, written down while it goes on and put together when it is over."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..record import EvaluationRecord, RunRecord, fingerprint, pack
from ..types import Action, Mode
from .evaluation import Evaluation
from .run import RunState


class RunRecorder:
    """Of one run. notes: what a report says beside its figures, each once."""

    def __init__(self, notes: tuple[str, ...] = ()):
        self.notes: list[str] = list(notes)
        self.evaluations: list[EvaluationRecord] = []
        self.maps: list[list[Tensor | None]] = []  # tokens that ran, per evaluation and image
        self.peak = 0
        self.started: float | None = None
        self.stopped = 0.0

    def note(self, text: str) -> None:
        """Something that a report should say."""
        if text not in self.notes:
            self.notes.append(text)

    def begin(self) -> None:
        """The sampling loop's clock starts with the first evaluation."""
        self.started = self.started or time.perf_counter()

    def add(self, evaluation: Evaluation, state: RunState, stored: int, sparse: bool) -> None:
        """An evaluation has ended. stored: bytes kept of attentions; sparse: whether anybody chose
        densities."""
        self.peak = max(self.peak, state.bytes + stored)
        now = time.perf_counter()
        seconds, self.stopped = now - (self.stopped or self.started or now), now
        actions = evaluation.actions
        thin = [
            (a.density, a.measures) if i in evaluation.sparse_images else (1.0, None)
            for i, a in enumerate(actions)
        ]
        self.evaluations.append(
            EvaluationRecord(
                evaluation.index,
                evaluation.sigma,
                evaluation.occurrence,
                tuple(action.level.value for action in actions),
                tuple(share(action, state) for action in actions),
                tuple(evaluation.spent),
                tuple(evaluation.dense),
                tuple(map(finite, evaluation.errors)),
                (None,) * state.batch,
                tuple(evaluation.reasons),
                density=tuple(density for density, _ in thin) if sparse else (),
                measures=tuple(measures for _, measures in thin) if sparse else (),
                seconds=round(seconds, 6),
            )
        )
        if state.regions:
            self.maps.append([action.tokens for action in actions])

    def finish(
        self,
        state: RunState,
        sampler: str,
        family: str,
        shape: tuple[int, ...],
        policies: tuple[dict, ...],
        status: str,
        result: Any,
    ) -> RunRecord:
        """The record of the run; what was measured last and the maps of tokens are fetched here,
        once."""
        if status == "finished":
            state.finish()
        measured, regions = state.measured_log, state.regions
        evaluations = tuple(
            replace(
                e,
                measured=tuple(finite(measured.get((e.index, i))) for i in range(state.batch)),
                tokens=tokens,
            )
            for e, tokens in zip(self.evaluations, self._token_maps(state), strict=True)
        )
        seconds = self.stopped - self.started if self.started else 0.0
        return RunRecord(
            sampler,
            family,
            shape,
            state.schedule,
            policies,
            evaluations,
            seconds,
            self.peak,
            status,
            tuple(self.notes),
            fingerprint(result),
            regions.grid.size if regions else None,
        )

    def _token_maps(self, state: RunState) -> list[tuple[str | None, ...]]:
        """Maps of the tokens that ran, as bit sets."""
        if not state.regions:
            return [()] * len(self.evaluations)
        number = state.regions.grid.number
        return [
            tuple(None if t is None else pack(t.tolist(), number) for t in maps)
            for maps in self.maps
        ]


def finite(value: float | None) -> float | None:
    """A number that JSON has; None for others, such as the error of a model that overflowed."""
    return value if value is not None and math.isfinite(value) else None


def share(action: Action, state: RunState) -> float:
    """Share of the image tokens that passed the blocks."""
    if action.level is not Mode.RUN:
        return 0.0
    return (
        1.0
        if action.tokens is None or state.regions is None
        else len(action.tokens) / state.regions.grid.number
    )
