"""What a run will do, settled before it begins: from facts that are made by hand."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from rapid_core.architectures import LUMINA2, SD3
from rapid_core.cost import CostModel
from rapid_core.engine.kv import bytes_of, last
from rapid_core.engine.plan import GIB, KV_SHARE, CondFacts, HostFacts, plan_run
from rapid_core.reasons import ReasonCode
from rapid_core.techniques.region.policy import RegionPolicy
from rapid_core.techniques.sparse_attention.policy import SparsePolicy
from rapid_core.techniques.step_skip.schedule import SchedulePolicy
from rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from rapid_core.types import (
    FULL,
    Actor,
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

HIDDEN = 128
BLOCKS = 3
TOKENS = 256
TEXT = 10
SIGMAS = tuple(1 - i / 10 for i in range(10)) + (0.0,)
BATCH = 2
ROWS = BATCH * BLOCKS * ((TOKENS + TEXT) + (TOKENS + TEXT + 4))  # of all conds
PIECES = BATCH * BLOCKS * 2
SIZES = {kind: bytes_of(kind, ROWS, HIDDEN, PIECES, 2) for kind in KVKind}


class Blocks(torch.nn.Module):
    """As much of a model as its cost asks for: blocks over text and image."""

    hidden_size = HIDDEN

    def __init__(self):
        super().__init__()
        self.joint_blocks = torch.nn.ModuleList(torch.nn.Module() for _ in range(BLOCKS))


def facts(**known: Any) -> HostFacts:
    """A batch of two latents of 16 x 16 tokens in half precision, two conds, the negative with a
    reference of four tokens."""
    return HostFacts(
        **{
            "shape": (BATCH, 16, 32, 32),
            "sigmas": SIGMAS,
            "model_name": "MMDiT",
            "architecture": SD3,
            "cost": CostModel(Blocks(), SD3),
            "blocks": BLOCKS,
            "patch": 2,
            "image_tokens": TOKENS,
            "conds": (
                CondFacts(uuid="positive", text_tokens=TEXT),
                CondFacts(uuid="negative", text_tokens=TEXT - 3, reference_tokens=4),
            ),
            "element": 2,
            **known,
        }
    )


UNKNOWN = {"model_name": "Novelty", "architecture": None, "cost": None, "blocks": 0}


@dataclass(frozen=True, kw_only=True)
class Needing(Policy):
    """A policy that needs what it is told to."""

    technique: ClassVar[str] = "needing"

    needs: Requirements
    range: tuple[float, float] = (0.0, 1.0)

    @property
    def percents(self):
        return self.range

    @property
    def requirements(self):
        return self.needs

    def start(self, window, image=0):
        return Computing()

    def to_record(self):
        return {"technique": self.technique}


class Computing(Actor):
    def act(self, observation):
        return FULL


def region(kv: KVKind = KVKind.PREDICT, **settings: Any) -> RegionPolicy:
    return RegionPolicy(keep_ratio=0.5, kv=kv, **settings)


def sparse(compensation: str, **settings: Any) -> SparsePolicy:
    sparsity = Sparsity(tile=16, compensation=compensation, **settings)
    return SparsePolicy(density=0.25, sparsity=sparsity)


def notes_of(plan: Any, code: ReasonCode) -> list[dict]:
    """Parameters of the notes of a code."""
    return [note.params for note in plan.notes if note.code == code.value]


# Requirements, merged.


def test_without_policies_nothing_is_planned():
    plan = plan_run((), facts())
    assert plan.policies == () and plan.modes == frozenset()
    nothing = (plan.tokens, plan.grid, plan.kv, plan.attention, plan.features)
    assert nothing == (None,) * 5
    assert not plan.hooks and plan.memory == 0 and plan.notes == ()


def test_histories_are_announced_by_their_points():
    """Of the guided derivative, of each list's, the latest latent, and what a gap has moved it; for
    reuse residuals of the blocks, in the model's own precision."""
    latent = BATCH * 16 * 32 * 32 * 4
    assert plan_run((), facts(lists=2)).histories == 0
    plan = plan_run((SchedulePolicy(speedup=2.0),), facts(lists=2))
    assert plan.histories == (4 + 2 * 4 + 1 + 1) * latent and plan.memory == 0
    plan = plan_run((region(),), facts(lists=2))
    assert plan.histories == (3 + 2 * 2 + 1 + 1) * latent
    assert plan_run((region(),), facts(lists=1)).histories == plan.histories - 2 * latent
    reuse = ThresholdPolicy(threshold=0.1, mode=Mode.REUSE)
    plan = plan_run((reuse,), facts(lists=2))
    points = 1 + plan.prediction_order
    residuals = points * 2 * BATCH * TOKENS * HIDDEN * 2
    assert plan.reuses and plan.histories == (points + 1 + 2 * points + 1) * latent + residuals
    unknown = plan_run((reuse,), facts(lists=2, **UNKNOWN))  # whose blocks nobody knows
    assert unknown.histories == plan.histories - residuals


def test_requirements_of_all_policies_are_merged():
    tokens = TokenRequirements(reach=2.0, attention_mass=True)
    policies = (
        Needing(needs=Requirements(modes=frozenset((Mode.RUN, Mode.SKIP)), prediction_order=1)),
        Needing(needs=Requirements(modes=frozenset((Mode.RUN, Mode.REUSE)), history=4)),
        Needing(needs=Requirements(tokens=tokens)),
    )
    plan = plan_run(policies, facts(sampler_kind=SamplerKind.SEVERAL_EVALUATIONS))
    assert plan.policies == policies
    assert plan.modes == frozenset(Mode)
    assert (plan.prediction_order, plan.history, plan.reach) == (1, 4, 2.0)
    assert plan.hooks and plan.reuses and plan.tokens is tokens
    assert plan.mass_block == BLOCKS // 2
    assert plan.grid.size == (1, 16, 16)
    assert plan.family == "sd3" and not plan.euler
    assert (plan.batch, plan.shape, plan.sigmas) == (2, (2, 16, 32, 32), SIGMAS)


def test_predictions_have_no_reach_where_nobody_chooses_tokens():
    plan = plan_run((ThresholdPolicy(threshold=0.1),), facts())
    assert plan.reach is None and plan.grid is None and not plan.hooks
    assert plan.mass_block == -1


def test_windows_are_shares_of_the_schedule_as_sigmas():
    policies = (
        Needing(needs=Requirements(), range=(0.25, 0.75)),
        Needing(needs=Requirements()),
    )
    plan = plan_run(policies, facts(sigma_at=lambda percent: 10 * (1 - percent) ** 2))
    assert plan.windows == (Window(5.625, 0.625), Window(10.0, 0.0))


def test_notes_of_the_chain_come_first():
    given = Reason(ReasonCode.SET_TWICE, technique="region_adaptive")
    plan = plan_run((region(),), facts(notes=(given,)))
    assert plan.notes[0] == given and len(plan.notes) == 2


def test_the_last_advice_is_given():
    share = Reason(ReasonCode.ADVISE_SHARE)
    threshold = Reason(ReasonCode.ADVISE_THRESHOLD)
    policies = [Needing(needs=Requirements(no_savings_advice=a)) for a in (share, threshold, None)]
    advice = plan_run(policies, facts()).advice
    assert advice == Reason(ReasonCode.ALL_TOKENS_COMPUTED, advice=threshold)
    assert plan_run(policies[2:], facts()).advice is None


# What a model refuses.


def test_on_an_unknown_model_policies_that_choose_tokens_are_left_out():
    skipping = ThresholdPolicy(threshold=0.1)
    plan = plan_run((region(), skipping), facts(**UNKNOWN))
    assert plan.policies == (skipping,)
    assert plan.notes == (Reason(ReasonCode.UNKNOWN_TO_REGION, model="Novelty"),)
    assert (plan.tokens, plan.grid, plan.kv, plan.memory) == (None, None, None, 0)
    assert plan.no_hooks is None and plan.family == "Novelty (unverified)"


def test_on_an_unknown_model_blocks_cannot_be_changed():
    reusing = ThresholdPolicy(threshold=0.1, mode=Mode.REUSE)
    for policy in (reusing, sparse("predict")):
        plan = plan_run((policy,), facts(**UNKNOWN))
        assert plan.no_hooks == Reason(ReasonCode.BLOCKS_UNKNOWN, model="Novelty")
        assert not plan.hooks and not plan.reuses and plan.attention is None
        assert plan.no_tokens == plan.no_hooks


# Where nothing may be skipped.

ACCELERATE = SchedulePolicy(speedup=2.0)
REUSE = ThresholdPolicy(threshold=0.1)


def falling(steps: int) -> tuple[float, ...]:
    return tuple(1 - i / steps for i in range(steps + 1))


NOISY = {"sampler": "lcm", "sampler_kind": SamplerKind.ADDS_NOISE}
FEW = Reason(ReasonCode.FEW_STEPS, steps=6, few=6)
UNSAFE = [
    (NOISY, Reason(ReasonCode.SAMPLER_ADDS_NOISE, sampler="lcm")),
    (
        {"sampler": "dpm_fast", "sampler_sensitive": True},
        Reason(ReasonCode.SAMPLER_SENSITIVE, sampler="dpm_fast"),
    ),
    ({"sigmas": falling(1)}, Reason(ReasonCode.FEW_STEPS, steps=1, few=6)),
    ({"sigmas": falling(6)}, FEW),
    ({"sigmas": falling(6), **NOISY}, FEW),
    ({"sigmas": falling(20)[::-1]}, Reason(ReasonCode.SIGMAS_RISE)),
    ({"sigmas": (0.0, *falling(20), 0.0)}, Reason(ReasonCode.SIGMAS_RISE)),  # RES4LYF's resample
]


@pytest.mark.parametrize("known, why", UNSAFE)
@pytest.mark.parametrize("policy", [ACCELERATE, REUSE, replace(REUSE, mode=Mode.REUSE)])
def test_where_skipping_is_not_safe_policies_are_dropped_with_one_reason(policy, known, why):
    plan = plan_run((policy,), facts(**known))
    assert plan.policies == () and plan.notes == (why,)
    assert plan.modes == frozenset() and not plan.hooks
    even_so = replace(policy, safe=False)
    plan = plan_run((even_so,), facts(**known))
    assert plan.policies == (even_so,) and plan.notes == ()


@pytest.mark.parametrize("known, why", UNSAFE)
def test_what_skips_nothing_and_published_heads_go_on_where_skipping_is_not_safe(known, why):
    heads = Needing(needs=Requirements(modes=frozenset(Mode), decides_schedule=True))
    region_adaptive = region()
    plan = plan_run((ACCELERATE, region_adaptive, REUSE, heads), facts(**known))
    assert plan.policies == (region_adaptive, heads) and plan.tokens is not None
    assert plan.notes[0] == why and plan.notes.count(why) == 1
    assert why not in plan_run((region_adaptive, heads), facts(**known)).notes


@pytest.mark.parametrize(
    "known",
    [
        {"sigmas": falling(7)},
        {"sigmas": ()},
        {"sigmas": (1.0,)},
        {"sigmas": (*falling(9), 0.0)},
        *({"sampler_kind": k} for k in SamplerKind if k is not SamplerKind.ADDS_NOISE),
    ],
)
def test_elsewhere_they_act(known):
    plan = plan_run((ACCELERATE, REUSE), facts(**known))
    assert plan.policies == (ACCELERATE, REUSE) and plan.notes == ()


def test_the_plan_knows_what_kind_of_sampler_it_is_for():
    for kind in SamplerKind:
        plan = plan_run((), facts(sampler_kind=kind))
        assert plan.euler == (kind is SamplerKind.EULER)
    known = {kind: plan_run((), facts(sampler_kind=kind)).one_evaluation for kind in SamplerKind}
    assert [kind.name for kind in known if known[kind]] == ["EULER", "ONE_EVALUATION"]
    assert [kind.name for kind in known if known[kind] is None] == ["ADDS_NOISE", "UNKNOWN"]


def test_where_another_node_replaced_a_block_nothing_is_kept_of_it():
    refused = Reason(ReasonCode.BLOCK_REPLACED, block="double_block 1")
    known = facts(blocks_refused=refused)
    plan = plan_run((region(), sparse("predict")), known)
    assert plan.no_hooks == plan.no_tokens == refused
    assert not plan.hooks and plan.kv is None and plan.attention is None
    assert plan.memory == 0
    assert plan_run((ThresholdPolicy(threshold=0.1),), known).no_hooks is None


# Keys and values.


def test_text_and_references_are_counted_with_the_image():
    plan = plan_run((region(),), facts())
    assert (plan.kv, plan.memory) == (KVKind.PREDICT, SIZES[KVKind.PREDICT])
    assert SIZES[KVKind.PREDICT] == 4 * ROWS * HIDDEN * 2


def test_text_and_image_are_padded_as_the_model_pads_them():
    model = torch.nn.Module()
    model.dim, model.pad_tokens_multiple = HIDDEN, 32
    model.noise_refiner = torch.nn.ModuleList([torch.nn.Module()])
    model.layers = torch.nn.ModuleList([torch.nn.Module()])
    conds = (CondFacts(uuid="positive", text_tokens=33),)
    known = facts(
        architecture=LUMINA2,
        cost=CostModel(model, LUMINA2),
        image_tokens=250,
        conds=conds,
        blocks=2,
    )
    image, text = 256, 64
    plan = plan_run((region(KVKind.LAST_VALUE),), known)
    assert plan.memory == bytes_of(KVKind.LAST_VALUE, 2 * (2 * image + text), HIDDEN, 4, 2)


def test_what_keys_and_values_take_is_said():
    plan = plan_run((region(KVKind.EIGHT_BIT),), facts())
    size = SIZES[KVKind.EIGHT_BIT]
    assert notes_of(plan, ReasonCode.KV_MEMORY) == [
        {"mib": f"{size / 2**20:.0f}", "kind": "8 bit", "conds": 2}
    ]
    assert len(plan.notes) == 1


def test_of_two_policies_that_choose_tokens_the_last_says_how_they_are_kept():
    plan = plan_run((region(KVKind.LAST_VALUE), region(KVKind.PREDICT)), facts())
    assert plan.kv is KVKind.PREDICT and len(notes_of(plan, ReasonCode.KV_MEMORY)) == 1


def memory_for(size: float) -> int:
    """Bytes of a device whose share for keys and values is `size`."""
    return int(size / KV_SHARE)


@pytest.mark.parametrize("kept", [KVKind.PREDICT, KVKind.LAST_VALUE, KVKind.EIGHT_BIT])
def test_without_a_limit_the_first_kind_is_taken_that_is_within_the_default_bound(kept):
    plan = plan_run((region(),), facts(device_memory=memory_for(SIZES[kept])))
    assert (plan.kv, plan.memory, plan.no_tokens) == (kept, SIZES[kept], None)
    assert plan.kv_conds is None  # the bound is for what is known; it turns nobody away
    smaller = notes_of(plan, ReasonCode.KV_SMALLER)
    (said,) = notes_of(plan, ReasonCode.KV_MEMORY)
    assert said["kind"] == kept.value
    if kept is KVKind.PREDICT:
        assert smaller == []
    else:
        assert smaller == [
            {
                "wanted": "predict",
                "kind": kept.value,
                "mib": round(SIZES[KVKind.PREDICT] / 2**20),
                "limit": round(SIZES[kept] / 2**20),
            }
        ]


def test_where_no_kind_is_within_the_default_bound_no_tokens_are_chosen():
    limit = SIZES[KVKind.EIGHT_BIT] - 4
    plan = plan_run((region(),), facts(device_memory=memory_for(limit)))
    assert (plan.kv, plan.kv_conds, plan.memory) == (None, None, 0)
    assert plan.notes == (plan.no_tokens,)
    assert plan.no_tokens.code == ReasonCode.KV_OVER_LIMIT.value
    assert plan.no_tokens.params["kind"] == "8 bit"
    assert plan.no_tokens.params["limit"] == pytest.approx(limit / GIB, rel=0.01)
    # Evaluations are still skipped as a whole by the errors of tokens.
    assert plan.grid is not None and plan.tokens is not None and plan.hooks


@pytest.mark.parametrize("kind", [KVKind.HOST_MEMORY, KVKind.NONE])
def test_what_is_not_on_the_device_is_not_bounded_by_it_nor_announced(kind):
    plan = plan_run((region(kind),), facts(device_memory=memory_for(1000)))
    assert (plan.kv, plan.memory, plan.no_tokens) == (kind, 0, None)
    (said,) = notes_of(plan, ReasonCode.KV_MEMORY)
    assert said["mib"] == f"{SIZES[kind] / 2**20:.0f}" and len(plan.notes) == 1


def test_a_limit_that_was_set_holds_for_host_memory_too():
    limit = 0.99 * SIZES[KVKind.HOST_MEMORY] / GIB
    plan = plan_run((region(KVKind.HOST_MEMORY, memory_limit=limit),), facts())
    assert plan.no_tokens.code == ReasonCode.KV_OVER_LIMIT.value


def test_a_kind_that_the_device_lacks_is_not_fallen_back_to(monkeypatch):
    """Apple's devices have no 8-bit floats."""
    monkeypatch.setattr(last, "_has_float8", lambda device_type: device_type != "mps")
    small = facts(device_memory=memory_for(SIZES[KVKind.EIGHT_BIT]))
    assert plan_run((region(),), small).kv is KVKind.EIGHT_BIT
    plan = plan_run((region(),), replace(small, device_type="mps"))
    assert plan.kv is None and plan.no_tokens.params["kind"] == "last value"


def test_a_limit_that_was_set_counts_instead_of_the_default_bound():
    small = facts(device_memory=memory_for(1000))
    limit = SIZES[KVKind.PREDICT] / GIB
    plan = plan_run((region(memory_limit=limit),), small)
    assert plan.kv is KVKind.PREDICT and plan.kv_conds == {"positive", "negative"}
    assert notes_of(plan, ReasonCode.KV_SMALLER) == []
    roomy = facts(device_memory=memory_for(GIB))
    plan = plan_run((region(memory_limit=0.99 * limit),), roomy)
    assert plan.kv is None and plan.no_tokens.params["kind"] == "predict"  # as it was asked for
    assert plan.no_tokens.params["limit"] == pytest.approx(0.99 * limit, rel=0.01)


def test_a_tiny_limit_is_said_as_it_is():
    plan = plan_run((region(memory_limit=1e-6),), facts())
    assert plan.no_tokens.params["limit"] == 1e-6


@pytest.mark.parametrize(("mask", "said"), [((40, 30), "40 x 30"), ((32, 32), None)])
def test_a_mask_of_another_size_is_scaled_with_a_note(mask, said):
    plan = plan_run((region(focus=torch.zeros(1, *mask)),), facts())
    expected = [] if said is None else [{"mask": said, "latent": "32 x 32"}]
    assert notes_of(plan, ReasonCode.MASK_SCALED) == expected


# Sparse attention.


@pytest.mark.parametrize("compensation", ["none", "means"])
def test_without_differences_sparse_attention_takes_nothing(compensation):
    plan = plan_run((sparse(compensation, dense_first=1, dense_last=1),), facts())
    assert plan.attention.compensation == compensation and not plan.keeps_residual
    assert plan.dense_blocks == {0, BLOCKS - 1} and plan.memory == 0
    assert plan.notes == () and plan.residual_note is None


@pytest.mark.parametrize(("compensation", "points"), [("last value", 1), ("predict", 2)])
def test_differences_to_dense_attention_are_counted(compensation, points):
    plan = plan_run((sparse(compensation, dense_first=1),), facts())
    tiles = TOKENS // 16
    chosen = (tiles // 2) * (tiles // 4) * (HIDDEN // 64) * 4  # by each tile of queries and head
    values = points * TOKENS * HIDDEN * 2
    assert plan.memory == (values + chosen) * (BLOCKS - 1) * BATCH * 2
    assert plan.residual_note.code == ReasonCode.RESIDUAL_MEMORY.value
    assert plan.residual_note.params["kind"] == compensation and plan.keeps_residual
    assert plan.notes == ()  # said after the run, where attention was sparse


def test_differences_over_the_limit_are_not_kept_and_means_stand_in():
    policy = sparse("predict", memory_limit=1e-6)
    plan = plan_run((policy,), facts())
    assert plan.attention == replace(policy.sparsity, compensation="means")
    assert plan.policies == (replace(policy, sparsity=plan.attention),)
    assert plan.memory == 0 and not plan.keeps_residual
    assert plan.residual_note.code == ReasonCode.RESIDUAL_OVER_LIMIT.value
    assert plan.residual_note.params["limit"] == 1e-6


def test_the_policy_about_attention_alone_says_how_it_is_made_sparse():
    alone = sparse("means")
    other = Needing(
        needs=Requirements(
            modes=frozenset(Mode), attention=Sparsity(compensation="none"), logits=True
        )
    )
    for policies in ((alone, other), (other, alone)):
        assert plan_run(policies, facts()).attention == alone.sparsity
    assert plan_run((other,), facts()).attention.compensation == "none"


def test_memory_is_of_everything_together():
    both = plan_run((region(), sparse("predict")), facts())
    parts = [plan_run((policy,), facts()).memory for policy in (region(), sparse("predict"))]
    assert both.memory == sum(parts) and min(parts) > 0


# Tokens that heads look at.


SPEC = FeatureSpec("RAPID3", "sd3", HIDDEN, 16)
LOOKING = Needing(needs=Requirements(logits=True, features=SPEC))


def test_tokens_for_heads_are_counted_and_said():
    plan = plan_run((LOOKING,), facts())
    each = 16 * 16 * 2 * HIDDEN
    assert plan.features == SPEC and plan.hooks
    assert plan.memory == each * (BATCH * 2 * 2 + BATCH * 4)
    assert notes_of(plan, ReasonCode.FEATURES_MEMORY) == [
        {"mib": f"{plan.memory / 2**20:.0f}", "kind": "RAPID3", "conds": 2}
    ]


def test_heads_that_cannot_look_are_blind_with_the_reason():
    why = Reason(ReasonCode.HEADS_OTHER_FAMILY, family="sd3", model="flux")
    refused = facts(features_refused=lambda spec: why)
    unhooked = Reason(ReasonCode.BLOCK_REPLACED, block="double_block 1")
    for known, reason in ((refused, why), (facts(blocks_refused=unhooked), unhooked)):
        plan = plan_run((LOOKING,), known)
        assert plan.features is None and plan.memory == 0
        assert plan.notes == (Reason(ReasonCode.HEADS_BLIND, kind="RAPID3", why=reason),)
    on_unknown = plan_run((LOOKING,), facts(**UNKNOWN))
    assert [note.params["why"].code for note in on_unknown.notes] == ["blocks_unknown"]
