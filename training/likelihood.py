"""Probability of what heads chose: the same sums in the rollout and in the update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from rapid_core.techniques.heads.network import beta
from rapid_core.techniques.heads.prior import OWN, RUNGS, mixture
from rapid_core.techniques.heads.rapid3 import Decision, Heads


@dataclass(frozen=True)
class Row:
    """One decision of one image: what the heads saw, and what they chose."""

    inputs: dict[str, Tensor]
    numbers: Tensor
    pooled: Tensor
    choice: Decision


class TrajectoryTape:
    """Decisions of one run, by image."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Row]] = {}

    def add(
        self,
        image: int,
        evaluation: int,
        inputs: dict[str, Tensor],
        numbers: Tensor,
        pooled: Tensor,
        choice: Decision,
    ) -> None:
        """See `rapid_core.techniques.heads.rapid3.Tape`. What chose nothing (held on an earlier jump) is not
        kept."""
        if choice != Decision():
            self.rows.setdefault(image, []).append(Row(inputs, numbers, pooled, choice))


def log_probability(heads: Heads, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """log p of each row's choices, (n,), a head that is absent or void counting nothing, and the
    entropy of the categorical ones, (n,)."""
    inputs = {name: torch.stack([row.inputs[name] for row in rows]) for name in heads.heads}
    numbers, pooled = (
        torch.stack([getattr(row, name) for row in rows]) for name in ("numbers", "pooled")
    )
    logits = heads(inputs, numbers, pooled)
    total, entropy = torch.zeros(len(rows)), torch.zeros(len(rows))
    if "step" in logits:
        chosen = [row.choice.jump for row in rows]
        jumps = torch.tensor([0.5 if c is None else c for c in chosen])
        total = total + Beta(*beta(logits["step"])).log_prob(jumps) * made(chosen)
    for name in ("cache", "sparse", "pace"):
        if name in logits:
            chosen = [getattr(row.choice, name) for row in rows]
            logs, mask = logits[name].log_softmax(1), made(chosen)
            if name == "pace":
                leaning = torch.tensor(
                    [row.choice.prior_logits or (0.0,) * len(RUNGS) for row in rows]
                )
                logs = mixture(logits[name], leaning).clamp_min(1e-30).log()
            picked = torch.tensor([c or 0 for c in chosen])
            total = total + logs.gather(1, picked[:, None])[:, 0] * mask
            entropy = entropy - (logs.exp() * logs).sum(1) * mask
    return total, entropy


def left_plan(heads: Heads, rows: Sequence[Row]) -> tuple[int, int]:
    """In how many of these decisions the likeliest pace is not the plan's, and how many of them
    there are."""
    paces = [row for row in rows if row.choice.pace is not None] if "pace" in heads.heads else []
    if not paces:
        return 0, 0
    with torch.no_grad():
        inputs = {"pace": torch.stack([row.inputs["pace"] for row in paces])}
        numbers, pooled = (
            torch.stack([getattr(row, name) for row in paces]) for name in ("numbers", "pooled")
        )
        logits = heads(inputs, numbers, pooled)["pace"] + torch.tensor(
            [row.choice.prior_logits for row in paces]
        )
    return int((logits.argmax(1) != OWN).sum()), len(paces)


def made(chosen: Sequence[float | None]) -> Tensor:
    """1 where something was chosen, (n,)."""
    return torch.tensor([c is not None for c in chosen], dtype=torch.float32)
