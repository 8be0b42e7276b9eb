"""What is known of each image token during a run: when it was computed last, and how much it had
changed then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..token_grid import TokenGrid
from ..types import Action, TokenState
from .history import History, Point, estimate_errors


class TokenStats:
    """Tokens of all images of a batch. `wanted` and `focus`: (B, N) masks, see TokenState; `free`:
    wanted tokens of each image. A token is due when its drift reaches `threshold` (0: nobody asks),
    or at the age of `oldest`."""

    def __init__(
        self,
        grid: TokenGrid,
        batch: int,
        wanted: Tensor | None = None,
        focus: Tensor | None = None,
        threshold: float = 0.0,
        oldest: int = 0,
    ):
        self.grid, self.wanted, self.focus, self.threshold, self.oldest = (
            grid,
            wanted,
            focus,
            threshold,
            oldest,
        )
        self.free: Sequence[int] = (
            [grid.number] * batch if wanted is None else wanted.sum(1).tolist()
        )
        self.since_dense = [-1] * batch
        self.age: list[Tensor | None] = [None] * batch
        self.change: list[Tensor | None] = [None] * batch
        self.attention: list[Tensor | None] = [None] * batch
        self.drift: list[Tensor | None] = [
            None
        ] * batch  # before the evaluation in progress, and with it
        self._expected: list[Tensor | None] = [None] * batch
        self._fresh_attention: dict[int, Tensor] = {}

    @classmethod
    def of_run(
        cls,
        grid: TokenGrid,
        noise: Tensor,
        mask: Tensor | None,
        painted: Tensor | None,
        threshold: float = 0.0,
        oldest: int = 0,
    ) -> TokenStats:
        """Tokens of a run on noise (B, C, ...). mask: the host's denoise mask (B or 1, C or 1,
        ...), 0 where the latent is kept; painted: the user's mask (B or 1, H, W) of any size; of a
        video (F or 1, H, W)."""
        batch, wanted, focus = noise.shape[0], None, None
        if mask is not None and mask.shape[-2:] == noise.shape[-2:]:
            rows = [mask[i % mask.shape[0]].amax(0) for i in range(batch)]
            wanted = torch.stack([grid.to_tokens(row.expand(grid.pixels)) > 0 for row in rows])
        if painted is not None:
            sized = resized(painted.reshape(-1, *painted.shape[-2:]).float().to(noise.device), grid)
            focus = torch.stack(
                [grid.to_tokens(sized[i % len(sized)].expand(grid.pixels)) for i in range(batch)]
            )
        return cls(grid, batch, wanted, focus, threshold, oldest)

    def expect(
        self,
        image: int,
        points: Sequence[Point],
        sigma: Tensor,
        order: int,
        reach: float | None,
        weight: Tensor,
        moved: Tensor | None = None,
    ) -> Tensor:
        """Add up what the tokens' forecasts at `sigma` will be wrong by, times `weight`. moved (C,
        ...): what a second look at the level of the latest computation changes, as far as it is
        known. Returns the number of tokens that are due, a 0-d float32 tensor; -1 where it cannot
        be told yet."""
        errors, before, age = (
            estimate_errors(points, sigma, order, reach),
            self.drift[image],
            self.age[image],
        )
        self._expected[image] = None
        if errors is None or before is None or age is None:
            return sigma.new_full((), -1.0, dtype=torch.float32)
        if moved is not None:
            scale = points[-1].value.float().abs().mean().clamp_min(1e-12)
            errors = torch.where(
                torch.as_tensor(points[-1].sigma == sigma), moved.float().abs() / scale, errors
            )
        drift = before + weight * self.grid.to_tokens(errors.mean(0))
        self._expected[image] = drift
        self._to(age.device)
        wanted, felt = self._of(image, self.wanted), self._felt(image)
        assert felt is not None
        due = (felt >= self.threshold) | (age >= self.oldest)
        return (due if wanted is None else due & wanted).sum().float()

    def _felt(self, image: int) -> Tensor | None:
        """Drift with this evaluation; a mask doubles it, so that white tokens are due at half the
        threshold."""
        drift, focus = self._expected[image], self._of(image, self.focus)
        return drift if drift is None or focus is None else drift * (1 + focus)

    def _to(self, device: torch.device) -> None:
        """Masks to where the latents are, which a run's start does not know."""
        self.wanted, self.focus = (
            m if m is None else m.to(device) for m in (self.wanted, self.focus)
        )

    def _of(self, image: int, masks: Tensor | None) -> Tensor | None:
        return None if masks is None else masks[image]

    def state(self, image: int, guided: History, due: int | None = None) -> TokenState | None:
        """What a policy sees of an image; None before its first computation."""
        points, age, change = guided.points(image), self.age[image], self.change[image]
        if not points or age is None or change is None:
            return None
        self._to(age.device)
        return TokenState(
            self.grid.size,
            age,
            points[-1].value,
            change,
            self.free[image],
            self.attention[image],
            self._of(image, self.wanted),
            self._of(image, self.focus),
            self._felt(image),
            due,
        )

    def remember(
        self, image: int, action: Action, derivative: Tensor, before: Tensor | None
    ) -> None:
        """An image's evaluation was computed: `derivative` is new where its tokens ran, `before`
        the latest one known until now."""
        change = self._changes(derivative, before)
        if action.tokens is None:
            self.since_dense[image] = 0
            self.attention[image] = self._fresh_attention.pop(image, self.attention[image])
            self.age[image] = torch.zeros(self.grid.number, device=derivative.device)
            self.drift[image] = torch.zeros(self.grid.number, device=derivative.device)
            self.change[image] = change
        else:
            self.since_dense[image] += 1
            ran, age, known = self.grid.chosen(action.tokens), self.age[image], self.change[image]
            assert (
                age is not None and known is not None
            )  # a subset runs only after a dense evaluation
            self.age[image] = torch.where(ran, 0.0, age + 1)
            self.change[image] = torch.where(ran, change, known)
            drift = self._drifted(image)
            self.drift[image] = None if drift is None else torch.where(ran, 0.0, drift)

    def attended(self, image: int, mass: Tensor, streams: int) -> None:
        """Attention mass (N,) that an image's tokens received in one of `streams` joined
        streams."""
        before = self._fresh_attention.get(image)
        self._fresh_attention[image] = mass / streams if before is None else before + mass / streams

    def pass_over(self, image: int) -> None:
        """An image was held or reused: no token was computed."""
        if self.since_dense[image] >= 0:
            self.since_dense[image] += 1
        age = self.age[image]
        self.age[image] = None if age is None else age + 1
        self.drift[image] = self._drifted(image)

    def drop(self) -> None:
        """Let go of all tensors."""
        nothing: list[Tensor | None] = [None] * len(self.age)
        self.age, self.change, self.attention = nothing[:], nothing[:], nothing[:]
        self.drift, self._expected, self._fresh_attention = nothing[:], nothing[:], {}
        self.wanted = self.focus = None

    def _drifted(self, image: int) -> Tensor | None:
        """Drift of the tokens that were left out."""
        return self.drift[image] if self._expected[image] is None else self._expected[image]

    def _changes(self, derivative: Tensor, before: Tensor | None) -> Tensor:
        """Relative L1 change of each token, (N,) float32; 1 where there is nothing to compare
        with."""
        if before is None:
            return torch.ones(self.grid.number, device=derivative.device)
        moved = self.grid.to_tokens((derivative.float() - before.float()).abs().mean(0))
        return moved / derivative.float().abs().mean().clamp_min(1e-12)


def resized(masks: Tensor, grid: TokenGrid) -> Tensor:
    """Masks (M, H, W) at the size of a latent, (M, h, w); several on a video are its frames, (1, t,
    h, w)."""
    frames = grid.size[0]
    if frames > 1 and len(masks) > 1:
        return torch.nn.functional.interpolate(
            masks[None, None], (frames, *grid.pixels[-2:]), mode="area"
        )[0]
    return torch.nn.functional.interpolate(masks[:, None], grid.pixels[-2:], mode="area")[:, 0]
