"""What a policy sees and what it answers: one decision per model evaluation and image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import Tensor


class Mode(Enum):
    """How much of an evaluation is computed for one image, from least to most."""

    SKIP = "hold"  # nothing: the derivative is forecast (RAPID3's Step-Skip on the sampler's grid)
    REUSE = "reuse"  # patch embedding and final layer; the block stack's residual is forecast (Cache-Reuse)
    RUN = "run"  # the blocks, on all image tokens or on some


@dataclass(frozen=True)
class Action:
    """A decision for one image. `tokens`: with RUN, sorted numbers (K,) of the image tokens that
    pass the blocks (region-adaptive sampling); None: all of them. `density`: with RUN, share of the
    pairs of image tiles that are attended to, in (0, 1] (RAPID3's Sparse-Attention). `measures`:
    with everything computed, the density whose distance from dense attention is measured and kept
    for later evaluations at this density; None: nothing is. `weights`: with HOLD, (noise level,
    weight) of the computed derivatives that the forecast is the sum of; None: a polynomial through
    the latest ones. Where one of them is not known any more the polynomial stands in, too."""

    level: Mode = Mode.RUN
    tokens: Tensor | None = None
    density: float = 1.0
    measures: float | None = None
    weights: tuple[tuple[float, float], ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether all tokens are computed."""
        return self.level is Mode.RUN and self.tokens is None

    @property
    def dense(self) -> bool:
        """Whether everything is computed, and nothing else."""
        return self.whole and self.density == 1.0 and self.measures is None


FULL = Action()


@dataclass(frozen=True)
class TokenState:
    """What is known of the image tokens of one image; N = frames * rows * columns, in that order.

    age (N,): evaluations that passed a token over since it was computed. derivative (C, ...): the
    latest guided derivative, what was not computed forecast. change (N,): relative change of a
    token's derivative when it was last computed. attention (N,) or None: attention mass it received
    in the last dense evaluation. wanted (N,) or None: tokens that may be computed between refreshes
    (those an inpaint mask keeps may not), `free` of them. focus (N,) or None: 0 .. 1, the user's
    mask. drift (N,) or None: estimated error of the token's forecasts, this evaluation's included,
    weighted and added up since it was computed, relative to the mean derivative, doubled by focus;
    `due`: tokens that it calls to be computed (None: unknown)."""

    grid: tuple[int, int, int]
    age: Tensor
    derivative: Tensor
    change: Tensor
    free: int
    attention: Tensor | None = None
    wanted: Tensor | None = None
    focus: Tensor | None = None
    drift: Tensor | None = None
    due: int | None = None

    @property
    def number(self) -> int:
        """Image tokens."""
        frames, rows, columns = self.grid
        return frames * rows * columns


@dataclass(frozen=True)
class FeatureSpec:
    """Tokens of a model that a policy's heads look at (`Features`): side x side of them, `hidden`
    wide, in models of one family. kind: of the heads, for what is said to people."""

    kind: str
    family: str
    hidden: int
    side: int


@dataclass(frozen=True)
class Features:
    """What a model made of one image in the last evaluation that was computed, number `evaluation`;
    of the conditions mixed as the guidance scale s mixes their outputs, f_u + s (f_c - f_u);
    float32. tokens (N, 2 C): the image tokens before the blocks, beside them as the final layer's
    matrix sees them. modulation (C,): its modulation vector."""

    tokens: Tensor
    modulation: Tensor
    evaluation: int


@dataclass(frozen=True)
class HeadInput:
    """What learned policies see of one image, (C, ...): the latent now, how far it has moved since
    the model was last computed, the latest derivative (what was not computed forecast); pooled: the
    model's pooled modulation vector at the first evaluation, None where its family shows none.
    features: where a policy has a `View`; None where they could not be seen in the last computed
    evaluation. error: 0-d, the estimated error of the forecast at a fresh noise level, still on the
    device."""

    latent: Tensor
    moved: Tensor
    derivative: Tensor
    pooled: Tensor | None = None
    features: Features | None = None
    error: Tensor | None = None


@dataclass(frozen=True)
class ImageState:
    """What is known of one image of the batch before an evaluation.

    `error` is the estimated relative L1 error of forecasting this evaluation's guided derivative
    (inf: unknown), `measured` the true one of the last evaluation that was computed although it
    could have been forecast. `since_dense`: evaluations that were not dense since the last that
    was; -1 before the first. `since_measured`: computed evaluations since the last that measured
    what sparse attention leaves out; -1 before the first. `levels`: noise levels of the computed
    derivatives that a forecast can be made from, oldest first (see `Policy.history`). `moved`:
    relative L1 change of the latest computed derivative from the one before it, `slope`: the
    multiple of the movement of the line through the two before it that was nearest to this change;
    None where there are too few, or where no policy wants a history."""

    computed: int
    since_computed: int
    error: float
    measured: float | None = None
    since_dense: int = -1
    tokens: TokenState | None = None
    since_measured: int = -1
    levels: tuple[float, ...] = ()
    moved: float | None = None
    slope: float | None = None


@dataclass(frozen=True)
class Observation:
    """The state of a run before evaluation number `index` at noise level `sigma`.

    `step`: place of `sigma` in the run's schedule of `steps` steps, 0 at its beginning; between two
    noise levels of the schedule it is that of the higher one. `weight`: what an error counts in
    this step, see `step_weights`. `schedule`: the run's noise levels. `euler`: whether the sampler
    goes on to the next of them along the derivative that it is given, so that the mean derivative
    over a step is worth more than the one at its beginning. `answers`: the numbers that the actor's
    `ask` wanted fetched."""

    index: int
    sigma: float
    images: tuple[ImageState, ...]
    step: int = 0
    steps: int = 1
    weight: float = 1.0
    schedule: tuple[float, ...] = ()
    euler: bool = False
    answers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Window:
    """Noise levels between which a policy may act: start >= sigma >= end."""

    start: float
    end: float

    def __contains__(self, sigma: float) -> bool:
        return self.start >= sigma >= self.end


@dataclass(frozen=True)
class Sparsity:
    """How attention is made sparse where an action's density asks for it. backend: what computes
    it; dense_first, dense_last: blocks at the beginning and end of the model whose attention stays
    dense; left_out: what stands in for the tiles that are left out, one of LEFT_OUT; tile: tokens
    of a tile; memory_limit: GiB for what is kept of differences to dense attention, 0 for no limit.

    LEFT_OUT: "dropped", nothing; "means", the mean of each tile; "hold", the means and the
    difference to dense attention as it was measured last; "forecast", the means and that difference
    moved on half the way it was going."""

    backend: str = "auto"
    dense_first: int = 0
    dense_last: int = 0
    left_out: str = "means"
    tile: int = 64
    memory_limit: float = 0.0

    @property
    def pooled(self) -> bool:
        """Whether means stand in."""
        return self.left_out != "dropped"

    @property
    def remembers(self) -> bool:
        """Whether differences to dense attention are kept, and the choice of tiles with them."""
        return self.left_out in ("hold", "forecast")


LEFT_OUT = ("forecast", "hold", "means", "dropped")


class Actor(Protocol):
    """A policy in one run; may keep state, which lives as long as the run. asks: whether it has to
    `ask` first."""

    needs_logits: bool

    def ask(self, looks: Sequence[HeadInput | None], sigma: Tensor) -> Tensor | None:
        """Numbers (n,) on the device that `act` needs on the host, fetched with the engine's own;
        None for none."""
        ...

    def act(self, observation: Observation) -> tuple[Action, ...]:
        """One action per image."""
        ...


class Policy(Protocol):
    """Frozen settings of one technique, as a node attaches them to a model."""

    technique: str
    forecast_order: int
    history: (
        int  # computed derivatives that the weights of its actions refer to; 0 where it gives none
    )
    start_percent: float
    end_percent: float
    levels: frozenset[Mode]
    regional: bool  # whether its actions name tokens
    sparsity: Sparsity | None  # of attention, where its actions ask for less than full density

    def start(self, window: Window) -> Actor:
        """A fresh actor for one run; `window` is start_percent .. end_percent as noise levels."""
        ...

    def settings(self) -> dict:
        """Settings in JSON form, for the record."""
        ...
