"""Group relative policy optimisation (Shao et al. 2024), as RAPID3 uses it: no reference model, trajectory ratios.

J = mean over images of min(phi A, clip(phi, 1 - eps, 1 + eps) A), phi = pi(I) / pi_old(I) of the whole trajectory and A
the reward less its group's mean, over the group's standard deviation. A group is one prompt and one initial noise;
images of it differ by the choices drawn, so that groups whose rewards are equal say nothing: they are dropped and
counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rapid_core.policies.heads import Heads
from training.likelihood import Row, log_probability

LEAST_SPREAD = 1e-4  # of a group's rewards
MOST_ADVANTAGE = 5.0


@dataclass(frozen=True)
class Settings:
    """clip: eps of the ratio; epochs: updates on the same rollouts; entropy: weight of the categorical heads'
    entropy."""

    lr: float = 1e-3
    clip: float = 0.2
    epochs: int = 2
    entropy: float = 1e-3
    grad_norm: float = 1.0


@dataclass(frozen=True)
class Trajectory:
    """Decisions of one image, its reward, and log p of the decisions when they were drawn (0-d)."""

    rows: Sequence[Row]
    reward: float
    log_p: Tensor


def advantages(rewards: Sequence[float]) -> Tensor | None:
    """(r - mean) / std of a group, within +-5; None for a group that says nothing."""
    values = torch.tensor(rewards, dtype=torch.float64)
    spread = values.std(unbiased=False)
    if len(values) < 2 or not spread > LEAST_SPREAD:
        return None
    return ((values - values.mean()) / spread).clamp(-MOST_ADVANTAGE, MOST_ADVANTAGE).float()


def trajectory_log_p(heads: Heads, trajectories: Sequence[Sequence[Row]]) -> tuple[Tensor, Tensor]:
    """log p (n,) of whole trajectories, and their mean entropy (0-d)."""
    flat = [row for rows in trajectories for row in rows]
    found, entropy = log_probability(heads, flat)
    owner = torch.tensor([i for i, rows in enumerate(trajectories) for _ in rows], dtype=torch.long)
    return torch.zeros(len(trajectories)).index_add(0, owner, found), entropy.mean()


class Learner:
    """The heads and their optimiser."""

    def __init__(self, heads: Heads, settings: Settings = Settings()):
        self.heads, self.settings = heads, settings
        self.optimiser = torch.optim.AdamW(heads.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)

    def update(self, groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
        """Learn from groups of rollouts; returns scalars under the field's usual names."""
        kept = [(group, found) for group in groups if (found := advantages([t.reward for t in group])) is not None]
        out = {"dropped_groups": float(len(groups) - len(kept))}
        if not kept:
            return out
        trajectories = [t for group, _ in kept for t in group if t.rows]
        advantage = torch.cat([a[[bool(t.rows) for t in group]] for group, a in kept])
        old = torch.stack([t.log_p for t in trajectories])
        for epoch in range(self.settings.epochs):
            scalars = self._step([t.rows for t in trajectories], old, advantage)
            if epoch == 0:
                out["first_ratio"] = scalars["ratio"]
        return {**out, **scalars}

    def _step(self, rows: list[Sequence[Row]], old: Tensor, advantage: Tensor) -> dict[str, float]:
        s = self.settings
        new, entropy = trajectory_log_p(self.heads, rows)
        ratio = (new - old).clamp(-20, 20).exp()
        clipped = ratio.clamp(1 - s.clip, 1 + s.clip)
        loss = -torch.minimum(ratio * advantage, clipped * advantage).mean() - s.entropy * entropy
        self.optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.heads.parameters(), s.grad_norm)
        self.optimiser.step()
        scalars = {"loss": loss, "ratio": ratio.mean(), "clip_fraction": (ratio != clipped).float().mean(),
                   "approx_kl": (old - new).mean(), "entropy": entropy, "grad_norm": norm}  # fmt: skip
        return {name: float(value.detach()) for name, value in scalars.items()}
