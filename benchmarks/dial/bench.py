"""What the suites of the dial share: the host, the models, and the node's patch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.equal_cost import own_cost
from benchmarks.rivals.tuning import QUICK as QUICK_TUNING
from benchmarks.rivals.tuning import Effort
from demo.scene_judge import SceneJudge
from evaluation.batches import BATCH
from evaluation.rows import PSNR_CAP, Row
from evaluation.subjects import ALL_FAMILIES, Subject
from evaluation.suites import QUICK, FullRun, Method, Picture, Scale, Suite
from rapid_core.types import Mode

NODE = "RAPID_Accelerate"
Patch = Callable[[Any], Any]
# Samplers of which a picture depends on nothing but its own noise; others draw noise for a whole
# batch, so that their pictures have to be drawn alone to be comparable.
WITHOUT_NOISE = ("euler", "dpmpp_2m", "res_multistep", "uni_pc", "deis", "ipndm", "heun")


@dataclass(frozen=True)
class Bench:
    """One call of the command."""

    comfy: Any
    args: argparse.Namespace
    subjects: dict[str, Subject] = field(default_factory=dict)

    @property
    def scale(self) -> Scale:
        """Of the pictures."""
        return QUICK if self.args.quick else Scale(self.args.size)

    @property
    def effort(self) -> Effort:
        """Of tuning what the node is compared with."""
        return QUICK_TUNING if self.args.quick else Effort()

    def suite(self, name: str, kind: str, number: int, steps: int | None = None) -> Suite:
        """A suite of the dial on a model. number: of prompts, where the flags do not say; steps:
        None for the model's."""
        if kind not in self.subjects:
            self.subjects[kind] = Subject(self.comfy, ALL_FAMILIES[kind])
        if steps not in (None, ALL_FAMILIES[kind].steps):
            name = f"{name}_{steps}"
        number = 2 if self.args.quick else self.args.prompts or number
        subject = self.subjects[kind]
        return Suite(
            name, subject, judge(subject.weights, number), self.args.out, self.scale, steps
        )

    def rows(self, suite: Suite) -> list[Row]:
        """The suite's rows, at the demo model's own cost."""
        return suite.rows(own_cost(suite.subject, self.scale.size))

    def node_inputs(self) -> dict[str, Any]:
        """The node's inputs by id."""
        node = self.comfy.nodes.NODE_CLASS_MAPPINGS[NODE]
        return {slot.id: slot for slot in node.GET_SCHEMA().inputs}

    def node(self, **inputs: Any) -> Patch:
        """The node's patch, by those of these inputs that it has; with no policy file but that of
        these inputs."""
        known = self.node_inputs()
        inputs = {"policy_file": "none", **inputs}
        given = {name: value for name, value in inputs.items() if name in known}

        def patch(model: Any) -> Any:
            return self.comfy.run_node(NODE, model=model, **given)[0]

        return patch


@cache
def judge(weights: Path, number: int) -> SceneJudge:
    """The judge of so many test prompts of a demo model."""
    return SceneJudge.of(weights, number)


def on_sampler(name: str, target: str, patch: Patch, sampler: str) -> Method:
    """A patch on a sampler, beside the sampler's own full picture."""
    alone = sampler not in WITHOUT_NOISE
    reference = FullRun(sampler, alone=alone)
    batch = 1 if alone else BATCH
    return Method(name, target, patch, sampler=sampler, reference=reference, batch=batch)


def close(picture: Picture) -> float | None:
    """PSNR in dB to the full picture, at most that of an equal one; None where there is none."""
    return PSNR_CAP if picture.equal else picture.psnr


def computed(pictures: Sequence[Picture]) -> float:
    """Mean evaluations that called the model's blocks."""
    return mean(sum(d.mode == Mode.RUN.value for d in p.decisions) for p in pictures)


def of_method(suite: Suite) -> dict[str, list[Picture]]:
    """A suite's pictures by method, in the order of the prompts."""
    out: dict[str, list[Picture]] = {}
    for picture in sorted(suite.done(), key=lambda p: p.seed):
        out.setdefault(picture.method, []).append(picture)
    return out


def predicted(suite: Suite) -> list[str]:
    """Whether the closeness that runs predict ranks a suite's pictures as the true one does."""
    known = [(p.closeness, close(p)) for p in suite.done()]
    pairs = [(told, true) for told, true in known if told is not None and true is not None]
    if len(pairs) < 3:
        return []
    told, true = np.array(pairs).T
    rank = float(spearmanr(told, true)[0])  # pyright: ignore
    return [
        f"{suite.kind}: {suite.name}, predicted closeness, {len(pairs)} pictures: Spearman {rank:.2f}"
    ]
