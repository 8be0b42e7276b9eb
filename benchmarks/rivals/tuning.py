"""Rivals at a number of evaluations, with the settings that are best on development prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import mean
from typing import Any

from torch import Tensor

from benchmarks.equal_cost import FIRST_SEED
from benchmarks.rivals.mask import MaskPolicy, StaticPolicy, growing, searched
from benchmarks.rivals.spectrum import SpectrumPolicy
from benchmarks.rivals.taylor import HiCachePolicy, TaylorPolicy
from benchmarks.rivals.teacache import Changes, TeaCachePolicy, within
from demo.world import world_of
from evaluation.rows import psnr
from evaluation.subjects import attached
from evaluation.suites import Method, Suite
from rapid_core.types import Policy

Settings = dict[str, Any]
Score = Callable[[MaskPolicy], float]


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    prompts: int = 8
    """Development prompts, drawn in one run."""
    passes: int = 2
    """Times that every setting is tried, one after another; 0 keeps the published ones."""
    masks: int = 32
    """Masks of the random search."""


QUICK = Effort(2, 0, 2)


@dataclass(frozen=True)
class Rival:
    """A method with settings."""

    make: Callable[..., MaskPolicy]
    """Of the evaluations, the steps and the settings."""
    published: Settings
    gentle: Settings
    """Where the search begins instead, if these are better: the published ones are for 50 steps."""
    tried: dict[str, Sequence[Any]]


def taylorseer(count: int, steps: int, warm_up: int, order: int) -> MaskPolicy:
    """TaylorSeer with equal windows."""
    return TaylorPolicy(computed=growing(count, steps, warm_up), order=order)


def hicache(count: int, steps: int, warm_up: int, **settings: Any) -> MaskPolicy:
    """HiCache with equal windows."""
    return HiCachePolicy(computed=growing(count, steps, warm_up), **settings)


def spectrum(count: int, steps: int, warm_up: int, growth: float, **settings: Any) -> MaskPolicy:
    """Spectrum with growing windows."""
    return SpectrumPolicy(computed=growing(count, steps, warm_up, growth), **settings)


RIVALS = {
    "taylorseer": Rival(
        taylorseer,
        {"warm_up": 3, "order": 2},
        {"warm_up": 1, "order": 1},
        {"order": (1, 2, 3), "warm_up": (1, 2, 3, 5)},
    ),
    "hicache": Rival(
        hicache,
        {"warm_up": 3, "order": 2, "scale": 0.5},
        {"warm_up": 1, "order": 1, "scale": 0.7},
        {"scale": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "order": (1, 2, 3), "warm_up": (1, 2, 3, 5)},
    ),
    "spectrum": Rival(
        spectrum,
        {"warm_up": 5, "growth": 0.75, "degree": 4, "ridge": 0.1, "share": 0.5},
        {"warm_up": 1, "growth": 0.0, "degree": 4, "ridge": 0.01, "share": 0.5},
        {
            "growth": (0.0, 0.25, 0.5, 0.75),
            "warm_up": (1, 2, 3, 5),
            "share": (0.25, 0.5, 0.75, 1.0),
            "degree": (2, 3, 4, 6),
            "ridge": (0.001, 0.01, 0.1, 1.0),
        },
    ),
}
NAMES = (*RIVALS, "teacache", "static_mask")


def one_at_a_time(
    score: Callable[[Settings], float],
    starts: Sequence[Settings],
    tried: dict[str, Sequence],
    passes: int,
) -> Settings:
    """The best settings that are found by trying each setting's values in turn, so many times over,
    from the best of `starts` on, more `score` being better; the first start where nothing is
    tried."""
    known: dict[tuple, float] = {}

    def of(settings: Settings) -> float:
        key = tuple(settings.items())
        if key not in known:
            known[key] = score(settings)
        return known[key]

    best = max(starts, key=of) if passes else starts[0]
    for _ in range(passes):
        before = best
        for name, values in tried.items():
            best = max((best, *({**best, name: value} for value in values)), key=of)
        if best == before:
            break
    return best


class Development:
    """Development prompts of a suite, and how near to their full pictures others are."""

    def __init__(self, suite: Suite, effort: Effort):
        self.suite = suite
        self.effort = effort
        self.texts = world_of(suite.subject.weights).prompts(effort.prompts, "dev").prompts()
        self.seeds = [FIRST_SEED + number for number in range(effort.prompts)]

    def draw(self, policy: Policy | None) -> list[Tensor]:
        """Pictures with a policy on the model; full ones without."""
        suite = self.suite
        model = suite.subject.model if policy is None else attached(policy)(suite.subject.model)
        drawn = suite.subject.sample_many(
            model, self.texts, self.seeds, suite.scale.size, suite.steps
        )
        return [suite.subject.picture(latent[None]) for latent in drawn.latent]

    @cached_property
    def full(self) -> list[Tensor]:
        """The full pictures."""
        return self.draw(None)

    def score(self, policy: MaskPolicy) -> float:
        """Mean PSNR in dB to the full pictures."""
        return mean(psnr(*pair) for pair in zip(self.draw(policy), self.full, strict=True))

    def changes(self) -> list[float]:
        """See `Changes`."""
        policy = Changes()
        self.draw(policy)
        return policy.means(self.suite.steps)

    def policy(self, name: str, count: int) -> MaskPolicy:
        """A rival at so many evaluations, tuned once."""
        suite = self.suite
        if name == "teacache":
            changes = suite.once("teacache/changes", self.changes)
            return TeaCachePolicy(computed=within(changes, count))
        if name == "static_mask":
            found = suite.once(f"static_mask/{count}", partial(self._mask, count))
            return StaticPolicy(computed=tuple(found["computed"]), order=found["order"])
        rival = RIVALS[name]
        settings = suite.once(f"{name}/{count}", partial(self._settings, rival, count))
        return rival.make(count, suite.steps, **settings)

    def _settings(self, rival: Rival, count: int) -> Settings:
        def score(settings: Settings) -> float:
            return self.score(rival.make(count, self.suite.steps, **settings))

        starts = (rival.published, rival.gentle)
        return one_at_a_time(score, starts, rival.tried, self.effort.passes)

    def _mask(self, count: int) -> Settings:
        seed = f"{self.suite.kind}/{count}"
        found = searched(count, self.suite.steps, self.score, self.effort.masks, seed)
        return {"computed": list(found.computed), "order": found.order}

    def methods(self, names: Sequence[str], target: str, count: int) -> Iterator[Method]:
        """Rivals as methods of the suite."""
        for name in names:
            yield Method(name, target, attached(self.policy(name, count)))
