"""What is known of each image token during a run: when it was computed last, how much it had changed
then, and how wrong its predictions are by now."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..quadrature.sigmas import ROUNDING
from ..token_grid import TokenGrid
from ..transfer import to_device
from ..types import Action, TokenState
from .history import SMALLEST, History, Point, token_error_estimates

NEAR = 0.5  # of the threshold: tokens that far may be computed along with those that reach it


class TokenStats:
    """Tokens of one image.

    may_run: (N,) tokens that may be computed between refreshes, None for all; focus: (N,) 0 .. 1,
    the user's mask; error_threshold, max_age: see `TokenRequirements`."""

    def __init__(
        self,
        grid: TokenGrid,
        may_run: Tensor | None = None,
        focus: Tensor | None = None,
        error_threshold: float = 0.0,
        max_age: int = 0,
    ):
        self.grid = grid
        self.may_run = may_run
        self.focus = focus
        self.error_threshold = error_threshold
        self.max_age = max_age
        self.selectable = grid.number if may_run is None else int(may_run.sum())
        self.since_full = -1
        self.age: Tensor | None = None
        self.change: Tensor | None = None
        self.attention: Tensor | None = None
        self.error: Tensor | None = None  # before the evaluation in progress
        self._error_now: Tensor | None = None  # with it
        # Of the sound in a latent of both, 0-d, which is computed whenever any token is.
        self.sound: Tensor | float = 0.0
        self._sound_now: Tensor | None = None
        self._attention_now: Tensor | None = None

    def accumulate(
        self,
        points: Sequence[Point],
        sigma: Tensor,
        order: int,
        reach: float | None,
        step_weight: Tensor,
        latent_change: Tensor | None = None,
    ) -> Tensor:
        """Add up what the tokens' predictions at `sigma` will be wrong by, times `step_weight`.
        latent_change (C, ...): what a second look at the sigma of the latest computation changes, as
        far as it is known. Returns how many tokens are over the threshold, and how many near it or
        over, (2,) float32; -1 where it cannot be told yet."""
        errors = token_error_estimates(points, sigma, order, reach)
        self._error_now = None
        if errors is None or self.error is None or self.age is None:
            return sigma.new_full((2,), -1.0, dtype=torch.float32)
        if latent_change is not None:
            scale = points[-1].value.float().abs().mean().clamp_min(SMALLEST)
            # What is told in double precision was remembered in single.
            again = abs(points[-1].sigma - sigma) <= ROUNDING * sigma
            errors = torch.where(again, latent_change.float().abs() / scale, errors)
        tokens, sound = self._by_part(errors, points[-1].value)
        self._error_now = self.error + step_weight * tokens
        self._masks_to(self.age.device)
        focused = self._focused_error()
        assert focused is not None
        limits = (self.error_threshold, NEAR * self.error_threshold)
        over = torch.stack([focused >= limit for limit in limits]) | (self.age >= self.max_age)
        if sound is not None:
            # It has no tokens to choose from: where it is wrong, everything is computed.
            self._sound_now = sound * step_weight + self.sound
            over = over | torch.stack([self._sound_now >= limit for limit in limits])[:, None]
        return (over if self.may_run is None else over & self.may_run).sum(1).float()

    def _by_part(self, errors: Tensor, latest: Tensor) -> tuple[Tensor, Tensor | None]:
        """Errors (C, ...) relative to the mean of the latest derivative, as those of the tokens (N,),
        and of the sound, 0-d, in a latent that has any: each relative to its own part."""
        video = self.grid.video(errors)
        if not self.grid.beside:
            return self.grid.to_tokens(video.mean(0)), None
        size = latest.float().abs()
        sound = slice(-self.grid.beside, None)
        own = self.grid.video(size).mean(), size[..., sound].mean()
        shares = [size.mean() / mean.clamp_min(SMALLEST) for mean in own]
        tokens = self.grid.to_tokens(video.mean(0)) * shares[0]
        return tokens, errors[..., sound].mean() * shares[1]

    def _focused_error(self) -> Tensor | None:
        """Error with this evaluation; a mask doubles it, so that white tokens reach the threshold
        at half of it."""
        if self._error_now is None or self.focus is None:
            return self._error_now
        return self._error_now * (1 + self.focus)

    def _masks_to(self, device: torch.device) -> None:
        """Masks to where the latents are, which a run's start does not know."""
        self.may_run = None if self.may_run is None else to_device(self.may_run, device)
        self.focus = None if self.focus is None else to_device(self.focus, device)

    def state(self, guided: History, over_and_near: Sequence[int] = ()) -> TokenState | None:
        """What a policy sees; None before the first computation. over_and_near: see `accumulate`."""
        points = guided.points
        if not points or self.age is None or self.change is None:
            return None
        self._masks_to(self.age.device)
        return TokenState(
            self.grid.size,
            self.age,
            self.grid.video(points[-1].value),
            self.change,
            self.selectable,
            self.attention,
            self.may_run,
            self.focus,
            self._focused_error(),
            *over_and_near,
        )

    def computed(self, action: Action, derivative: Tensor, before: Tensor | None) -> None:
        """The evaluation was computed: `derivative` is new where its tokens ran, `before` the latest
        one known until now."""
        change = self._changes(derivative, before)
        self.sound = 0.0
        self._sound_now = None
        if action.tokens is None:
            self.since_full = 0
            if self._attention_now is not None:
                self.attention = self._attention_now
                self._attention_now = None
            self.age = torch.zeros(self.grid.number, device=derivative.device)
            self.error = torch.zeros(self.grid.number, device=derivative.device)
            self.change = change
            return
        self.since_full += 1
        ran = self.grid.chosen(action.tokens)
        assert self.age is not None and self.change is not None  # a subset runs after a full one
        self.age = torch.where(ran, 0.0, self.age + 1)
        self.change = torch.where(ran, change, self.change)
        error = self._passed_error()
        self.error = None if error is None else torch.where(ran, 0.0, error)

    def attended(self, mass: Tensor, conds: int) -> None:
        """Attention mass (N,) that the tokens received in one of `conds` joined conditionings."""
        share = mass / conds
        self._attention_now = share if self._attention_now is None else self._attention_now + share

    def passed_over(self) -> None:
        """The image was skipped or reused: no token was computed."""
        if self.since_full >= 0:
            self.since_full += 1
        self.age = None if self.age is None else self.age + 1
        self.error = self._passed_error()
        self.sound = self.sound if self._sound_now is None else self._sound_now

    def _passed_error(self) -> Tensor | None:
        """Error of the tokens that were not computed."""
        return self.error if self._error_now is None else self._error_now

    def _changes(self, derivative: Tensor, before: Tensor | None) -> Tensor:
        """Relative L1 change of each token, (N,) float32; 1 where there is nothing to compare
        with."""
        if before is None:
            return torch.ones(self.grid.number, device=derivative.device)
        derivative, before = (self.grid.video(value).float() for value in (derivative, before))
        moved = self.grid.to_tokens((derivative - before).abs().mean(0))
        return moved / derivative.abs().mean().clamp_min(SMALLEST)


def stats_of_run(
    grid: TokenGrid,
    batch: int,
    mask: Tensor | None,
    painted: Tensor | None,
    error_threshold: float = 0.0,
    max_age: int = 0,
) -> list[TokenStats]:
    """Tokens of each image of a run. mask: the host's denoise mask (B or 1, C or 1, ...), 0 where
    the latent is kept; painted: the user's mask (B or 1, H, W) of any size; of a video (F or 1, H,
    W)."""
    may_run: list[Tensor | None] = [None] * batch
    focus: list[Tensor | None] = [None] * batch
    if mask is not None and mask.shape[-2:] == grid.pixels[-2:]:
        rows = [mask[i % mask.shape[0]].amax(0) for i in range(batch)]
        may_run = [grid.to_tokens(row.expand(grid.pixels)) > 0 for row in rows]
    if painted is not None:
        sized = resized(painted.reshape(-1, *painted.shape[-2:]).float(), grid)
        focus = [grid.to_tokens(sized[i % len(sized)].expand(grid.pixels)) for i in range(batch)]
    return [TokenStats(grid, may_run[i], focus[i], error_threshold, max_age) for i in range(batch)]


def resized(masks: Tensor, grid: TokenGrid) -> Tensor:
    """Masks (M, H, W) at the size of a latent, (M, h, w); several on a video are its frames, (1, t,
    h, w)."""
    frames = grid.size[0]
    if frames > 1 and len(masks) > 1:
        size = (frames, *grid.pixels[-2:])
        return torch.nn.functional.interpolate(masks[None, None], size, mode="area")[0]
    return torch.nn.functional.interpolate(masks[:, None], grid.pixels[-2:], mode="area")[:, 0]
