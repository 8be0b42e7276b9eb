"""What is known of each image token during a run: when it was computed last, and how much it had changed then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..actions import Action, TokenState
from .forecast import Track
from .tokens import TokenGrid


class Regions:
    """Tokens of all images of a batch. `wanted` and `focus`: (B, N) masks, see TokenState; `free`: wanted tokens of
    each image."""

    def __init__(self, grid: TokenGrid, batch: int, wanted: Tensor | None = None, focus: Tensor | None = None):
        self.grid, self.wanted, self.focus = grid, wanted, focus
        self.free: Sequence[int] = [grid.number] * batch if wanted is None else wanted.sum(1).tolist()
        self.since_dense = [-1] * batch
        self.age: list[Tensor | None] = [None] * batch
        self.change: list[Tensor | None] = [None] * batch
        self.attention: list[Tensor | None] = [None] * batch
        self._fresh_attention: dict[int, Tensor] = {}

    @classmethod
    def of_run(cls, grid: TokenGrid, noise: Tensor, mask: Tensor | None, painted: Tensor | None) -> Regions:
        """Tokens of a run on noise (B, C, ...). mask: the host's denoise mask (B or 1, C or 1, ...), 0 where the latent
        is kept; painted: the user's mask (B or 1, H, W) of any size."""
        batch, wanted, focus = noise.shape[0], None, None
        if mask is not None and mask.shape[-2:] == noise.shape[-2:]:
            rows = [mask[i % mask.shape[0]].amax(0) for i in range(batch)]
            wanted = torch.stack([grid.to_tokens(row.expand(grid.pixels)) > 0 for row in rows])
        if painted is not None:
            painted = painted.reshape(-1, 1, *painted.shape[-2:]).float().to(noise.device)
            sized = torch.nn.functional.interpolate(painted, noise.shape[-2:], mode="area")
            focus = torch.stack([grid.to_tokens(sized[i % len(sized), 0].expand(grid.pixels)) for i in range(batch)])
        return cls(grid, batch, wanted, focus)

    def state(self, image: int, guided: Track) -> TokenState | None:
        """What a policy sees of an image; None before its first computation."""
        points, age, change = guided.points(image), self.age[image], self.change[image]
        if not points or age is None or change is None:
            return None
        self.wanted, self.focus = (m if m is None else m.to(age.device) for m in (self.wanted, self.focus))
        pick = lambda masks: None if masks is None else masks[image]  # noqa: E731
        return TokenState(self.grid.size, age, points[-1].value, change, self.free[image], self.attention[image],
                          pick(self.wanted), pick(self.focus))

    def remember(self, image: int, action: Action, derivative: Tensor, before: Tensor | None) -> None:
        """An image's evaluation was computed: `derivative` is new where its tokens ran, `before` the latest one known
        until now."""
        change = self._changes(derivative, before)
        if action.tokens is None:
            self.since_dense[image] = 0
            self.attention[image] = self._fresh_attention.pop(image, self.attention[image])
            self.age[image] = torch.zeros(self.grid.number, device=derivative.device)
            self.change[image] = change
        else:
            self.since_dense[image] += 1
            ran, age, known = self.grid.chosen(action.tokens), self.age[image], self.change[image]
            assert age is not None and known is not None  # a subset runs only after a dense evaluation
            self.age[image] = torch.where(ran, 0.0, age + 1)
            self.change[image] = torch.where(ran, change, known)

    def attended(self, image: int, mass: Tensor, streams: int) -> None:
        """Attention mass (N,) that an image's tokens received in one of `streams` joined streams."""
        before = self._fresh_attention.get(image)
        self._fresh_attention[image] = mass / streams if before is None else before + mass / streams

    def pass_over(self, image: int) -> None:
        """An image was held or reused: no token was computed."""
        if self.since_dense[image] >= 0:
            self.since_dense[image] += 1
        age = self.age[image]
        self.age[image] = None if age is None else age + 1

    def _changes(self, derivative: Tensor, before: Tensor | None) -> Tensor:
        """Relative L1 change of each token, (N,) float32; 1 where there is nothing to compare with."""
        if before is None:
            return torch.ones(self.grid.number, device=derivative.device)
        moved = self.grid.to_tokens((derivative.float() - before.float()).abs().mean(0))
        return moved / derivative.float().abs().mean().clamp_min(1e-12)
