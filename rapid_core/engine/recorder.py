"""What happens in a run, written down while it goes on and put together when it is over."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..advice import advice
from ..reasons import ReasonCode
from ..record import EvaluationRecord, RunRecord, fingerprint, pack
from ..types import Action, Mode, Reason
from .evaluation import Evaluation
from .run import Run


class RunRecorder:
    """Recorder of one run. notes: what a report says beside its figures, each once."""

    def __init__(self, run: Run, policies: tuple[dict[str, Any], ...] = ()):
        self.run = run
        self.policies = policies
        self.notes: list[Reason] = []
        self.evaluations: list[EvaluationRecord] = []
        self.tokens: list[list[Tensor | None]] = []  # that ran, per evaluation and image
        self.peak = 0  # bytes
        self.full_evaluations: int | None = None
        self._started: float | None = None
        self._stopped = 0.0
        self.add_notes(run.plan.notes)

    def add_notes(self, notes: Iterable[Reason]) -> None:
        """Things that a report should say."""
        self.notes += [note for note in dict.fromkeys(notes) if note not in self.notes]

    def begin(self) -> None:
        """The sampling loop's clock starts with the first evaluation."""
        self._started = self._started or time.perf_counter()

    def add(self, evaluation: Evaluation, stored: int) -> None:
        """An evaluation has ended. stored: bytes kept of attentions."""
        self.peak = max(self.peak, self.run.bytes + stored)
        now = time.perf_counter()
        seconds = now - (self._stopped or self._started or now)
        self._stopped = now
        actions = evaluation.actions
        density: list[float] = []
        measured: list[float | None] = []
        if self.run.plan.attention is not None:
            for i, action in enumerate(actions):
                served = i in evaluation.sparse_images
                density.append(action.density if served else 1.0)
                measured.append(action.measured_density if served else None)
        self.evaluations.append(
            EvaluationRecord(
                index=evaluation.index,
                sigma=evaluation.sigma,
                occurrence=evaluation.occurrence,
                modes=tuple(action.mode.value for action in actions),
                token_share=tuple(self._share(action) for action in actions),
                cost=tuple(evaluation.cost),
                full_cost=tuple(evaluation.full_cost),
                error_estimate=tuple(map(finite, evaluation.error_estimates)),
                measured_error=(None,) * len(actions),
                reasons=tuple(evaluation.reasons),
                density=tuple(density),
                measured_density=tuple(measured),
                seconds=round(seconds, 6),
                step=evaluation.steps[0] if evaluation.steps else 0,
                sigmas=evaluation.own_sigmas,
            )
        )
        if self.run.plan.grid is not None:
            self.tokens.append([action.tokens for action in actions])

    def _share(self, action: Action) -> float:
        """Share of the image tokens that passed the blocks."""
        if action.mode is not Mode.RUN:
            return 0.0
        grid = self.run.plan.grid
        return 1.0 if action.tokens is None or grid is None else len(action.tokens) / grid.number

    def finish(self, status: str, result: Any) -> RunRecord:
        """The record of the run; what was measured last and the maps of tokens are fetched here,
        once."""
        finished = status == "finished"
        if finished:
            self.run.finish()
        plan = self.run.plan
        logs = [image.measured_log for image in self.run.images]
        self.add_notes(self.run.notes)
        if plan.residual_note is not None and any(e.sparse for e in self.evaluations):
            self.add_notes([plan.residual_note])
        if finished and self.run.turned and self.run.tells_closeness and self._skipped():
            self.add_notes([Reason(ReasonCode.CLOSENESS_UNKNOWN)])
        if finished and plan.advice is not None and self._saved_no_token():
            self.add_notes([plan.advice])
        evaluations = tuple(
            replace(e, measured_error=tuple(finite(log.get(e.index)) for log in logs), tokens=maps)
            for e, maps in zip(self.evaluations, self._token_maps(), strict=True)
        )
        record = RunRecord(
            sampler=plan.sampler,
            family=plan.family,
            shape=plan.shape,
            sigmas=plan.sigmas,
            policies=self.policies,
            evaluations=evaluations,
            seconds=self._stopped - self._started if self._started and self._stopped else 0.0,
            bytes=self.peak,
            status=status,
            notes=tuple(self.notes),
            fingerprint=fingerprint(result),
            grid=None if plan.grid is None else plan.grid.size,
            full_evaluations=self.full_evaluations,
            closeness=tuple(map(finite, self.run.closeness())) if finished else (),
        )
        return replace(record, notes=(*record.notes, *advice(record))) if finished else record

    def _skipped(self) -> bool:
        """Whether an evaluation was skipped."""
        return any(Mode.SKIP.value in e.modes for e in self.evaluations)

    def _saved_no_token(self) -> bool:
        """Whether every evaluation computed every token without a reason given."""
        tokens_can_be_chosen = self.run.refusals.no_tokens is None
        saved = any(e.reasons or min(e.token_share) < 1 for e in self.evaluations)
        return tokens_can_be_chosen and bool(self.evaluations) and not saved

    def _token_maps(self) -> list[tuple[str | None, ...]]:
        """Maps of the tokens that ran, as bit sets."""
        grid = self.run.plan.grid
        if grid is None:
            return [()] * len(self.evaluations)
        return [
            tuple(None if t is None else pack(t.tolist(), grid.number) for t in tokens)
            for tokens in self.tokens
        ]


def finite(value: float | None) -> float | None:
    """A number that JSON has; None for others, such as the error of a model that overflowed."""
    return value if value is not None and math.isfinite(value) else None
