"""Whether what was learned of a model holds on other sizes, guidance and schedulers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.learn.learned import AIMS, DEFAULT, Lesson, goal_of, sigmas_of
from demo.world import world_of
from evaluation.subjects import Family, attached
from evaluation.suites import Method, Scale, Suite
from rapid_core.calibration.library import MAX_PICTURES
from rapid_core.quadrature.spacing import best_spaced, max_evaluations
from rapid_core.techniques.step_skip.schedule import SchedulePolicy

LEARNED = "learned_8"


@dataclass
class Unjudged:
    """Prompts whose pictures are only compared with each other."""

    prompts: Sequence[str]

    def right(self, picture: Tensor, number: int) -> tuple[int, int]:
        """Nothing is looked for."""
        del picture, number
        return 0, 0

    def features(self, picture: Tensor) -> Tensor:
        """(1, 1)"""
        del picture
        return torch.zeros(1, 1)

    def true_features(self, size: int) -> Tensor:
        """(1, 1)"""
        del size
        return torch.zeros(1, 1)


@dataclass(frozen=True)
class Elsewhere:
    """How pictures are drawn that nothing was learned from."""

    name: str
    family: Family
    scale: Scale
    prompts: int


def places(lesson: Lesson) -> Iterator[Elsewhere]:
    """Those of a model: two other sizes, more guidance where it has any, and another scheduler."""
    family = lesson.suite.subject.family
    scale = lesson.suite.scale
    size = scale.size
    many = len(lesson.suite.prompts)
    yield Elsewhere("wide", family, replace(scale, width=size * 3 // 2), min(48, many))
    yield Elsewhere("large", family, replace(scale, size=size * 2), min(8, many))
    if family.cfg != 1.0:
        yield Elsewhere("cfg_4", replace(family, cfg=4.0), scale, min(100, many))
    yield Elsewhere("beta", replace(family, scheduler="beta"), scale, min(100, many))


def differences(lesson: Lesson, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Paired differences between what was learned and the default, at all these places."""
    return [row for place in places(lesson) for row in _at(lesson, place, args)]


def _at(lesson: Lesson, place: Elsewhere, args: argparse.Namespace) -> list[dict[str, Any]]:
    usual = lesson.suite
    subject = usual.subject
    costs = lesson.costs(lesson.tables[:MAX_PICTURES])
    judge = Unjudged(world_of(subject.weights).prompts(place.prompts).prompts())
    before = subject.family
    subject.family = place.family
    try:
        sigmas = sigmas_of(subject)
        # Of its own folder, since references are kept by the model's name.
        suite = Suite(place.name, subject, judge, args.out / "transfer" / place.name, place.scale)
        methods = [Method("full", "1.0")]
        same = []
        for speedup in args.speedups:
            count = max_evaluations(speedup, len(sigmas) - 1)
            plan = costs.best(count, sigmas)
            for short, aim in AIMS.items():
                target = f"{speedup:g}x {short}"
                if plan == best_spaced(count, sigmas):
                    same.append(target)
                    continue
                policy = SchedulePolicy(speedup=speedup, aim=aim)
                methods += [
                    Method(DEFAULT, target, attached(policy)),
                    Method(LEARNED, target, attached(replace(policy, costs=costs))),
                ]
        suite.run(methods, args.share)
        rows = [
            suite.pair(f"{m.name}/{m.target}", f"{DEFAULT}/{m.target}", goal_of(m.target))
            for m in methods
            if m.name == LEARNED
        ]
    finally:
        subject.family = before
    usual_plan = {"method": LEARNED, "against": DEFAULT, "prompts": place.prompts}
    nothing = {"difference": 0.0, "ci": [0.0, 0.0], "same_plan": True}
    where = {"suite": place.name, "model": suite.kind}
    return [
        *(row for row in rows if row is not None),
        *({**where, "target": t, **usual_plan, "to": goal_of(t), **nothing} for t in same),
    ]
