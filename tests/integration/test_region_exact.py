"""Region-adaptive sampling in the real ComfyUI, exactness: a subset of the tokens at the same latent
gives what all of them give, on every family, and costs what is said."""

import pytest
import torch

from evaluation.probes import choosing, falsifier, probe, run_twice, some_tokens
from rapid_testing.families import BUILT, FAMILIES, FROM_FILES
from rapid_testing.flops import flops_of
from rapid_testing.sampling import make_conditioning

KINDS = FROM_FILES + BUILT
CLOSE = 1e-5  # of the largest value


@pytest.fixture
def some(pack_module):
    """some(model, share, kv_cache, uneven): a model that computes random tokens of every second
    evaluation."""

    def patch(model, share, kv_cache="last value", uneven=0):
        return choosing(pack_module, model, some_tokens(share, uneven=uneven), kv_cache)

    return patch


def twice(model, latent, positive=None, cfg=3.0, **settings):
    """Both evaluations of `run_twice`, with two prompts."""
    positive = make_conditioning(0) if positive is None else positive
    return run_twice(model, latent, positive, make_conditioning(1), cfg, **settings)


def difference(full, other):
    """Largest difference, as a share of the largest value."""
    return ((full - other).abs().max() / full.abs().max()).item()


def assert_partial(record):
    """The second evaluation computed some tokens."""
    assert 0 < record.evaluations[1].token_share[0] < 1, record.evaluations[1].reasons


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_any_subset_at_the_same_latent_gives_what_all_tokens_give(
    kind, share, family, some, record_of, pack_module
):
    model, latent = family(kind)
    patched = some(model, share)
    full, partial = twice(patched, (2, *latent))
    assert_partial(record_of(patched))
    assert difference(full, partial) < CLOSE
    _, wrong = twice(patched, (2, *latent), falsify=falsifier(pack_module))
    assert difference(full, wrong) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_any_subset_of_an_odd_size_gives_what_all_tokens_give(kind, family, some, record_of):
    model, latent = family(kind)
    patched = some(model, 0.4)
    size = (10, 18 if kind == "hunyuan_video" else 17)  # that model pads nothing
    full, partial = twice(patched, (2, *latent[:-2], *size))
    assert_partial(record_of(patched))
    assert difference(full, partial) < CLOSE


@pytest.mark.parametrize("kv_cache", ["last value", "predict"])
def test_a_whole_area_keeps_its_conds_apart(tiny_sd3, some, record_of, kv_cache):
    """The host gives the negative list a copy of it under the same uuid, and joins both into one
    call."""
    patched = some(tiny_sd3, 0.4, kv_cache)
    positive = make_conditioning(0, area=(16, 16, 0, 0))
    full, partial = twice(patched, (2, 16, 16, 16), positive)
    assert_partial(record_of(patched))
    assert difference(full, partial) < CLOSE


@pytest.mark.parametrize("kv_cache", ["last value", "predict"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["flux", "lumina2", "wan", "lumina_next"])
def test_any_subset_gives_what_all_tokens_give_in_half_precision(
    kind, dtype, kv_cache, some, record_of, pack_module
):
    model = FAMILIES[kind].build(dtype=dtype)
    latent = (1, *FAMILIES[kind].latent)
    patched = some(model, 0.5, kv_cache)
    full, partial = twice(patched, latent, cfg=1.0)
    assert model.model.get_dtype_inference() == dtype
    assert_partial(record_of(patched))
    noise = torch.finfo(dtype).eps * full.abs().mean()  # of one rounding
    assert (full - partial).abs().mean() <= noise
    _, wrong = twice(patched, latent, cfg=1.0, falsify=falsifier(pack_module))
    assert (full - wrong).abs().mean() > 2 * noise


def test_frames_with_sigmas_of_their_own_keep_them(family, some, record_of):
    model, latent = family("wan22")
    mask = torch.ones(2, 1, *latent[1:])
    mask[:, :, 0] = 0.0  # the first frame is given
    mask[:, :, 1] = 0.5  # the second is half noised
    patched = some(model, 0.4)
    full, partial = twice(patched, (2, *latent), mask=mask)
    assert_partial(record_of(patched))
    assert difference(full, partial) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_reusing_the_residual_at_the_same_latent_gives_what_the_blocks_give(
    kind, family, pack_module, record_of
):
    model, latent = family(kind)
    types = pack_module("rapid_core.types")

    def second(observation):
        return types.Action(types.Mode.REUSE if observation.index % 2 else types.Mode.RUN)

    policy = probe(types, second, modes=frozenset(types.Mode))
    patched = pack_module("rapid_core.comfy.chain").attach(model, policy)
    full, reused = twice(patched, (2, *latent))
    first, then = record_of(patched).evaluations
    assert then.modes == ("reuse", "reuse"), then.reasons
    assert difference(full, reused) < CLOSE
    assert then.cost[0] < 0.7 * first.cost[0]


@pytest.mark.parametrize(
    ("kind", "kv_cache"), [*((kind, "last value") for kind in KINDS), ("lumina2", "none")]
)
def test_the_cost_of_a_subset_is_what_torch_counts(kind, kv_cache, family, some, record_of):
    model, latent = family(kind)
    for share in (0.5, 0.25):
        patched = some(model, share, kv_cache)
        counted = flops_of(twice, patched, (2, *latent))
        assert record_of(patched).totals["flops"] == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("kind", ["flux", "qwen_image"])
def test_reference_tokens_are_counted(kind, family, some, record_of):
    model, latent = family(kind)
    positive = make_conditioning(0, reference_latents=[torch.randn(1, *latent)])
    patched = some(model, 0.5)
    counted = flops_of(twice, patched, (2, *latent), positive)
    record = record_of(patched)
    assert record.evaluations[1].token_share[0] < 1
    assert record.totals["flops"] == pytest.approx(counted, rel=0.02)


ERRORS = {"8 bit": 0.02, "host memory": CLOSE, "predict": CLOSE, "none": 0.6}


@pytest.mark.parametrize("kv_cache", ERRORS)
@pytest.mark.parametrize(
    ("kind", "uneven"),
    [
        ("flux", 0),
        ("flux", 4),
        ("sd35", 0),
        ("sd35", 4),
        ("wan", 0),
        ("lumina2", 0),
        ("lumina_next", 4),
        ("qwen_image", 0),
    ],
)
def test_other_caches_run_and_come_near(kind, uneven, kv_cache, family, some):
    """Also where images of the batch compute different numbers of tokens, so that the batch is
    split."""
    model, latent = family(kind)
    full, partial = twice(some(model, 0.5, kv_cache, uneven), (2, *latent))
    error = ((full - partial).abs().mean() / full.abs().mean()).item()
    assert error < ERRORS[kv_cache]
    assert torch.isfinite(partial).all()


def test_control_residuals_follow_their_tokens(tiny_model, some):
    """ControlNet residuals of every block: a subset at the same latent still gives what all tokens
    give."""
    from comfy.patcher_extension import WrappersMP

    def controlled(
        executor,
        x,
        t,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options={},  # noqa: B006
        **extra,
    ):
        tokens = x.shape[-1] * x.shape[-2] // 4
        generator = torch.Generator().manual_seed(5)
        residuals = [torch.randn(x.shape[0], tokens, 128, generator=generator) for _ in range(4)]
        lists = {"input": residuals[:2], "output": residuals[2:]}
        return executor(x, t, c_concat, c_crossattn, lists, transformer_options, **extra)

    model = tiny_model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "control", controlled)
    full, partial = twice(some(model, 0.5), (2, 16, 16, 24), cfg=1.0)
    plain, _ = twice(some(tiny_model, 0.5), (2, 16, 16, 24), cfg=1.0)
    assert difference(full, partial) < CLOSE
    assert difference(full, plain) > 1e-2


@pytest.mark.parametrize("kind", ["flux", "qwen_image"])
def test_reference_latents_are_always_computed(kind, family, some, record_of):
    model, latent = family(kind)
    reference = torch.randn(1, *latent)[..., :8, :8]
    patched = some(model, 0.5)
    positive = make_conditioning(0, reference_latents=[reference])
    full, partial = twice(patched, (1, *latent), positive)
    assert_partial(record_of(patched))
    assert difference(full, partial) < CLOSE
    without, _ = twice(patched, (1, *latent))
    assert (full - without).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["qwen_image", "hunyuan_video", "lumina_next"])
def test_text_masks_are_kept(kind, family, some, record_of):
    model, latent = family(kind)
    mask = torch.ones(1, 16, dtype=torch.long)
    mask[:, 9:] = 0
    patched = some(model, 0.5)
    full, partial = twice(patched, (1, *latent), make_conditioning(0, attention_mask=mask))
    assert_partial(record_of(patched))
    assert difference(full, partial) < CLOSE
    other, _ = twice(patched, (1, *latent))
    assert difference(full, other) > 1e-3
