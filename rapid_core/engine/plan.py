"""What a run will do, settled before it begins: which policies can work on this model, what they
need, what is refused and why, and how much memory that takes. Pure: testable without ComfyUI."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod

from ..architectures import Architecture
from ..attention_cost import PAIR, tiles_kept
from ..cost import CostModel
from ..quadrature.multistep import CORRECTOR_TERMS
from ..reasons import ReasonCode
from ..token_grid import TokenGrid
from ..types import (
    Aim,
    FeatureSpec,
    KVKind,
    Mode,
    Policy,
    Reason,
    Requirements,
    SamplerKind,
    Sparsity,
    TokenRequirements,
    Window,
)
from .kv import bytes_of, missing
from .tap import heads_blind

FEW_STEPS = 6  # of a run in which every step shows in the picture
LATENT_ELEMENT = 4  # bytes of a number of a latent, whatever the model computes with
HEAD_WIDTH = 64  # channels of a head at least, for counting what is kept head by head
GIB = 2**30
MIB = 2**20
# Keys and values may take this share of the device's memory where no limit is set. Of the whole
# memory and not of what is free, so that the same workflow draws the same picture.
KV_SHARE = 0.25
SMALLER = {KVKind.PREDICT: KVKind.LAST_VALUE, KVKind.LAST_VALUE: KVKind.EIGHT_BIT}


@dataclass(frozen=True, kw_only=True)
class CondFacts:
    """A conditioning of the guider."""

    uuid: Hashable
    text_tokens: int = 0
    reference_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What is known of a run before it begins."""

    shape: tuple[int, ...]
    """Of the batch of latents, (B, C, ...)."""
    sigmas: tuple[float, ...]
    turns: tuple[int, ...] = ()
    """Steps at which a conditioning begins or ends, or something of one."""
    sampler: str = "euler"
    sampler_kind: SamplerKind = SamplerKind.EULER
    sampler_sensitive: bool = False
    """Whether the sampler makes small errors large."""
    model_name: str = "model"
    """Class of the diffusion model."""
    architecture: Architecture | None = None
    """None where the family is not in the table."""
    cost: CostModel | None = None
    blocks: int = 0
    patch: int = 1
    """Latent pixels along a side of a token."""
    image_tokens: int = 0
    conds: tuple[CondFacts, ...] = ()
    lists: int = 0
    """Lists of conditionings that are evaluated (positive, negative)."""
    element: int = 4
    """Bytes of a number that the model computes with."""
    device_memory: int | None = None
    """Bytes of the device that the model computes on."""
    device_type: str = "cpu"
    sigma_at: Callable[[float], float] = staticmethod(lambda percent: 1.0 - percent)
    """Sigma at a share of the schedule."""
    parts: tuple[slice, ...] = ()
    """Of a packed latent's last axis (video and audio)."""
    video: tuple[int, ...] = ()
    """Shape (C, T, H, W) of the first part of a packed latent, whose tokens are known; else none."""
    audio_tokens: int = 0
    """Of the second part."""
    features_refused: Callable[[FeatureSpec], Reason | None] = staticmethod(lambda _spec: None)
    """Why a policy cannot look at the tokens of this run; None where it can."""
    blocks_refused: Reason | None = None
    """Why the blocks cannot be hooked."""
    notes: tuple[Reason, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run, settled. Policies that cannot work on this model are not among `policies`."""

    policies: tuple[Policy, ...] = ()
    windows: tuple[Window, ...] = ()
    """Sigmas between which each policy acts."""
    batch: int = 1
    shape: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    turns: tuple[int, ...] = ()
    """See `HostFacts`."""
    sampler: str = "euler"
    sampler_kind: SamplerKind = SamplerKind.EULER
    family: str = ""
    architecture: Architecture | None = None
    """None where tokens and blocks of the model are not known."""
    cost: CostModel | None = None
    """None where evaluations are counted, and not FLOPs."""
    modes: frozenset[Mode] = frozenset((Mode.RUN,))
    prediction_order: int = 0
    history: int = 0
    """Computed derivatives that are kept for the weights of policies."""
    aim: Aim | None = None
    """What gaps are corrected towards; None for no correction."""
    watch: bool = False
    """Whether images are watched (`watcher`)."""
    error_estimates: bool = True
    """Whether a policy looks at errors estimated before evaluations."""
    reach: float | None = None
    """See `TokenRequirements.reach`; None for no limit."""
    parts: tuple[slice, ...] = ()
    video: tuple[int, ...] = ()
    """Shape of the first part, where a latent is packed and its tokens are known."""
    audio_tokens: int = 0
    hooks: bool = False
    """Whether blocks are hooked."""
    tokens: TokenRequirements | None = None
    grid: TokenGrid | None = None
    kv: KVKind | None = None
    """How keys and values are kept; None where no tokens are chosen."""
    kv_conds: frozenset[Hashable] | None = None
    """Conditionings that there is memory for; None for any."""
    attention: Sparsity | None = None
    dense_blocks: frozenset[int] = frozenset()
    """Numbers of blocks whose attention stays dense."""
    residual_note: Reason | None = None
    """What differences to dense attention take, said where attention was sparse."""
    mass_block: int = -1
    """Block whose attention mass is measured; -1 for none."""
    features: FeatureSpec | None = None
    no_hooks: Reason | None = None
    """Why blocks cannot be changed."""
    no_tokens: Reason | None = None
    """Why tokens cannot be chosen."""
    memory: int = 0
    """Bytes that the run will keep of the inside of blocks on the model's device, announced to the
    host's loader."""
    histories: int = 0
    """Bytes of derivatives and residuals that predictions are made from, announced, too."""
    notes: tuple[Reason, ...] = ()
    advice: Reason | None = None
    """What to say where choosing tokens saved nothing."""

    @property
    def euler(self) -> bool:
        """Whether the sampler goes to the next sigma along the derivative that it is given."""
        return self.sampler_kind is SamplerKind.EULER

    @property
    def one_evaluation(self) -> bool | None:
        """Whether the sampler evaluates once a step, at the schedule's sigmas; None where that is
        not known."""
        if self.sampler_kind in (SamplerKind.EULER, SamplerKind.ONE_EVALUATION):
            return True
        known = (SamplerKind.SEVERAL_EVALUATIONS, SamplerKind.OWN_SIGMAS)
        return False if self.sampler_kind in known else None

    @property
    def keeps_residual(self) -> bool:
        """Whether differences to dense attention are kept."""
        return self.attention is not None and self.attention.keeps_residual

    @property
    def predicts(self) -> bool:
        """Whether anything may be made from what was computed, so that it is kept."""
        return bool(self.policies)

    @property
    def reuses(self) -> bool:
        """Whether residuals of the blocks are measured."""
        return Mode.REUSE in self.modes and self.no_hooks is None


def plan_run(policies: Sequence[Policy], facts: HostFacts) -> RunPlan:
    """The plan of a run with these policies, in the order in which they were attached."""
    notes = list(facts.notes)
    all_tokens = _all_tokens(facts)
    if all_tokens is not None and any(p.requirements.tokens for p in policies):
        notes.append(all_tokens)
        policies = [p for p in policies if p.requirements.tokens is None]
    why = unsafe(facts)
    if why is not None and any(p.requirements.safety for p in policies):
        notes.append(why)
        policies = [p for p in policies if not p.requirements.safety]
    needs = [p.requirements for p in policies]
    no_hooks = None
    if any(need.blocks for need in needs):
        no_hooks = facts.blocks_refused
        if facts.architecture is None:
            no_hooks = Reason(ReasonCode.BLOCKS_UNKNOWN, model=facts.model_name)
    attention = _attention(policies, facts)
    chosen = _tokens(policies, facts)
    if attention.sparsity is not None:
        policies = [policy.with_attention(attention.sparsity) for policy in policies]
    features = _features(policies, facts, no_hooks)
    family = facts.architecture.marked if facts.architecture else f"{facts.model_name} (unverified)"
    plan = RunPlan(
        policies=tuple(policies),
        windows=tuple(Window(*map(facts.sigma_at, policy.percents)) for policy in policies),
        batch=facts.shape[0],
        shape=facts.shape,
        sigmas=facts.sigmas,
        turns=facts.turns,
        sampler=facts.sampler,
        sampler_kind=facts.sampler_kind,
        family=family,
        architecture=facts.architecture,
        cost=facts.cost,
        modes=frozenset().union(*(need.modes for need in needs)),
        prediction_order=max((need.prediction_order for need in needs), default=0),
        error_estimates=any(need.error_estimates for need in needs),
        history=max((need.history for need in needs), default=0),
        aim=_aim(needs),
        watch=any(need.watch for need in needs),
        parts=facts.parts,
        video=facts.video,
        audio_tokens=facts.audio_tokens,
        hooks=any(need.blocks for need in needs) and no_hooks is None,
        reach=chosen.requirements.reach if chosen.requirements else None,
        tokens=chosen.requirements,
        grid=chosen.grid,
        kv=chosen.kind if no_hooks is None else None,
        kv_conds=chosen.conds,
        mass_block=facts.blocks // 2
        if chosen.requirements and chosen.requirements.attention_mass
        else -1,
        attention=attention.sparsity if no_hooks is None else None,
        dense_blocks=attention.dense_blocks,
        residual_note=attention.note,
        features=features.spec,
        no_hooks=no_hooks,
        no_tokens=no_hooks or chosen.refused,
        memory=features.bytes + (chosen.bytes + attention.bytes if no_hooks is None else 0),
        notes=tuple([*notes, *chosen.notes, *features.notes]),
        advice=_advice(policies),
    )
    return replace(plan, histories=history_bytes(plan, facts)) if plan.predicts else plan


def _all_tokens(facts: HostFacts) -> Reason | None:
    """Why some tokens of this model can never be computed alone; None where they can."""
    if facts.architecture is None:
        return Reason(ReasonCode.UNKNOWN_TO_REGION, model=facts.model_name)
    code = facts.architecture.all_tokens
    return None if code is None else Reason(code, model=facts.architecture.known_as)


def history_lengths(plan: RunPlan) -> tuple[int, int, int]:
    """Points that are kept of the guided derivative, of each list's of conditionings, and of each
    conditioning's residual of the blocks."""
    terms = 0 if plan.aim is None else CORRECTOR_TERMS
    guided = max(plan.prediction_order + 2, plan.history, terms)
    return guided, max(plan.prediction_order + 1, plan.history), plan.prediction_order + 1


def history_bytes(plan: RunPlan, facts: HostFacts) -> int:
    """Bytes of the histories of all images, of the latest latent, and of what a gap has moved it."""
    guided, each, residual = history_lengths(plan)
    latents = guided + each * facts.lists + 1 + (plan.aim is not None)
    size = latents * prod(facts.shape) * LATENT_ELEMENT
    if plan.reuses and facts.cost is not None:
        tokens = facts.shape[0] * (facts.image_tokens + facts.audio_tokens) * len(facts.conds)
        size += residual * tokens * facts.cost.hidden * facts.element
    return size


def unsafe(facts: HostFacts) -> Reason | None:
    """Why nothing may be skipped in a run, as far as that is known before it; None where it may."""
    steps = len(facts.sigmas) - 1
    if any(a < b for a, b in itertools.pairwise(facts.sigmas)):
        return Reason(ReasonCode.SIGMAS_RISE)
    if 1 <= steps <= FEW_STEPS:
        return Reason(ReasonCode.FEW_STEPS, steps=steps, few=FEW_STEPS)
    if facts.sampler_kind is SamplerKind.ADDS_NOISE:
        return Reason(ReasonCode.SAMPLER_ADDS_NOISE, sampler=facts.sampler)
    if facts.sampler_sensitive:
        return Reason(ReasonCode.SAMPLER_SENSITIVE, sampler=facts.sampler)
    return None


def _aim(needs: Sequence[Requirements]) -> Aim | None:
    """What gaps are corrected towards: as the policy with the schedule has it, which may make them
    good by itself; or else the last that wants it."""
    last = next((need.aim for need in reversed(needs) if need.aim is not None), None)
    return next((need.aim for need in needs if need.decides_schedule), last)


def _advice(policies: Sequence[Policy]) -> Reason | None:
    """What to say where every token was computed in every evaluation."""
    advice = [p.requirements.no_savings_advice for p in policies]
    last = next((reason for reason in reversed(advice) if reason is not None), None)
    return None if last is None else Reason(ReasonCode.ALL_TOKENS_COMPUTED, advice=last)


@dataclass(frozen=True)
class _TokenPlan:
    requirements: TokenRequirements | None = None
    grid: TokenGrid | None = None
    kind: KVKind | None = None
    conds: frozenset[Hashable] | None = None
    bytes: int = 0
    refused: Reason | None = None
    notes: tuple[Reason, ...] = ()


def _tokens(policies: Sequence[Policy], facts: HostFacts) -> _TokenPlan:
    """Keys and values of the last policy that chooses tokens: as it wants them, in a smaller way
    where that is more than the default bound, or none."""
    needed = [p.requirements.tokens for p in policies if p.requirements.tokens]
    if not needed or facts.architecture is None or facts.cost is None:
        return _TokenPlan()
    tokens = needed[-1]
    shape = facts.video or facts.shape[1:]
    grid = TokenGrid(shape, facts.patch, prod(facts.shape[1:]) - prod(shape))
    notes = []
    if tokens.focus is not None and tokens.focus.shape[-2:] != shape[-2:]:
        sizes = (" x ".join(map(str, size[-2:])) for size in (tokens.focus.shape, shape))
        mask, latent = sizes
        notes.append(Reason(ReasonCode.MASK_SCALED, mask=mask, latent=latent))
    limit = tokens.memory_limit * GIB
    kind = tokens.kv
    on_device = kind is not KVKind.HOST_MEMORY
    if on_device and not limit and facts.device_memory is not None:
        limit = KV_SHARE * facts.device_memory
        kind = _fitting(kind, limit, facts)
    size = kv_bytes(kind, facts)
    said = {"mib": f"{size / MIB:.0f}", "kind": kind.value, "conds": len(facts.conds)}
    if limit and size > limit:
        refused = Reason(ReasonCode.KV_OVER_LIMIT, **said, limit=float(f"{limit / GIB:.3g}"))
        return _TokenPlan(tokens, grid, None, None, 0, refused, (*notes, refused))
    if kind is not tokens.kv:
        notes.append(
            Reason(
                ReasonCode.KV_SMALLER,
                wanted=tokens.kv.value,
                kind=kind.value,
                mib=round(kv_bytes(tokens.kv, facts) / MIB),
                limit=round(limit / MIB),
            )
        )
    notes.append(Reason(ReasonCode.KV_MEMORY, **said))
    # The default bound is for what is known before; it turns no later conditioning away.
    conds = frozenset(cond.uuid for cond in facts.conds) if tokens.memory_limit else None
    announced = size if on_device else 0
    return _TokenPlan(tokens, grid, kind, conds, announced, None, tuple(notes))


def _fitting(kind: KVKind, limit: float, facts: HostFacts) -> KVKind:
    """The first kind from `kind` on to ever smaller ones that takes no more than `limit` bytes; the
    smallest that the device has where none does."""
    while kv_bytes(kind, facts) > limit:
        smaller = SMALLER.get(kind)
        if smaller is None or missing(smaller, facts.device_type) is not None:
            break
        kind = smaller
    return kind


def kv_bytes(kind: KVKind, facts: HostFacts) -> int:
    """Bytes of the keys and values that a run will keep, text and references included."""
    cost = facts.cost
    assert cost is not None
    text = max((cond.text_tokens for cond in facts.conds), default=0)
    text += cost.architecture.more_text
    text += -text % cost.multiple
    image = facts.image_tokens + -facts.image_tokens % cost.multiple
    batch = facts.shape[0]
    around = text + facts.audio_tokens
    rows = batch * sum(
        cost.kept_tokens(image, around + cond.reference_tokens) for cond in facts.conds
    )
    pieces = cost.image_attentions() * len(facts.conds) * batch
    return bytes_of(kind, rows, cost.kept_width, pieces, facts.element)


@dataclass(frozen=True)
class _AttentionPlan:
    sparsity: Sparsity | None = None
    dense_blocks: frozenset[int] = frozenset()
    bytes: int = 0
    note: Reason | None = None


def _attention(policies: Sequence[Policy], facts: HostFacts) -> _AttentionPlan:
    """Attention can be sparse in one way only: that of the policy that is about nothing else, or of
    the last. Where its differences to dense attention would take more than is allowed, none are
    kept, and means stand in."""
    needs = [p.requirements for p in policies if p.requirements.attention]
    if not needs or facts.cost is None or facts.architecture is None:
        return _AttentionPlan()
    need = next((n for n in reversed(needs) if n.attention_only), needs[-1])
    sparsity = need.attention
    assert sparsity is not None
    numbers = {*range(sparsity.dense_first)}
    numbers |= {*range(facts.blocks - sparsity.dense_last, facts.blocks)}
    if not sparsity.keeps_residual:
        return _AttentionPlan(sparsity, frozenset(numbers))
    rows = facts.shape[0] * len(facts.conds)
    size = residual_bytes(
        sparsity, facts.cost, facts.image_tokens, need.attention_density, rows, facts.element
    )
    said = {
        "mib": f"{size / MIB:.0f}",
        "kind": sparsity.compensation,
        "conds": len(facts.conds),
    }
    if sparsity.memory_limit and size > sparsity.memory_limit * GIB:
        note = Reason(ReasonCode.RESIDUAL_OVER_LIMIT, **said, limit=sparsity.memory_limit)
        return _AttentionPlan(replace(sparsity, compensation="means"), frozenset(numbers), 0, note)
    note = Reason(ReasonCode.RESIDUAL_MEMORY, **said)
    return _AttentionPlan(sparsity, frozenset(numbers), size, note)


def residual_bytes(
    sparsity: Sparsity, cost: CostModel, tokens: int, density: float, rows: int, element: int
) -> int:
    """Bytes of the differences to dense attention that are kept for pictures of `tokens` image
    tokens, and of the tiles that they were measured with."""
    whole = tokens // (PAIR * sparsity.tile) * PAIR * sparsity.tile
    points = 2 if sparsity.compensation == "predict" else 1
    attentions = cost.image_attentions(sparsity.dense_first, sparsity.dense_last)
    query_tiles = whole // (PAIR * sparsity.tile)
    kept = tiles_kept(density, tokens // sparsity.tile)
    numbers = query_tiles * kept * (cost.hidden // HEAD_WIDTH) * 4
    return (points * whole * cost.hidden * element + numbers) * attentions * rows


@dataclass(frozen=True)
class _FeaturePlan:
    spec: FeatureSpec | None = None
    bytes: int = 0
    notes: tuple[Reason, ...] = ()


def _features(
    policies: Sequence[Policy], facts: HostFacts, no_hooks: Reason | None
) -> _FeaturePlan:
    """Tokens that learned heads look at."""
    specs = [p.requirements.features for p in policies if p.requirements.features]
    if not specs:
        return _FeaturePlan()
    spec = specs[-1]
    why = facts.features_refused(spec) or no_hooks
    if why is not None:
        return _FeaturePlan(notes=(heads_blind(spec.kind, why),))
    each = spec.side**2 * 2 * spec.hidden
    batch = facts.shape[0]
    size = each * (batch * len(facts.conds) * facts.element + batch * 4)
    note = Reason(
        ReasonCode.FEATURES_MEMORY,
        mib=f"{size / MIB:.0f}",
        kind=spec.kind,
        conds=len(facts.conds),
    )
    return _FeaturePlan(spec, size, (note,))
