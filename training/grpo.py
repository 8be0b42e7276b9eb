"""Group relative policy optimisation (Shao et al. 2024), as RAPID3 uses it: no reference model,
trajectory ratios.

J = mean over images of min(phi A, clip(phi, 1 - eps, 1 + eps) A), phi = pi(I) / pi_old(I) of the
whole trajectory and A the reward less its group's mean, over the group's standard deviation. A
group is one prompt and one initial noise; images of it differ by the choices drawn, so that groups
whose rewards are equal say nothing: they are dropped and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rapid_core.techniques.heads.rapid3 import Heads
from training.likelihood import Row, log_probability
from training.processes import together

LEAST_SPREAD = 1e-4  # of a group's rewards
MOST_ADVANTAGE = 5.0


@dataclass(frozen=True)
class Settings:
    """clip: eps of the ratio; epochs: updates on the same rollouts; entropy: weight of the
    categorical heads' entropy; ranks: whether a group's rewards count by their order only, so that
    a few very bad rollouts do not drown what tells the others apart."""

    lr: float = 1e-3
    clip: float = 0.2
    epochs: int = 2
    entropy: float = 1e-3
    grad_norm: float = 1.0
    ranks: bool = False


@dataclass(frozen=True)
class Trajectory:
    """Decisions of one image, its reward, and log p of the decisions when they were drawn (0-d)."""

    rows: Sequence[Row]
    reward: float
    log_p: Tensor


def advantages(rewards: Sequence[float], ranks: bool = False) -> Tensor | None:
    """(r - mean) / std of a group, within +-5; None for a group that says nothing. ranks: see
    `Settings`."""
    values = torch.tensor(rewards, dtype=torch.float64)
    if ranks and float(values.max() - values.min()) > LEAST_SPREAD:
        below = (values[:, None] > values + LEAST_SPREAD).sum(1) - (
            values[:, None] < values - LEAST_SPREAD
        ).sum(1)
        values = below.double()  # equal ones share a place
    spread = values.std(unbiased=False)
    if len(values) < 2 or not spread > LEAST_SPREAD:
        return None
    found = ((values - values.mean()) / spread).clamp(-MOST_ADVANTAGE, MOST_ADVANTAGE)
    return (found - found.mean()).float()  # in a large group one that was cut would leave a sum


def trajectory_log_p(heads: Heads, trajectories: Sequence[Sequence[Row]]) -> tuple[Tensor, Tensor]:
    """log p (n,) of whole trajectories, and the sum of all their entropies (0-d)."""
    flat = [row for rows in trajectories for row in rows]
    found, entropy = log_probability(heads, flat)
    owner = torch.tensor([i for i, rows in enumerate(trajectories) for _ in rows], dtype=torch.long)
    return torch.zeros(len(trajectories)).index_add(0, owner, found), entropy.sum()


@dataclass(frozen=True)
class Lesson:
    """What a group says: its images that chose anything, and their advantages (n,)."""

    trajectories: Sequence[Trajectory]
    advantage: Tensor

    @classmethod
    def of(cls, group: Sequence[Trajectory], ranks: bool = False) -> Lesson | None:
        """None for a group that says nothing."""
        found, chose = advantages([t.reward for t in group], ranks), [bool(t.rows) for t in group]
        if found is None or not any(chose):
            return None
        return cls([t for t in group if t.rows], found[chose])

    @property
    def rows(self) -> list[Sequence[Row]]:
        """Decisions by image."""
        return [t.rows for t in self.trajectories]


class Learner:
    """The heads and their optimiser."""

    def __init__(self, heads: Heads, settings: Settings = Settings()):
        self.heads, self.settings = heads, settings
        self.optimiser = torch.optim.AdamW(
            heads.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0
        )

    def update(self, groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
        """Learn from groups of rollouts, of which each process has its `share`; returns scalars
        under the field's usual names. Gradients are computed group by group where the group is, and
        summed in the groups' order, so that the sum does not depend on the number of processes."""
        lessons = [Lesson.of(group, self.settings.ranks) for group in groups]
        sizes = together(
            [lesson and (len(lesson.rows), sum(map(len, lesson.rows))) for lesson in lessons]
        )
        kept = [s for s in sizes if s is not None]
        out = {"dropped_groups": float(len(sizes) - len(kept))}
        images, rows = sum(n for n, _ in kept), sum(n for _, n in kept)
        if not images:
            return out
        for epoch in range(self.settings.epochs):
            scalars = self._step(lessons, images, rows)
            if epoch == 0:
                out["first_ratio"] = scalars["ratio"]
        return {**out, **scalars}

    def _step(self, lessons: Sequence[Lesson | None], images: int, rows: int) -> dict[str, float]:
        """One update; images, rows: of all lessons of all processes."""
        parts = together([lesson and self._part(lesson, images, rows) for lesson in lessons])
        gradients, sums = zip(*(part for part in parts if part is not None), strict=True)
        parameters, gradient = list(self.heads.parameters()), sum(gradients[1:], gradients[0])
        for parameter, part in zip(
            parameters, gradient.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = part.view_as(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.grad_norm)
        self.optimiser.step()
        objective, ratio, clipped, kl, entropy = sum(sums[1:], sums[0]).tolist()
        entropy /= rows
        return {
            "loss": -objective / images - self.settings.entropy * entropy,
            "ratio": ratio / images,
            "clip_fraction": clipped / images,
            "approx_kl": kl / images,
            "entropy": entropy,
            "grad_norm": float(norm),
        }

    def _part(self, lesson: Lesson, images: int, rows: int) -> tuple[Tensor, Tensor]:
        """Gradient (parameters,) of the loss's part that is this group's, and sums of what is
        reported, float64."""
        s = self.settings
        new, entropy = trajectory_log_p(self.heads, lesson.rows)
        old = torch.stack([t.log_p for t in lesson.trajectories])
        ratio = (new - old).clamp(-20, 20).exp()
        clipped = ratio.clamp(1 - s.clip, 1 + s.clip)
        objective = torch.minimum(ratio * lesson.advantage, clipped * lesson.advantage).sum()
        self.optimiser.zero_grad()
        (-objective / images - s.entropy * entropy / rows).backward()
        gradient = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in self.heads.parameters()
        ]
        sums = (objective, ratio.sum(), (ratio != clipped).sum(), (old - new).sum(), entropy)
        return torch.cat([g.flatten() for g in gradient]), torch.stack(
            [x.detach().double() for x in sums]
        )
