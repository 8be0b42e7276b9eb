"""RAPID Region Adaptive in the real ComfyUI, whole runs: settings, presets, samplers, masks, and
other things on the same model."""

import itertools

import pytest
import torch

from rapid_testing.families import FAMILIES
from rapid_testing.records import the_note
from rapid_testing.sampling import make_conditioning, sample

# Settings by which only the error estimates of tokens decide.
BY_ERROR = {"keep_ratio": 0.8, "warm_up": 0.0, "tail": 0.0, "refresh_interval": 0}


@pytest.fixture(scope="module")
def unpack(pack_module):
    """rapid_core.record.unpack."""
    return pack_module("rapid_core.record").unpack


def ran_in_part(record, unpack):
    """Numbers of the first image's tokens, of every evaluation on some of them."""
    return [unpack(e.tokens[0]) for e in record.evaluations if e.tokens[0]]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_every_token_may_be_computed_when_its_own_error_asks(tiny_sd3, region, record_of, sampler):
    """error_threshold: each image of a batch computes as many tokens as are over it, none or all of
    them."""
    settings = {
        "steps": 14,
        "cfg": 2.0,
        "sampler": sampler,
        "latent": torch.zeros(2, 16, 16, 24),
    }
    # Tokens of random weights are alike, and most would be computed at once: a mask tells some apart.
    painted = torch.zeros(1, 16, 24)
    painted[..., :9] = 1.0
    by_error = {**BY_ERROR, "keep_ratio": 0.95, "mask": painted}
    patched = region(tiny_sd3, error_threshold=4.0, **by_error)
    result = sample(patched, **settings)
    record = record_of(patched)
    assert torch.isfinite(result).all() and record.totals["partial"] > 0
    assert len({e.token_share for e in record.evaluations}) > 2, record.text()
    assert torch.equal(result, sample(patched, **settings))
    lenient = region(tiny_sd3, error_threshold=10.0, **by_error)
    sample(lenient, **settings)
    totals = record_of(lenient).totals
    assert totals["skipped"] > 0
    assert totals["flops"] < record.totals["flops"]


def test_ratio_one_leaves_the_model_untouched(tiny_model, region):
    for preset in ("per-token error", "custom", "paper"):
        for threshold in (0.0, 0.04):  # in custom the page sends one, too
            settings = {"preset": preset, "error_threshold": threshold}
            assert region(tiny_model, keep_ratio=1.0, **settings) is tiny_model
    assert region(tiny_model, preset="per-token error", error_threshold=0.0) is tiny_model


def test_the_preset_per_token_error_has_a_schedule_of_its_own(tiny_sd3, region):
    latent = torch.zeros(1, 16, 16, 24)
    preset = region(tiny_sd3, keep_ratio=0.75, preset="per-token error", error_threshold=1.5)
    schedule = {"warm_up": 0.0, "tail": 0.03, "refresh_interval": 0}
    same = region(tiny_sd3, keep_ratio=0.75, error_threshold=1.5, **schedule)
    assert torch.equal(*(sample(m, steps=14, cfg=2.0, latent=latent) for m in (preset, same)))


def test_warm_up_refresh_and_tail_compute_all_tokens(tiny_model, region, record_of):
    patched = region(tiny_model)
    sample(patched, steps=10, cfg=2.0)
    assert record_of(patched).strip(0) == "##+++#+++#"


SAMPLERS = ["euler", "heun", "heunpp2", "dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_works(tiny_model, region, record_of, sampler):
    patched = region(tiny_model)
    result = sample(patched, steps=10, sampler=sampler)
    record = record_of(patched)
    assert torch.isfinite(result).all()
    assert record.totals["partial"] > 0
    assert record.totals["computed"] == record.totals["evaluations"]


@pytest.mark.parametrize("metric", ["std", "l2", "change", "attention", "random", "rounds"])
@pytest.mark.parametrize("inactive", ["last value", "predict", "interpolate"])
def test_metrics_and_predictions_run_on_batches_and_odd_sizes(
    tiny_sd3, region, record_of, metric, inactive
):
    patched = region(tiny_sd3, metric=metric, inactive=inactive, keep_ratio=0.3)
    result = sample(patched, steps=8, cfg=2.0, latent=torch.zeros(3, 16, 15, 21))
    assert torch.isfinite(result).all()
    record = record_of(patched)
    assert record.totals["partial"] > 0
    if metric == "random":  # each image of the batch has its own tokens
        assert len(set(record.evaluations[3].tokens)) == 3


@pytest.mark.parametrize("kind", ["flux", "flux with a reference", "z_image"])
def test_received_attention_is_what_the_images_queries_give(
    kind, family, region, pack_module, monkeypatch
):
    subset = pack_module("rapid_core.comfy.token_subset")
    received_mass = subset.received_mass
    seen = []

    def watched(*arguments):
        seen.append((arguments, received_mass(*arguments)))
        return seen[-1][1]

    monkeypatch.setattr(subset, "received_mass", watched)
    model, latent = family(kind.split()[0])
    extra = {}
    if "reference" in kind:
        extra = {"reference_latents": [torch.randn(1, *latent)[..., :8, :8]]}
    sample(
        region(model, metric="attention"),
        steps=3,
        latent=torch.zeros(1, *latent),
        positive=make_conditioning(0, **extra),
    )
    (q, k, axis, heads, asking), mass = seen[0]
    number = latent[-1] * latent[-2] // 4
    assert (asking.start, asking.stop - asking.start) == (32 if kind == "z_image" else 16, number)
    q, k = (t if axis == 2 else t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k))
    weights = (q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    asked = weights[:, :, asking][:, :, :: max(1, number // 64)]
    assert torch.allclose(mass, asked.mean((1, 2)), atol=1e-6)


# Masks.


def test_tokens_that_an_inpaint_mask_keeps_are_not_computed_between_refreshes(
    tiny_model, region, record_of, unpack
):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :] = 1
    patched = region(tiny_model)
    sample(patched, steps=10, latent=torch.randn(1, 16, 16, 16), noise_mask=mask)
    ran = ran_in_part(record_of(patched), unpack)
    assert ran and all(max(tokens) < 32 for tokens in ran)
    assert all(len(tokens) == 16 for tokens in ran)  # half of the half that may change


@pytest.mark.parametrize(
    ("painted", "computed", "strip"), [(3, 3, "##+++#+++#"), (0, 0, "##...#...#")]
)
def test_a_mask_smaller_than_a_block_computes_no_more_than_it(
    tiny_sd3, region, record_of, unpack, painted, computed, strip
):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :2, : 2 * painted] = 1
    patched = region(tiny_sd3, keep_ratio=0.9)
    result = sample(patched, steps=10, latent=torch.randn(1, 16, 16, 16), noise_mask=mask)
    record = record_of(patched)
    assert torch.isfinite(result).all() and record.strip(0) == strip
    assert all(len(tokens) == computed for tokens in ran_in_part(record, unpack))


def test_error_estimates_come_back_to_what_an_inpaint_mask_keeps(
    tiny_sd3, region, record_of, pack_module
):
    longest = pack_module("rapid_core.techniques.region.policy").MAX_MASKED_AGE
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :] = 1
    patched = region(tiny_sd3, keep_ratio=0.75, preset="per-token error", error_threshold=1.5)
    sample(patched, steps=40, latent=torch.randn(1, 16, 16, 16), noise_mask=mask)
    record = record_of(patched)
    full = [i for i, e in enumerate(record.evaluations) if e.token_share[0] == 1]
    assert record.totals["skipped"] + record.totals["partial"] > 0
    assert max(b - a for a, b in itertools.pairwise(full)) <= longest + 1


def test_a_mask_of_another_size_says_what_comes_first(tiny_model, region, record_of, unpack):
    mask = torch.zeros(1, 40, 40)
    mask[:, 20:, :] = 1
    patched = region(tiny_model, mask=mask, starvation=0.0)
    sample(patched, steps=10)
    first = ran_in_part(record_of(patched), unpack)[0]
    assert all(token >= 32 for token in first)
    note = the_note(record_of(patched), "mask_scaled")
    assert note.params == {"mask": "40 x 40", "latent": "16 x 16"}


# Beside other things.


ADVICE = [
    ({"keep_ratio": 0.99}, "euler", "advise_share"),
    ({"warm_up": 1.0}, "euler", "advise_share"),
    (
        {"preset": "per-token error", "error_threshold": 0.01},
        "euler_ancestral",
        "advise_threshold",
    ),
    ({"preset": "per-token error", "error_threshold": 1e-3}, "dpmpp_sde", "advise_threshold"),
]


@pytest.mark.parametrize(("settings", "sampler", "advice"), ADVICE)
def test_a_run_that_saved_nothing_says_what_to_change(
    tiny_sd3, region, record_of, settings, sampler, advice
):
    patched = region(tiny_sd3, **settings)
    sample(patched, steps=8, sampler=sampler)
    assert the_note(record_of(patched), "all_tokens_computed").params["advice"].code == advice


@pytest.mark.parametrize(
    "settings",
    [{}, {"memory_limit": 1e-6, "warm_up": 1.0}],  # of the second, what is wrong has been said
)
def test_where_something_was_saved_or_could_not_be_nothing_is_advised(
    tiny_sd3, region, record_of, settings
):
    patched = region(tiny_sd3, **settings)
    sample(patched, steps=8)
    assert "all_tokens_computed" not in {note.code for note in record_of(patched).notes}


def test_size_batch_and_model_may_change_between_runs(family, region):
    """Models patched by one node each, used in turn at different sizes: every picture is that of a
    fresh run."""
    models = {kind: family(kind)[0] for kind in ("flux", "sd3", "lumina2", "lumina_next")}
    patched = {kind: region(model) for kind, model in models.items()}
    for batch, height, width in ((1, 16, 16), (2, 12, 20), (1, 16, 16)):
        settings = {"steps": 7, "cfg": 2.0, "latent": torch.zeros(batch, 16, height, width)}
        for kind, model in models.items():
            used = sample(patched[kind], **settings)
            assert torch.equal(used, sample(region(model), **settings))


@pytest.mark.parametrize(("level", "counted"), [("skip", "skipped"), ("reuse", "reused")])
@pytest.mark.parametrize(
    "kind", ["flux", "sd35", "lumina2", "z_image", "lumina_next", "flux with a reference"]
)
def test_cache_reuse_and_region_adaptive_work_on_one_model(
    kind, level, counted, family, region, record_of, comfy_host
):
    model, latent = family(kind.split()[0])
    (both,) = comfy_host.run_node(
        "RAPID_CacheReuse",
        model=region(model),
        reuse_threshold=9.0,
        level=level,
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=1,
        forecast_order=1,
        guard=0.0,
    )
    extra = {}
    if "reference" in kind:
        extra = {"reference_latents": [torch.randn(1, *latent)[..., :8, :8]]}
    result = sample(
        both,
        steps=12,
        cfg=2.0,
        latent=torch.zeros(1, *latent),
        positive=make_conditioning(0, **extra),
    )
    totals = record_of(both).totals
    assert torch.isfinite(result).all()
    assert totals["partial"] > 0 and totals[counted] > 0


def test_a_clone_on_another_copy_of_the_model_gets_hooks_of_its_own(family, region):
    model, latent = family("lumina2")
    other = FAMILIES["lumina2"].build(seed=5)
    settings = {"steps": 8, "cfg": 2.0, "latent": torch.zeros(1, *latent)}
    moved = region(model).clone(model_override=other.get_clone_model_override())
    assert torch.equal(sample(moved, **settings), sample(region(other), **settings))


@pytest.mark.parametrize("kind", ["wan", "hunyuan_video"])
def test_videos_compute_some_tokens_of_every_frame(kind, family, region, record_of, unpack):
    model, latent = family(kind)
    patched = region(model, keep_ratio=0.4)
    sample(patched, steps=8, latent=torch.zeros(1, *latent))
    record = record_of(patched)
    frames, rows, columns = record.grid
    partial = ran_in_part(record, unpack)
    assert partial
    for tokens in partial:
        per_frame = [sum(t // (rows * columns) == f for t in tokens) for f in range(frames)]
        assert max(per_frame) - min(per_frame) <= 4 and min(per_frame) > 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("keep_ratio", 0.0),
        ("keep_ratio", 1.5),
        ("metric", "beauty"),
        ("warm_up", -0.1),
        ("kv_cache", "4 bit"),
        ("inactive", "dream"),
        ("preset", "best"),
        ("slope", 2.0),
        ("error_threshold", -1.0),
    ],
)
def test_bad_settings_are_refused(tiny_model, region, setting, value):
    with pytest.raises(ValueError, match=f"{setting} = .* was given; accepted is"):
        region(tiny_model, **{setting: value})


@pytest.mark.parametrize(
    ("kind", "first"),
    [("flux", "compiled first"), ("lumina2", "patched first"), ("lumina_next", "compiled first")],
)
def test_compiled_models_keep_deciding(kind, first, family, region, record_of):
    """A decision must not be frozen into the compiled graph of the first evaluation."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, latent = family(kind)
    settings = {"steps": 7, "cfg": 2.0, "latent": torch.zeros(2, *latent)}
    expected = sample(region(model, metric="change"), **settings)
    if first == "compiled first":
        compiled = model.clone()
        set_torch_compile_wrapper(compiled, backend="aot_eager")
        patched = region(compiled, metric="change")
    else:
        patched = region(model, metric="change")
        set_torch_compile_wrapper(patched, backend="aot_eager")
    result = sample(patched, **settings)
    assert record_of(patched).totals["partial"] > 0
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()
    torch.compiler.reset()
