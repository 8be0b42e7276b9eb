"""Probability of what heads chose: the same sums in the rollout and in the update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from rapid_core.policies.head_net import beta
from rapid_core.policies.heads import Choice, Heads
from rapid_core.policies.prior import MOVES, drawn


@dataclass(frozen=True)
class Row:
    """One decision of one image: what the heads saw, and what they chose."""

    inputs: dict[str, Tensor]
    numbers: Tensor
    pooled: Tensor
    choice: Choice


class TrajectoryTape:
    """Decisions of one run, by image."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Row]] = {}

    def add(
        self, image: int, evaluation: int, inputs: dict[str, Tensor], numbers: Tensor, pooled: Tensor, choice: Choice
    ) -> None:
        """See `rapid_core.policies.heads.Tape`. What chose nothing (held on an earlier jump) is not kept."""
        if choice != Choice():
            self.rows.setdefault(image, []).append(Row(inputs, numbers, pooled, choice))


def log_probability(heads: Heads, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """log p of each row's choices, (n,), a head that is absent or void counting nothing, and the entropy of the
    categorical ones, (n,)."""
    inputs = {name: torch.stack([row.inputs[name] for row in rows]) for name in heads.heads}
    numbers, pooled = (torch.stack([getattr(row, name) for row in rows]) for name in ("numbers", "pooled"))
    logits = heads(inputs, numbers, pooled)
    total, entropy = torch.zeros(len(rows)), torch.zeros(len(rows))
    if "step" in logits:
        chosen = [row.choice.jump for row in rows]
        jumps = torch.tensor([0.5 if c is None else c for c in chosen])
        total = total + Beta(*beta(logits["step"])).log_prob(jumps) * made(chosen)
    for name in ("cache", "sparse", "move"):
        if name in logits:
            chosen = [getattr(row.choice, name) for row in rows]
            logs, mask = logits[name].log_softmax(1), made(chosen)
            if name == "move":
                leaning = torch.tensor([row.choice.lean or (0.0,) * len(MOVES) for row in rows])
                logs = drawn(logits[name], leaning).clamp_min(1e-30).log()
            picked = torch.tensor([c or 0 for c in chosen])
            total = total + logs.gather(1, picked[:, None])[:, 0] * mask
            entropy = entropy - (logs.exp() * logs).sum(1) * mask
    return total, entropy


def left_plan(heads: Heads, rows: Sequence[Row]) -> tuple[int, int]:
    """In how many of these decisions the likeliest move is not the plan's, and how many moves there are."""
    moves = [row for row in rows if row.choice.move is not None] if "move" in heads.heads else []
    if not moves:
        return 0, 0
    with torch.no_grad():
        inputs = {"move": torch.stack([row.inputs["move"] for row in moves])}
        numbers, pooled = (torch.stack([getattr(row, name) for row in moves]) for name in ("numbers", "pooled"))
        logits = heads(inputs, numbers, pooled)["move"] + torch.tensor([row.choice.lean for row in moves])
    return int((logits.argmax(1) != MOVES.index(0)).sum()), len(moves)


def made(chosen: Sequence[float | None]) -> Tensor:
    """1 where something was chosen, (n,)."""
    return torch.tensor([c is not None for c in chosen], dtype=torch.float32)
