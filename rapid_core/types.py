"""What the rooms of the core say to one another; imports nothing of the pack.

One decision per model evaluation and image: a policy's actor sees an `Observation` of one image and
answers with an `Action`. What a policy needs of a run is data (`Requirements`), and why something
was computed in full is data, too (`Reason`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, ClassVar

from torch import Tensor

PredictionWeights = tuple[tuple[float, float], ...]  # (sigma, weight) of computed derivatives


class Mode(Enum):
    """How much of an evaluation is computed for one image, from least to most."""

    SKIP = "skip"  # nothing: the derivative is predicted (RAPID3's Step-Skip on the sampler's grid)
    REUSE = "reuse"  # patch embedding and final layer; the blocks' residual is predicted
    RUN = "run"  # the blocks, on all image tokens or on some


class Aim(Enum):
    """Which picture a run with predicted steps is to come near."""

    FULL_PICTURE = "full picture"
    """The one that all of its steps would have made."""
    BEST_PICTURE = "best picture"
    """The converged solution of the model's ODE, which infinitely many steps would make."""


class Must(IntEnum):
    """What other policies on the same model may not undercut."""

    NOTHING = 0
    RUN = 1  # the blocks run, at least on some tokens (a cap on skips in a row)
    ALL = 2  # all tokens are computed (a safety check, a warm-up)


class SamplerKind(Enum):
    """What a sampler does with the derivatives that it is given."""

    EULER = "euler"  # goes on to the schedule's next sigma along the derivative, once a step
    ONE_EVALUATION = "one evaluation a step"
    SEVERAL_EVALUATIONS = "several evaluations a step"
    OWN_SIGMAS = "sigmas of its own"  # of the schedule's only the ends count
    ADDS_NOISE = "adds noise"  # in its steps: what comes next cannot be known from what was
    UNKNOWN = "unknown"  # another pack's that shows no noise


@dataclass(frozen=True)
class Action:
    """A decision for one image."""

    mode: Mode = Mode.RUN
    tokens: Tensor | None = None
    """With RUN: sorted numbers (K,) of the image tokens that pass the blocks; None for all."""
    density: float = 1.0
    """With RUN: share of the pairs of image tiles that are attended to, in (0, 1]."""
    measured_density: float | None = None
    """With everything computed: the density whose difference from dense attention is measured and
    kept for later evaluations at this density; None for no measurement."""
    prediction_weights: PredictionWeights | None = None
    """With SKIP: the computed derivatives that the prediction is the weighted sum of; None for a
    polynomial through the latest ones, which also stands in where one of them is not known."""
    must: Must = Must.NOTHING

    @property
    def all_tokens(self) -> bool:
        """Whether all tokens are computed."""
        return self.mode is Mode.RUN and self.tokens is None

    @property
    def full(self) -> bool:
        """Whether everything is computed, and nothing measured beside it."""
        return self.all_tokens and self.density == 1.0 and self.measured_density is None


FULL = Action()


class KVKind(Enum):
    """How keys and values of tokens that are not computed are kept."""

    PREDICT = "predict"  # from the two latest values of each token: twice the memory
    LAST_VALUE = "last value"
    EIGHT_BIT = "8 bit"
    HOST_MEMORY = "host memory"
    NONE = "none"


COMPENSATIONS = ("predict", "last value", "means", "none")


@dataclass(frozen=True)
class Sparsity:
    """How attention is made sparse where an action's density asks for it."""

    backend: str = "auto"
    dense_first: int = 0
    """Blocks at the beginning of the model whose attention stays dense."""
    dense_last: int = 0
    """Blocks at the end of the model whose attention stays dense."""
    compensation: str = "means"
    """What stands in for tiles that are not attended to, one of COMPENSATIONS: "none"; "means", the
    mean of each tile; "last value", the means and the difference to dense attention as it was
    measured last; "predict", the means and that difference moved on half the way it was going."""
    tile: int = 64
    """Image tokens of a tile."""
    memory_limit: float = 0.0
    """GiB for the differences that are kept; 0 for no limit."""

    @property
    def uses_means(self) -> bool:
        """Whether means stand in."""
        return self.compensation != "none"

    @property
    def keeps_residual(self) -> bool:
        """Whether differences to dense attention are kept, and the choice of tiles with them."""
        return self.compensation in ("last value", "predict")


@dataclass(frozen=True)
class TokenRequirements:
    """What a policy that chooses tokens needs."""

    kv: KVKind = KVKind.PREDICT
    memory_limit: float = 0.0
    """GiB for keys and values; 0 for the default bound, a share of the device's memory."""
    reach: float = 4.0
    """How far a token's prediction may go, in distances of the two evaluations it is made from."""
    error_threshold: float = 0.0
    """Accumulated error estimate at which a token has to be computed; 0 where nobody asks."""
    max_age: int = 0
    """Evaluations after which a token has to be computed, with `error_threshold`."""
    focus: Tensor | None = None
    """The user's mask (B or 1, H, W) of any size, 0 .. 1."""
    interpolate: bool = False
    """Whether tokens that are not computed follow what their computed neighbours did."""
    attention_mass: bool = False
    """Whether the attention mass that image tokens receive is measured."""


@dataclass(frozen=True)
class FeatureSpec:
    """Tokens of a model that a policy's heads look at (`Features`)."""

    kind: str
    """Of the heads, for what is said to people."""
    family: str
    """Family of the models that they were made for."""
    hidden: int
    """Channels of a token."""
    side: int
    """The picture has side x side tokens."""


@dataclass(frozen=True)
class Requirements:
    """What a policy needs of a run, and what it may ask for."""

    modes: frozenset[Mode] = frozenset((Mode.RUN,))
    prediction_order: int = 0
    """Order of the polynomial that predicts; 0 keeps the last value."""
    history: int = 0
    """Computed derivatives that the weights of its actions refer to; 0 where it gives none."""
    error_estimates: bool = True
    """Whether it looks at the error estimated before an evaluation, which costs some small operations
    on the device in each."""
    tokens: TokenRequirements | None = None
    attention: Sparsity | None = None
    attention_density: float = 0.5
    """Density that its actions will ask for, where differences to dense attention are kept."""
    features: FeatureSpec | None = None
    aim: Aim | None = None
    """What gaps are corrected towards once their far end is computed (`engine.corrector`); None
    for no correction."""
    logits: bool = False
    """Whether its actors have heads that look at latents."""
    decides_schedule: bool = False
    """Whether it settles which evaluations are computed; there is one such policy on a model."""
    watch: bool = False
    """Whether its run, which is computed in full, is to show what gaps cost (`engine.watcher`)."""
    safety: bool = False
    """Whether it may skip only where that is known to be safe, see `plan.unsafe`."""
    no_savings_advice: Reason | None = None
    """What to change where all tokens were computed in every evaluation without a reason."""

    @property
    def attention_only(self) -> bool:
        """Whether it is about attention and nothing else."""
        only_runs = self.modes == frozenset((Mode.RUN,))
        return self.attention is not None and self.tokens is None and only_runs

    @property
    def blocks(self) -> bool:
        """Whether it acts inside the model, and its blocks have to be hooked."""
        inside = self.tokens is not None or self.attention is not None or self.logits
        return inside or Mode.REUSE in self.modes


@dataclass(frozen=True)
class TokenState:
    """What is known of the image tokens of one image; N = frames * rows * columns, in that order."""

    grid: tuple[int, int, int]
    """Frames, rows, columns."""
    age: Tensor
    """(N,) evaluations that passed a token over since it was computed."""
    derivative: Tensor
    """(C, ...) the latest guided derivative; what was not computed is predicted."""
    change: Tensor
    """(N,) relative change of a token's derivative when it was last computed."""
    selectable: int
    """Tokens that `may_run` holds; all without an inpaint mask."""
    attention: Tensor | None = None
    """(N,) attention mass that a token received in the last full evaluation."""
    may_run: Tensor | None = None
    """(N,) tokens that may be computed between refreshes; those an inpaint mask keeps may not."""
    focus: Tensor | None = None
    """(N,) 0 .. 1, the user's mask."""
    error: Tensor | None = None
    """(N,) estimated error of a token's predictions, this evaluation's included, weighted and added
    up since it was computed, relative to the mean derivative; doubled by focus."""
    over_threshold: int | None = None
    """Tokens whose error or age calls for their computation; None where it is not known."""
    near_threshold: int | None = None
    """Those and the tokens whose error is half of the threshold or more."""

    @property
    def number(self) -> int:
        """Image tokens."""
        frames, rows, columns = self.grid
        return frames * rows * columns


@dataclass(frozen=True)
class Features:
    """What a model made of one image in the last evaluation that was computed; of the conditions
    mixed as the guidance scale s mixes their outputs, f_u + s (f_c - f_u); float32."""

    tokens: Tensor
    """(N, 2 C) image tokens before the blocks, beside them as the final layer's matrix sees them."""
    modulation: Tensor
    """(C,) the modulation vector."""
    evaluation: int
    """Number of that evaluation."""


@dataclass(frozen=True)
class HeadInput:
    """What learned policies see of one image, (C, ...)."""

    latent: Tensor
    latent_change: Tensor
    """How far the latent has moved since the model was last computed."""
    derivative: Tensor
    """The latest guided derivative; what was not computed is predicted."""
    pooled: Tensor | None = None
    """The model's pooled modulation vector at the first evaluation; None where its family shows
    none."""
    features: Features | None = None
    """Where a policy has a `FeatureSpec`; None where they could not be seen."""
    error: Tensor | None = None
    """0-d, the estimated error of the prediction at a fresh sigma, still on the device."""


@dataclass(frozen=True)
class Observation:
    """One image of a run before an evaluation."""

    index: int
    """Number of the evaluation in the run."""
    sigma: float
    image: int = 0
    """Number of the image in its batch."""
    step: int = 0
    """Place of the evaluation in the schedule, 0 at its beginning."""
    steps: int = 1
    """Steps of the schedule."""
    step_weight: float = 1.0
    """What an error counts in this step, see `quadrature.sigmas.step_weights`."""
    sigmas: tuple[float, ...] = ()
    """Sigmas of the schedule."""
    turns: tuple[int, ...] = ()
    """Steps at which a prompt or a ControlNet begins or ends, as far as that is known before the run:
    they are computed, and nothing from before them predicts what follows."""
    euler: bool = False
    """Whether the sampler goes on to the schedule's next sigma along the derivative that it is
    given, so that the mean derivative over a step is worth more than the one at its beginning."""
    aim: Aim | None = None
    """What gaps are corrected towards; None where they are not."""
    computed: int = 0
    """Evaluations of the image that were computed."""
    since_computed: int = 0
    """Evaluations since the last that was computed."""
    error: float = float("inf")
    """Estimated relative L1 error of predicting this evaluation's guided derivative; inf where it
    is not known."""
    measured_error: float | None = None
    """The true error of the prediction at the last evaluation that was computed although it could
    have been predicted."""
    gap_error: float | None = None
    """What the latest gap, once its far end was computed, was found to have moved the latent wrongly:
    mean square, relative to that of the denoised latent. None where no gap has ended yet, or since
    what a gap cannot be corrected over: a prompt, a ControlNet or guidance that began or ended."""
    since_full: int = -1
    """Evaluations that did not compute all tokens since the last that did; -1 before the first."""
    since_measured: int = -1
    """Computed evaluations since the last that measured what sparse attention leaves out; -1 before
    the first."""
    history: tuple[float, ...] = ()
    """Sigmas of the computed derivatives that a prediction can be made from, oldest first."""
    change: float | None = None
    """Relative L1 change of the latest computed derivative from the one before it."""
    extrapolation_skill: float | None = None
    """Multiple of the movement of the line through the two derivatives before the latest that was
    nearest to its change: 1 where the line was right, 0 where the last value was. None where there
    are too few, or where no policy wants a history."""
    tokens: TokenState | None = None
    logits: tuple[float, ...] = ()
    """The numbers that the actor's `logits` asked for."""


@dataclass(frozen=True)
class Window:
    """Sigmas between which a policy may act: start >= sigma >= end."""

    start: float
    end: float

    def __contains__(self, sigma: float) -> bool:
        return self.start >= sigma >= self.end


class Actor(ABC):
    """A policy for one image of one run; may keep state, which lives as long as the run."""

    needs_logits: ClassVar[bool] = False

    def logits(self, seen: HeadInput | None, sigma: Tensor) -> Tensor | None:  # noqa: ARG002
        """Numbers (n,) on the device that `act` needs on the host, fetched together with the
        engine's own; None for none. seen: None before the first computed evaluation."""
        return None

    @abstractmethod
    def act(self, observation: Observation) -> Action:
        """What is to be computed of this evaluation."""

    def executed(self, action: Action) -> None:  # noqa: B027 (most need not know)
        """What was computed of it, whoever wanted it."""

    @property
    def notes(self) -> Sequence[Reason]:
        """What it has to say about the run."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """Frozen settings of one technique, as a node attaches them to a model."""

    technique: ClassVar[str]

    @property
    def percents(self) -> tuple[float, float]:
        """Shares of the schedule between which it acts."""
        return 0.0, 1.0

    @property
    @abstractmethod
    def requirements(self) -> Requirements:
        """What it needs of a run."""

    @abstractmethod
    def start(self, window: Window, image: int = 0) -> Actor:
        """A fresh actor for an image of a run. window: `percents` as sigmas."""

    def with_attention(self, attention: Sparsity) -> Policy:  # noqa: ARG002
        """The policy with the sparse attention that a run can have, where it asks for any."""
        return self

    @abstractmethod
    def to_record(self) -> dict[str, Any]:
        """Its technique and settings in JSON form."""


class Reason:
    """Why something was computed in full, or what a report should say: a code with parameters. Its
    words are in `locales/<language>/main.json`; see `reasons.text`.

    params: numbers, strings, or further reasons, by the names that the words use."""

    __slots__ = ("code", "params")

    def __init__(self, code: Enum | str, **params: Any):
        self.code: str = str(code.value if isinstance(code, Enum) else code)
        self.params = params

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reason) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"Reason({self.code}{', ' if given else ''}{given})"

    @property
    def _key(self) -> tuple:
        return self.code, tuple(sorted((name, repr(value)) for name, value in self.params.items()))
