"""Blocks and tokens of the families that are built from the host's tiny classes: hooks that compute
everything change nothing, and what is computed in part or passed over is exact."""

from math import prod

import pytest
import torch

from evaluation.host_models import TINY
from evaluation.probes import choosing, falsifier, kept_tensors, probe, run_twice, some_tokens
from rapid_testing.flops import flops_of
from rapid_testing.records import codes

pytestmark = pytest.mark.main_host

CLOSE = 1e-5  # of the largest value

# Classes by what runs in part: some tokens, or the blocks as a whole only.
TOKENS = (
    "WAN21_Vace",
    "WAN21_Camera",
    "WAN22_S2V",
    "WAN21_HuMo",
    "WAN22_Animate",
    "WAN21_SCAIL",
    "WAN22_WanDancer",
    "WAN21_CausalAR_T2V",
    "Kandinsky5",
    "Kandinsky5Image",
    "Krea2",
    "Anima",
    "CosmosI2VPredict2",
    "AuraFlow",
    "Lens",
    "JoyImage",
    "MageFlow",
    "ZImagePixelSpace",
    "LTXV",
    "MiniMaxH3",
)
WHOLE = ("ChromaRadiance", "LTXAV")
ALL = TOKENS + WHOLE
# Not counted: attentions of the sound, what comes before the run, and products of a patch's own
# weights; a larger part of a tiny model than of another.
COUNTED = {"LTXAV": 0.12, "MiniMaxH3": 0.12, "ChromaRadiance": 0.25}


def _noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


# What conditionings of Wan's classes may hold: with the first ones some tokens can be computed.
ADDED = {
    "a pose": ("WAN21_SCAIL", lambda: {"pose_video_latent": _noise(1, 16, 3, 8, 12)}),
    "a pose of the first frames": (
        "WAN22_Animate",
        lambda: {"pose_video_latent": _noise(1, 16, 2, 8, 12)},
    ),
    "two contexts": (
        "WAN21_Vace",
        lambda: {
            "vace_frames": [_noise(1, 32, 3, 8, 12), _noise(1, 32, 3, 8, 12) * 2],
            "vace_mask": [torch.ones(1, 64, 3, 8, 12)] * 2,
            "vace_strength": [1.0, 0.5],
        },
    ),
}
BY_PLACE = {
    "sound within blocks": ("WAN21_HuMo", lambda: {"audio_embed": _noise(1, 3, 8, 5, 1280)}),
    "sound between blocks": ("WAN22_S2V", lambda: {"audio_embed": _noise(1, 25, 1024, 12)}),
}


@pytest.fixture(scope="session")
def built(comfy_host):
    """built(name): a clone of the tiny model of a class of the host."""
    models = {}

    def get(name):
        if name not in models:
            models[name] = TINY[name].model.build()
        return models[name].clone()

    return get


@pytest.fixture
def attach(pack_module):
    """attach(model, act, **needs): the model with a policy that answers act(observation)."""
    types = pack_module("rapid_core.types")
    put = pack_module("rapid_core.comfy.chain").attach

    def patch(model, act, **needs):
        return put(model, probe(types, act, **needs))

    return patch


def twice(model, name, cfg=3.0, size=None, given=None, **settings):
    tiny = TINY[name].model
    latent = tiny.latent if size is None else (*tiny.latent[:-2], *size)
    positive, negative = ([[text, {**more, **(given or {})}]] for text, more in prompts(tiny))
    return run_twice(
        model,
        (tiny.images, *latent),
        positive,
        negative,
        cfg,
        others=tiny.others,
        **settings,
    )


def prompts(tiny):
    """Two prompts, as (text, what else is in the conditioning)."""
    return [tiny.conditioning(seed)[0] for seed in range(2)]


def difference(full, other):
    """Largest difference, as a share of the largest value."""
    return ((full - other).abs().max() / full.abs().max()).item()


def one_call_each(monkeypatch):
    """Let the host call the model for one conditioning at a time."""
    import comfy.samplers

    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)


@pytest.mark.parametrize("name", ALL)
def test_hooks_that_compute_everything_change_nothing(name, built, attach, pack_module):
    types = pack_module("rapid_core.types")
    tokens = None if name in WHOLE else types.TokenRequirements()
    patched = attach(
        built(name),
        lambda observation: types.FULL,
        modes=frozenset(types.Mode),
        tokens=tokens,
        attention=types.Sparsity("gather", tile=16),
    )
    plain, again = twice(built(name), name)
    hooked, second = twice(patched, name)
    assert torch.equal(plain, hooked) and torch.equal(again, second)


@pytest.mark.parametrize("calls", ["joined", "split"])
@pytest.mark.parametrize("name", TOKENS)
def test_any_subset_gives_what_all_tokens_give(
    name, calls, built, record_of, pack_module, monkeypatch
):
    if calls == "split":
        one_call_each(monkeypatch)
    patched = choosing(pack_module, built(name), some_tokens(0.4))
    full, partial = twice(patched, name)
    evaluation = record_of(patched).evaluations[1]
    assert 0 < evaluation.token_share[0] < 1, evaluation.reasons
    assert difference(full, partial) < CLOSE
    _, wrong = twice(patched, name, falsify=falsifier(pack_module))
    assert difference(full, wrong) > 1e-3


def test_sound_is_computed_with_any_subset_of_the_video(built, record_of, pack_module):
    tiny = TINY["MiniMaxH3"].model
    patched = choosing(pack_module, built("MiniMaxH3"), some_tokens(0.4))
    full, wrong = twice(patched, "MiniMaxH3", falsify=falsifier(pack_module))
    assert 0 < record_of(patched).evaluations[1].token_share[0] < 1
    sound = slice(prod(tiny.latent), None)
    changed = full[..., sound] != wrong[..., sound]  # by keys of the video that are wrong
    assert changed.float().mean() > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "per-token error", "keep_ratio": 0.75, "error_threshold": 2.0},
        {"preset": "custom", "inactive": "interpolate", "kv_cache": "8 bit"},
        {"preset": "custom", "metric": "l2", "kv_cache": "predict"},
        {"preset": "custom", "metric": "attention", "kv_cache": "last value"},
        {"preset": "paper"},
    ],
)
def test_region_adaptive_goes_through_a_run_of_video_and_sound(
    settings, built, record_of, comfy_host, pack
):
    given = {"keep_ratio": 0.5, "error_threshold": 0.0, **settings}
    (patched,) = comfy_host.run_node("RAPID_RegionAdaptive", model=built("MiniMaxH3"), **given)
    parts = TINY["MiniMaxH3"].model.sample(patched, steps=12)
    assert all(part.isfinite().all() for part in parts)
    record = record_of(patched)
    assert record.grid == (2, 6, 8)
    # On random weights the errors of all tokens come to the threshold together.
    done = "skipped" if settings["preset"] == "per-token error" else "partial"
    assert record.totals[done] > 0, record.text()


@pytest.mark.parametrize("name", ["Krea2", "Lumina2"])
def test_keys_that_heads_share_are_kept_once(name, built, record_of, pack_module):
    run_of = pack_module("rapid_core.comfy.bind").run_of
    patched = choosing(pack_module, built(name), some_tokens(0.4))
    seen = []

    def look(options):
        bound = run_of(options)
        seen.extend(tensor.shape[1] for tensor in kept_tensors(bound.batched.store))
        assert bound.batched.store.bytes == bound.run.plan.memory

    full, partial = twice(patched, name, falsify=look)
    assert set(seen) == {1}  # of two heads of queries
    assert difference(full, partial) < CLOSE


@pytest.mark.parametrize("name", ["WAN21_HuMo", "Krea2", "Anima", "JoyImage"])
def test_any_subset_of_an_odd_size_gives_what_all_tokens_give(name, built, record_of, pack_module):
    patched = choosing(pack_module, built(name), some_tokens(0.4))
    full, partial = twice(patched, name, size=(10, 17))
    assert 0 < record_of(patched).evaluations[1].token_share[0] < 1
    assert difference(full, partial) < CLOSE


@pytest.mark.parametrize("calls", ["joined", "split"])
@pytest.mark.parametrize("name", ALL)
def test_reusing_the_residual_gives_what_the_blocks_give(
    name, calls, built, attach, record_of, pack_module, monkeypatch
):
    if calls == "split":
        one_call_each(monkeypatch)
    types = pack_module("rapid_core.types")

    def second(observation):
        return types.Action(types.Mode.REUSE if observation.index % 2 else types.Mode.RUN)

    patched = attach(built(name), second, modes=frozenset(types.Mode))
    full, reused = twice(patched, name)
    first, then = record_of(patched).evaluations
    assert set(then.modes) == {"reuse"}, then.reasons
    assert difference(full, reused) < CLOSE
    assert then.cost[0] < 0.7 * first.cost[0]


@pytest.mark.parametrize("what", [*ADDED, *BY_PLACE])
def test_blocks_are_reused_with_what_conditionings_of_wan_may_hold(
    what, built, attach, record_of, pack_module
):
    types = pack_module("rapid_core.types")
    name, make = {**ADDED, **BY_PLACE}[what]

    def second(observation):
        return types.Action(types.Mode.REUSE if observation.index % 2 else types.Mode.RUN)

    patched = attach(built(name), second, modes=frozenset(types.Mode))
    full, reused = twice(patched, name, given=make())
    plain, _ = twice(built(name), name, given=make())
    without, _ = twice(built(name), name)
    assert set(record_of(patched).evaluations[1].modes) == {"reuse"}
    assert torch.equal(full, plain) and difference(full, without) > 1e-3
    assert difference(full, reused) < CLOSE


@pytest.mark.parametrize("what", ADDED)
def test_some_tokens_are_exact_with_what_conditionings_of_wan_may_hold(
    what, built, record_of, pack_module
):
    name, make = ADDED[what]
    patched = choosing(pack_module, built(name), some_tokens(0.4))
    full, partial = twice(patched, name, given=make())
    evaluation = record_of(patched).evaluations[1]
    assert 0 < evaluation.token_share[0] < 1, evaluation.reasons
    assert difference(full, partial) < CLOSE


@pytest.mark.parametrize("what", BY_PLACE)
def test_all_tokens_are_computed_where_something_addresses_them_by_their_place(
    what, built, record_of, pack_module
):
    name, make = BY_PLACE[what]
    patched = choosing(pack_module, built(name), some_tokens(0.4))
    full, again = twice(patched, name, given=make())
    assert torch.equal(full, again) and "cond_given" in codes(record_of(patched))


@pytest.mark.parametrize("less", [0, 1])
@pytest.mark.parametrize("name", ALL)
def test_sparse_attention_with_all_tiles_is_dense_and_with_one_less_it_is_not(
    name, less, built, attach, record_of, pack_module, monkeypatch
):
    types = pack_module("rapid_core.types")
    attention = pack_module("rapid_core.engine.sparse.attention")
    monkeypatch.setattr(attention.SparseAttention, "_unfit", lambda *args: None)
    monkeypatch.setattr(attention, "tiles_kept", lambda density, tiles: tiles - less)

    def second(observation):
        return types.Action(density=0.5 if observation.index % 2 else 1.0)

    patched = attach(built(name), second, attention=types.Sparsity("gather", tile=16))
    dense, thin = twice(patched, name)
    evaluation = record_of(patched).evaluations[1]
    assert set(evaluation.density) == {0.5} and not evaluation.reasons
    assert (difference(dense, thin) < CLOSE) == (less == 0)


@pytest.mark.parametrize("name", ALL)
def test_the_cost_is_what_torch_counts(name, built, attach, record_of, pack_module):
    types = pack_module("rapid_core.types")
    patched = attach(built(name), lambda observation: types.FULL, modes=frozenset(types.Mode))
    counted = flops_of(twice, patched, name)
    expected = pytest.approx(counted, rel=COUNTED.get(name, 0.05))
    assert record_of(patched).totals["flops"] == expected


@pytest.mark.parametrize("name", WHOLE)
def test_region_adaptive_says_why_all_tokens_are_computed(name, built, comfy_host, record_of):
    values = {"preset": "custom", "keep_ratio": 0.5, "error_threshold": 0.0}
    schema = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_RegionAdaptive"].GET_SCHEMA()
    defaults = {
        slot.id: slot.default
        for slot in schema.inputs
        if getattr(slot, "default", None) is not None
    }
    (patched,) = comfy_host.run_node(
        "RAPID_RegionAdaptive", model=built(name), **{**defaults, **values}
    )
    tiny = TINY[name].model
    full = tiny.sample(built(name), steps=3)
    parts = tiny.sample(patched, steps=3)
    assert all(map(torch.equal, full, parts))
    assert codes(record_of(patched)) & {"tokens_mixed", "tokens_with_sound"}


def test_every_form_that_a_family_names_is_known(pack_module):
    forms = pack_module("rapid_core.comfy.block_forms")
    for architecture in pack_module("rapid_core.architectures").ALL:
        for group in architecture.groups:
            assert group.form in (forms.HOOKED if group.name else forms.PATCHED)


@pytest.mark.parametrize("node", ["reuse", "region", "sparse"])
@pytest.mark.parametrize("name", ["LTXV", "Krea2"])
def test_blocks_that_a_newer_host_calls_in_another_way_are_left_alone(
    name, node, built, patched, record_of, pack_module, monkeypatch
):
    forms = pack_module("rapid_core.comfy.block_forms")

    def unlike(*given):
        raise KeyError("x")

    monkeypatch.setitem(forms.HOOKED, "ltxv", unlike)
    monkeypatch.setitem(forms.PATCHED, "krea2", unlike)
    on_it = patched(built(name), node)
    tiny = TINY[name].model
    (full,), (drawn,) = tiny.sample(built(name), steps=8), tiny.sample(on_it, steps=8)
    assert torch.equal(full, drawn)
    record = record_of(on_it)
    assert record.totals["reused"] == record.totals["partial"] == 0
    assert "blocks_unread" in codes(record)


@pytest.mark.parametrize("name", ["Krea2", "Anima", "WAN21_Vace"])
def test_object_patches_are_gone_where_every_node_is_off(name, built, comfy_host):
    schema = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_CacheReuse"].GET_SCHEMA()
    defaults = {
        slot.id: slot.default
        for slot in schema.inputs
        if getattr(slot, "default", None) is not None
    }
    model = built(name)
    (off,) = comfy_host.run_node(
        "RAPID_CacheReuse", model=model, **{**defaults, "reuse_threshold": 0.0}
    )
    assert not off.object_patches and not off.wrappers
