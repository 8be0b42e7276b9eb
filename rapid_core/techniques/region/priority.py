"""Which image tokens come first, and how many are chosen at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...token_grid import TokenGrid
from ...transfer import to_device
from ...types import TokenState

METRICS = ("std", "l2", "change", "attention", "random", "rounds")
DIRECTIONS = ("low", "high")

FIRST = 1e6  # added to the priority of tokens that go before all others
FOCUS = 1e3  # times the user's mask
NEVER = -1e9  # priority of tokens that may not be computed
GOLDEN = 0.6180339887  # multiples of it, less their whole part, scatter evenly


def block_size(number: int) -> int:
    """Tokens that are chosen together, of `number`: matrix units like multiples of 64 in big
    pictures."""
    return 64 if number >= 2048 else 16 if number >= 256 else 4


def round_to_blocks(count: float, number: int) -> int:
    """`count` of `number` tokens as a whole number of blocks, at least one."""
    block = block_size(number)
    return min(number, max(block, round(count / block) * block))


def starving_age(share: float) -> int:
    """Age from which a token goes before all others. share: the smallest in the run. With at least
    K of N tokens computed at a time, no token waits longer than starving_age + ceil(N / K)
    evaluations."""
    return max(2, math.ceil(2 / share))


def signal(metric: str, state: TokenState) -> Tensor:
    """How much a token matters (N,), float32, mean over its pixels. metric: "std", over the
    channels of the derivative; "l2", its norm; "change", how much it had changed when last
    computed; "attention", what the image's queries gave it, "std" where that is not known."""
    if metric == "change":
        return state.change
    if metric == "attention" and state.attention is not None:
        return state.attention
    values = state.derivative.float()
    pixels = values.norm(dim=0) if metric == "l2" else values.std(dim=0)
    sides = zip(values.shape[-2:], state.grid[1:], strict=True)
    patch = max(math.ceil(pixels / tokens) for pixels, tokens in sides)
    return TokenGrid(tuple(values.shape), patch).to_tokens(pixels)


def ranked(metric: str, direction: str, starvation: float, state: TokenState) -> Tensor:
    """Priority (N,) by a metric, float32: the paper's eq. 1 in logarithms, R = metric * exp(k *
    age), k = starvation. Here a neglected token rises whatever the direction."""
    sign = 1.0 if direction == "high" else -1.0
    return sign * signal(metric, state).clamp_min(1e-12).log() + starvation * state.age


def round_robin(state: TokenState) -> Tensor:
    """Priority (N,) of the oldest first, then a checkerboard-like scatter; float32."""
    age = state.age.float()
    return age + (torch.arange(state.number, device=age.device) * GOLDEN) % 1.0


def random(state: TokenState, evaluation: int, image: int) -> Tensor:
    """Priority (N,) by chance, the same in every run; float32."""
    generator = torch.Generator().manual_seed(evaluation * 1009 + image)
    return to_device(torch.rand(state.number, generator=generator), state.age.device)


def selectable_only(order: Tensor, state: TokenState) -> Tensor:
    """The priority (N,), with tokens that may not be computed at its end."""
    return order if state.may_run is None else order.masked_fill(~state.may_run, NEVER)


def first_per_frame(order: Tensor, state: TokenState, count: int) -> Tensor:
    """Numbers (count,) of the first tokens of each frame that has any to choose, so that none
    starves; the remainder by priority. A frame with fewer than its share leaves the rest to the
    others."""
    frames = state.grid[0]
    rank = order.view(frames, -1).argsort(1, descending=True).argsort(1).flatten()
    may_run = state.may_run
    if may_run is None:
        may_run = torch.ones_like(rank, dtype=torch.bool)
    quota = count // may_run.view(frames, -1).any(1).sum().clamp_min(1)  # stays on the device
    return torch.where((rank < quota) & may_run, math.inf, order).topk(count).indices
