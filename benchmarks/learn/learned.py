"""How near pictures come to the full and the converged ones after so much was learned of a model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from benchmarks.dial.bench import judge
from benchmarks.equal_cost import FIRST_SEED, own_cost
from demo.world import world_of
from devkit.comfy_process import Comfy
from evaluation.rows import Row
from evaluation.subjects import ALL_FAMILIES, Subject, attached
from evaluation.suites import GOALS, QUICK, Method, Scale, Suite
from rapid_core.calibration.library import MAX_PICTURES, Table
from rapid_core.calibration.plans import Plan
from rapid_core.quadrature.gap_costs import Gap, GapCosts
from rapid_core.quadrature.spacing import best_spaced, evenly_spaced, max_evaluations
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.types import Aim

WATCHED = 16  # development prompts that are drawn in full and watched
FOURS = (4, 8, 12)  # from which on four are learned from that others are not
CALIBRATED = 4  # development prompts that a calibration is given
AIMS = {"full": Aim.FULL_PICTURE, "best": Aim.BEST_PICTURE}
DEFAULT = "learned_0"  # nothing was learned


@dataclass(frozen=True)
class Lesson:
    """A model, and what its pictures and calibrations have shown."""

    comfy: Comfy
    suite: Suite

    @classmethod
    def of(cls, comfy: Comfy, kind: str, args: argparse.Namespace) -> Lesson:
        """That of a demo model, at the command's scale."""
        scale = QUICK if args.quick else Scale(args.size)
        number = 2 if args.quick else args.prompts
        subject = Subject(comfy, ALL_FAMILIES[kind])
        return cls(comfy, Suite("learn", subject, judge(subject.weights, number), args.out, scale))

    @cached_property
    def sigmas(self) -> list[float]:
        """(N + 1,) of the model's runs."""
        return sigmas_of(self.suite.subject)

    @cached_property
    def tables(self) -> list[dict[Gap, float]]:
        """What each of the first pictures shows of gaps, as the node keeps it."""
        found = self.suite.once("tables", self._watched)
        return [{(a, b): error for a, b, error in table} for table in found]

    def _watched(self) -> list[list[tuple[int, int, float]]]:
        from rapid_core.comfy.learning import library  # the host is there by now
        from rapid_core.comfy.model_key import weights_of

        kept = library()
        suite, subject = self.suite, self.suite.subject
        weights = weights_of(subject.model)
        given = {"speedup": 2.0, "learn": True, "policy_file": "none"}
        model = self.comfy.run_node("RAPID_Accelerate", model=subject.model, **given)[0]
        texts = world_of(subject.weights).prompts(WATCHED, "dev").prompts()
        found: list[Table] = []
        for first in range(0, WATCHED, MAX_PICTURES):  # of more the library forgets the oldest
            for entry in kept.entries():  # what is known is not watched
                if entry.key is not None and entry.key.weights == weights:
                    kept.remove(entry.name)
            numbers = range(first, min(first + MAX_PICTURES, WATCHED))
            subject.sample_many(
                model,
                [texts[n] for n in numbers],
                [FIRST_SEED + n for n in numbers],
                suite.scale.size,
                suite.steps,
            )
            keys = [e.key for e in kept.entries() if e.key and e.key.weights == weights]
            learned = kept.find(keys[0])
            assert len(keys) == 1 and learned is not None
            assert len(learned.tables) == len(numbers)
            found += learned.tables
        return [[(*gap, error) for gap, error in t.items()] for t in found]

    def costs(self, tables: list[dict[Gap, float]]) -> GapCosts:
        """What gaps cost by these tables."""
        return GapCosts.seen(tables, self.sigmas)

    def calibrated(self, effort: str) -> dict[float, Plan]:
        """The steps that RAPID Calibrate finds with an effort, by speed-up."""
        plans = self._found(effort)["plans"]
        return {speedup: tuple(map(bool, plan)) for speedup, plan in plans}

    def full_pictures(self, efforts: Sequence[str]) -> dict[str, float]:
        """What calibrations drew, by method, in full pictures. Watching draws nothing that was not
        asked for."""
        return {f"calibrated_{name}": self._found(name)["full_pictures"] for name in efforts}

    def _found(self, effort: str) -> dict[str, Any]:
        return self.suite.once(f"calibrated_{effort}", lambda: self._calibrated(effort))

    def _calibrated(self, effort: str) -> dict[str, Any]:
        import torch
        from comfy.samplers import sampler_object

        from rapid_core.policy_file.schedules import schedules_of

        suite, subject = self.suite, self.suite.subject
        size = suite.scale.size
        texts = world_of(subject.weights).prompts(CALIBRATED, "dev").prompts()
        names = ("positive", *(f"positive_{i}" for i in range(2, CALIBRATED + 1)))
        file, about, _plot = self.comfy.run_node(
            "RAPID_Calibrate",
            model=subject.model,
            noise_seed=FIRST_SEED,
            cfg=subject.family.cfg,
            **{name: subject.conditioning(text) for name, text in zip(names, texts, strict=True)},
            negative=subject.conditioning(""),
            sampler=sampler_object("euler"),
            sigmas=torch.tensor(self.sigmas),
            latent_image={"samples": torch.zeros(1, 16, size // 8, size // 8)},
            name=f"bench {suite.kind} {effort} {size}",
            effort=effort,
        )
        plans = zip(file.budgets, schedules_of(file), strict=True)
        return {
            "plans": [(speedup, list(map(int, plan.computed))) for speedup, plan in plans],
            "full_pictures": file.json("cost"),
            "about": about,
        }


def goal_of(target: str) -> str:
    """What pictures of a target's aim are near to, one of GOALS."""
    return "converged" if target.endswith("best") else "full"


def sigmas_of(subject: Subject) -> list[float]:
    """(N + 1,) of a model's runs."""
    from comfy.samplers import calculate_sigmas

    family = subject.family
    sampling = subject.model.get_model_object("model_sampling")
    return calculate_sigmas(sampling, family.scheduler, family.steps).tolist()


@dataclass(frozen=True)
class Drawn:
    """The pictures of all plans. Plans that several methods share were drawn once."""

    suite: Suite
    same: Mapping[str, str]
    """Keys of methods, by those of the methods whose pictures are theirs."""

    def rows(self) -> list[Row]:
        """One row a method."""
        drawn = self.suite.rows(own_cost(self.suite.subject, self.suite.scale.size))
        rows = {f"{row.method}/{row.target}": row for row in drawn}
        for key, other in self.same.items():
            method, target = key.split("/")
            rows[key] = replace(rows[other], method=method, target=target)
        return list(rows.values())

    def differences(self) -> list[dict[str, Any]]:
        """Paired differences of all methods to the default, towards what each aims at."""
        drawn = dict.fromkeys(p.method for p in self.suite.done())
        names = [*drawn, *self.same]
        rows = []
        for key in names:
            method, target = key.split("/")
            default = f"{DEFAULT}/{target}"
            if method in ("full", DEFAULT) or default not in names:
                continue
            goal = goal_of(target)
            row = self.suite.pair(self.same.get(key, key), default, goal)
            if self.same.get(key) == default:
                number = len(self.suite.differences(default, default, GOALS[goal]))
                row = {"prompts": number, "difference": 0.0, "ci": [0.0, 0.0], "same_plan": True}
            if row is not None:
                place = {"suite": self.suite.name, "model": self.suite.kind}
                names_of = {"target": target, "method": method, "against": DEFAULT, "to": goal}
                rows.append(place | row | names_of)
        return rows


def drawn(lesson: Lesson, lessons: Mapping[str, Lesson], args: argparse.Namespace) -> Drawn:
    """Draw test prompts with all that can be known of a model."""
    methods = [Method("full", "1.0")]
    same: dict[str, str] = {}
    keys: dict[tuple[Aim, Plan], str] = {}
    for speedup in args.speedups:
        found = list(policies(lesson, lessons, speedup, args))
        for (name, plan, policy), (short, aim) in ((f, a) for f in found for a in AIMS.items()):
            key = f"{name}/{speedup:g}x {short}"
            if (aim, plan) in keys:
                same[key] = keys[aim, plan]
                continue
            keys[aim, plan] = key
            methods.append(Method(*key.split("/"), patch=attached(replace(policy, aim=aim))))
    lesson.suite.run(methods, args.share)
    return Drawn(lesson.suite, same)


def policies(
    lesson: Lesson, lessons: Mapping[str, Lesson], speedup: float, args: argparse.Namespace
) -> Iterator[tuple[str, Plan, SchedulePolicy]]:
    """What can be known of a model: its name, the steps that it leads to, and the node's policy."""
    sigmas = lesson.sigmas
    count = max_evaluations(speedup, len(sigmas) - 1)
    seen = lesson.tables
    yield DEFAULT, best_spaced(count, sigmas), SchedulePolicy(speedup=speedup)
    lots = {f"learned_{n}": lesson.costs(seen[:n]) for n in args.pictures if n}
    fours = FOURS if args.pictures != [0] else ()
    lots |= {f"fours_{first // 4 + 1}": lesson.costs(seen[first : first + 4]) for first in fours}
    others = (other for other in lessons.values() if other is not lesson)
    lots |= {f"prior_{o.suite.kind}": o.costs(o.tables[:MAX_PICTURES]) for o in others}
    for name, costs in lots.items():
        policy = SchedulePolicy(speedup=speedup, costs=costs)
        yield name, costs.best(count, sigmas), policy
    plans = {f"calibrated_{effort}": lesson.calibrated(effort)[speedup] for effort in args.efforts}
    plans["even"] = evenly_spaced(count, len(sigmas) - 1)
    for name, plan in plans.items():
        schedule = Schedule(plan, tuple(sigmas))
        yield name, plan, SchedulePolicy(schedule=schedule, source=name)
