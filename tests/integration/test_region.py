"""Region-adaptive sampling in the real ComfyUI: some tokens pass the model, on every family."""

import gc
import weakref

import pytest
import torch

from rapid_testing.families import BUILT, FROM_FILES
from rapid_testing.sampling import run_twice


class Probe:
    """A policy that names its tokens by a function of the observation; everything else is dense."""

    technique, forecast_order, start_percent, end_percent = "probe", 0, 0.0, 1.0
    regional, reach, inactive, sparsity, history = True, None, "hold", None, 0

    def __init__(self, pack_module, choose, kv_cache="model", memory_limit=0.0):
        self.actions, self.choose = pack_module("rapid_core.types"), choose
        self.kv_cache, self.memory_limit, self.metric = kv_cache, memory_limit, "std"
        self.levels = frozenset((self.actions.Mode.RUN,))

    def start(self, window):
        return self

    def settings(self):
        return {"technique": self.technique}

    def act(self, observation):
        return tuple(
            self.actions.Action(tokens=self.choose(observation, i, state.tokens))
            for i, state in enumerate(observation.images)
        )


def some(share, seed=0, uneven=0):
    """Random tokens of every second evaluation; uneven: how many fewer of each further image."""

    def choose(observation, image, tokens):
        if observation.index % 2 == 0 or tokens is None:
            return None
        generator = torch.Generator().manual_seed(seed + 10 * observation.index + image)
        count = max(1, int(share * tokens.number) - uneven * image)
        return torch.randperm(tokens.number, generator=generator)[:count].sort().values

    return choose


def attach(pack_module, model, choose, **settings):
    return pack_module("rapid_core.comfy.chain").attach(
        model, Probe(pack_module, choose, **settings)
    )


def falsified(options):
    """Multiply every cached key and value by 1.5."""
    apply_model = options["transformer_options"]["wrappers"]["apply_model"]["rapid"][0]
    apply_model.__self__.calls.store.scale(1.5)


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("kind", FROM_FILES + BUILT)
def test_any_subset_at_the_same_latent_gives_what_dense_gives(
    kind, share, family, pack_module, comfy_host, make_conditioning
):
    model, latent = family(kind)
    patched = attach(pack_module, model, some(share))
    positive, negative = make_conditioning(0), make_conditioning(1)
    dense, partial = run_twice(patched, (2, *latent), positive, negative, cfg=3.0)
    record = pack_module("rapid_core.comfy.chain").chain_of(patched).log.records[-1]
    assert 0 < record.evaluations[1].share[0] < 1, record.evaluations[1].reasons
    assert (dense - partial).abs().max() < 1e-5 * dense.abs().max()
    _, wrong = run_twice(patched, (2, *latent), positive, negative, cfg=3.0, falsify=falsified)
    assert (dense - wrong).abs().max() > 1e-3 * dense.abs().max()


@pytest.mark.parametrize("kind", FROM_FILES + BUILT)
def test_any_subset_of_an_odd_size_gives_what_dense_gives(
    kind, family, pack_module, comfy_host, make_conditioning
):
    model, latent = family(kind)
    patched = attach(pack_module, model, some(0.4))
    size = (10, 18 if kind == "hunyuan_video" else 17)  # that model pads nothing
    dense, partial = run_twice(
        patched, (2, *latent[:-2], *size), make_conditioning(0), make_conditioning(1), cfg=3.0
    )
    record = pack_module("rapid_core.comfy.chain").chain_of(patched).log.records[-1]
    assert 0 < record.evaluations[1].share[0] < 1, record.evaluations[1].reasons
    assert (dense - partial).abs().max() < 1e-5 * dense.abs().max()


@pytest.mark.parametrize("kv_cache", ["model", "forecast"])
def test_a_whole_area_keeps_its_streams_apart(
    tiny_sd3, pack_module, comfy_host, make_conditioning, kv_cache
):
    """The host gives the negative list a copy of it under the same uuid, and joins both into one
    call."""
    patched = attach(pack_module, tiny_sd3, some(0.4), kv_cache=kv_cache)
    positive = make_conditioning(0, area=(16, 16, 0, 0))
    dense, partial = run_twice(patched, (2, 16, 16, 16), positive, make_conditioning(1), cfg=3.0)
    record = pack_module("rapid_core.comfy.chain").chain_of(patched).log.records[-1]
    assert 0 < record.evaluations[1].share[0] < 1, record.evaluations[1].reasons
    assert (dense - partial).abs().max() < 1e-5 * dense.abs().max()


@pytest.mark.parametrize("kv_cache", ["model", "forecast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["flux", "lumina2", "wan"])
def test_any_subset_gives_what_dense_gives_in_half_precision(
    kind, dtype, kv_cache, pack_module, comfy_host, make_conditioning
):
    from rapid_testing.families import FAMILIES

    model, texts = FAMILIES[kind].build(dtype=dtype), (make_conditioning(0), make_conditioning(1))
    patched = attach(pack_module, model, some(0.5), kv_cache=kv_cache)
    dense, partial = run_twice(patched, (1, *FAMILIES[kind].latent), *texts, cfg=1.0)
    record = pack_module("rapid_core.comfy.chain").chain_of(patched).log.records[-1]
    assert model.model.get_dtype_inference() == dtype
    assert 0 < record.evaluations[1].share[0] < 1, record.evaluations[1].reasons
    noise = torch.finfo(dtype).eps * dense.abs().mean()  # of one rounding
    assert (dense - partial).abs().mean() <= noise
    _, wrong = run_twice(patched, (1, *FAMILIES[kind].latent), *texts, cfg=1.0, falsify=falsified)
    assert (dense - wrong).abs().mean() > 2 * noise


def test_frames_with_noise_levels_of_their_own_keep_them(
    family, pack_module, comfy_host, make_conditioning
):
    model, latent = family("wan22")
    mask = torch.ones(2, 1, *latent[1:])
    mask[:, :, 0], mask[:, :, 1] = 0.0, 0.5  # the first frame is given, the second half noised
    patched = attach(pack_module, model, some(0.4))
    dense, partial = run_twice(
        patched, (2, *latent), make_conditioning(0), make_conditioning(1), 3.0, mask=mask
    )
    record = pack_module("rapid_core.comfy.chain").chain_of(patched).log.records[-1]
    assert 0 < record.evaluations[1].share[0] < 1, record.evaluations[1].reasons
    assert (dense - partial).abs().max() < 1e-5 * dense.abs().max()


@pytest.mark.parametrize("kind", FROM_FILES + BUILT)
def test_reusing_the_residual_at_the_same_latent_gives_what_dense_gives(
    kind, family, pack_module, comfy_host, make_conditioning
):
    model, latent = family(kind)
    actions = pack_module("rapid_core.types")

    class Second(Probe):
        def act(self, observation):
            level = actions.Mode.REUSE if observation.index % 2 else actions.Mode.RUN
            return (actions.Action(level),) * len(observation.images)

    policy = Second(pack_module, None)
    policy.levels, policy.regional = frozenset(actions.Mode), False
    chain = pack_module("rapid_core.comfy.chain")
    patched = chain.attach(model, policy)
    dense, reused = run_twice(
        patched, (2, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0
    )
    record = chain.chain_of(patched).log.records[-1]
    assert record.evaluations[1].levels == ("reuse", "reuse"), record.evaluations[1].reasons
    assert (dense - reused).abs().max() < 1e-5 * dense.abs().max()
    assert record.evaluations[1].cost[0] < 0.7 * record.evaluations[0].cost[0]


OF_SOME = [("flux", "pooled"), ("sd35", "pooled"), ("wan", "pooled"), ("lumina2", "none")]


@pytest.mark.parametrize(
    ("kind", "kv_cache"), [*((kind, "model") for kind in FROM_FILES + BUILT), *OF_SOME]
)
def test_the_cost_of_a_subset_is_what_torch_counts(
    kind, kv_cache, family, pack_module, comfy_host, make_conditioning
):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, latent = family(kind)
    spent = []
    for choose in (some(0.5), some(0.25)):
        patched = attach(pack_module, model, choose, kv_cache=kv_cache)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run_twice(patched, (2, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0)
        totals = pack_module("rapid_core.comfy.chain").chain_of(patched).log.records[-1].totals
        spent.append((totals["flops"], counter.get_total_flops()))
    for counted, true in spent:
        assert counted == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("kind", ["flux", "qwen_image"])
def test_reference_tokens_are_counted(kind, family, pack_module, comfy_host, make_conditioning):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, latent = family(kind)
    positive = make_conditioning(0, reference_latents=[torch.randn(1, *latent)])
    patched = attach(pack_module, model, some(0.5))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run_twice(patched, (2, *latent), positive, make_conditioning(1), cfg=3.0)
    record = pack_module("rapid_core.comfy.chain").chain_of(patched).log.records[-1]
    assert record.evaluations[1].share[0] < 1
    assert record.totals["flops"] == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("kv_cache", ["forecast", "8 bit", "pooled", "host memory", "none"])
@pytest.mark.parametrize(
    "kind, uneven",
    [
        ("flux", 0),
        ("flux", 4),
        ("sd35", 0),
        ("sd35", 4),
        ("wan", 0),
        ("lumina2", 0),
        ("qwen_image", 0),
    ],
)
def test_other_caches_run_and_come_near(
    kind, uneven, kv_cache, family, pack_module, comfy_host, make_conditioning
):
    """Also where images of the batch compute different numbers of tokens, so that the batch is
    split."""
    model, latent = family(kind)
    patched = attach(pack_module, model, some(0.5, uneven=uneven), kv_cache=kv_cache)
    dense, partial = run_twice(
        patched, (2, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0
    )
    error = ((dense - partial).abs().mean() / dense.abs().mean()).item()
    assert error < {"8 bit": 0.02, "host memory": 1e-5, "forecast": 1e-5}.get(kv_cache, 0.6)
    assert torch.isfinite(partial).all()


# The node.


@pytest.fixture(scope="module")
def region(comfy_host, pack):
    """region(model, **settings): the node's output."""
    inputs = dict(
        preset="custom",
        warm_up=0.2,
        tail=0.1,
        refresh_interval=3,
        drift_threshold=0.0,
        metric="std",
        direction="low",
        starvation=0.1,
        inactive="forecast",
        slope=0.0,
        kv_cache="model",
    )

    def patch(model, keep_ratio=0.5, **settings):
        values = {**inputs, **settings}
        return comfy_host.run_node(
            "RAPID_RegionAdaptive", model=model, keep_ratio=keep_ratio, **values
        )[0]

    return patch


@pytest.fixture(scope="module")
def last_record(pack_module):
    chain_of = pack_module("rapid_core.comfy.chain").chain_of
    return lambda model: chain_of(model).log.records[-1]


def strip(record, image=0):
    return record._strip(image)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_every_token_may_have_its_own_clock(tiny_sd3, region, sample, last_record, sampler):
    """error_threshold: each image of a batch computes as many tokens as are due, none or all of
    them."""
    patched = region(
        tiny_sd3, keep_ratio=0.8, error_threshold=1.5, warm_up=0.0, tail=0.0, refresh_interval=0
    )
    latent = torch.zeros(2, 16, 16, 24)
    result = sample(patched, steps=14, cfg=2.0, sampler=sampler, latent=latent)
    record = last_record(patched)
    assert torch.isfinite(result).all() and record.totals["partial"] > 0
    assert len({e.share for e in record.evaluations}) > 2, record.text()
    assert torch.equal(result, sample(patched, steps=14, cfg=2.0, sampler=sampler, latent=latent))
    still = region(
        tiny_sd3, keep_ratio=0.8, error_threshold=9.0, warm_up=0.0, tail=0.0, refresh_interval=0
    )
    sample(still, steps=14, cfg=2.0, sampler=sampler, latent=latent)
    assert (
        last_record(still).totals["held"] > 0
        and last_record(still).totals["flops"] < record.totals["flops"]
    )


def test_ratio_one_leaves_the_model_untouched(tiny_model, region):
    for preset in (
        "clocks",
        "custom",
        "paper",
    ):  # in custom the browser sends an error_threshold, too
        for threshold in (0.0, 0.04):
            assert (
                region(tiny_model, keep_ratio=1.0, preset=preset, error_threshold=threshold)
                is tiny_model
            )
    assert region(tiny_model, keep_ratio=0.5, preset="clocks", error_threshold=0.0) is tiny_model


def test_the_clocks_preset_has_a_schedule_of_its_own(tiny_sd3, region, sample):
    latent = torch.zeros(1, 16, 16, 24)
    preset = region(tiny_sd3, keep_ratio=0.75, preset="clocks", error_threshold=1.5)
    same = region(
        tiny_sd3, keep_ratio=0.75, error_threshold=1.5, warm_up=0.0, tail=0.03, refresh_interval=0
    )
    assert torch.equal(*(sample(m, steps=14, cfg=2.0, latent=latent) for m in (preset, same)))


def test_warm_up_refresh_and_tail_are_dense(tiny_model, region, sample, last_record):
    patched = region(tiny_model)
    sample(patched, steps=10, cfg=2.0)
    assert strip(last_record(patched)) == "##+++#+++#"


SAMPLERS = ["euler", "heun", "heunpp2", "dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_works(tiny_model, region, sample, last_record, sampler):
    patched = region(tiny_model)
    result = sample(patched, steps=10, sampler=sampler)
    record = last_record(patched)
    assert torch.isfinite(result).all()
    assert record.totals["partial"] > 0
    assert record.totals["computed"] == record.totals["evaluations"]


@pytest.mark.parametrize("metric", ["std", "l2", "change", "attention", "random", "rounds"])
@pytest.mark.parametrize("inactive", ["hold", "forecast", "interpolate"])
def test_metrics_and_modes_run_on_batches_and_odd_sizes(
    tiny_sd3, region, sample, last_record, metric, inactive
):
    patched = region(tiny_sd3, metric=metric, inactive=inactive, keep_ratio=0.3)
    result = sample(patched, steps=8, cfg=2.0, latent=torch.zeros(3, 16, 15, 21))
    assert torch.isfinite(result).all()
    record = last_record(patched)
    assert record.totals["partial"] > 0
    if metric == "random":  # each image of the batch has its own tokens
        assert len(set(record.evaluations[3].tokens)) == 3


@pytest.mark.parametrize("kind", ["flux", "flux with a reference", "z_image"])
def test_received_attention_is_what_the_images_queries_give(
    kind, family, region, sample, pack_module, monkeypatch
):
    subset, seen = pack_module("rapid_core.comfy.subset"), []
    mass = subset.received_mass
    monkeypatch.setattr(
        subset, "received_mass", lambda *a: seen.append((a, mass(*a))) or seen[-1][1]
    )
    from rapid_testing.sampling import make_conditioning

    model, latent = family(kind.split()[0])
    extra = (
        {"reference_latents": [torch.randn(1, *latent)[..., :8, :8]]} if "reference" in kind else {}
    )
    sample(
        region(model, metric="attention"),
        steps=3,
        latent=torch.zeros(1, *latent),
        positive=make_conditioning(0, **extra),
    )
    (q, k, axis, heads, asking), found = seen[0]
    number = latent[-1] * latent[-2] // 4
    assert (asking.start, asking.stop - asking.start) == (32 if kind == "z_image" else 16, number)
    q, k = (t if axis == 2 else t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k))
    weights = (q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    assert torch.allclose(
        found, weights[:, :, asking][:, :, :: max(1, number // 64)].mean((1, 2)), atol=1e-6
    )


def test_joined_and_split_streams_give_the_same_picture(
    tiny_sd3, region, sample, last_record, monkeypatch
):
    import comfy.model_management

    from rapid_testing.sampling import make_conditioning

    prompts = dict(
        positive=make_conditioning(0, tokens=16), negative=make_conditioning(1, tokens=16)
    )
    settings = dict(steps=8, cfg=3.0, **prompts)
    joined_model, split_model = region(tiny_sd3), region(tiny_sd3)
    joined = sample(joined_model, **settings)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *a, **k: 0)
    split = sample(split_model, **settings)
    tokens = [[e.tokens for e in last_record(m).evaluations] for m in (joined_model, split_model)]
    assert tokens[0] == tokens[1]
    assert (joined - split).abs().max() < 1e-4 * joined.abs().max()


def test_prompts_of_different_lengths_are_split_and_work(tiny_model, region, sample, last_record):
    from rapid_testing.sampling import make_conditioning

    patched = region(tiny_model)
    result = sample(
        patched,
        steps=8,
        cfg=3.0,
        positive=make_conditioning(0, tokens=24),
        negative=make_conditioning(1, tokens=16),
    )
    assert torch.isfinite(result).all() and last_record(patched).totals["partial"] > 0


def test_tokens_that_an_inpaint_mask_keeps_are_not_computed_between_refreshes(
    tiny_model, region, sample, last_record, pack_module
):
    unpack = pack_module("rapid_core.record").unpack
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :] = 1
    patched = region(tiny_model)
    sample(patched, steps=10, latent=torch.randn(1, 16, 16, 16), noise_mask=mask)
    ran = [unpack(e.tokens[0]) for e in last_record(patched).evaluations if e.tokens[0]]
    assert ran and all(max(tokens) < 32 for tokens in ran)
    assert all(len(tokens) == 16 for tokens in ran)  # half of the half that may change


@pytest.mark.parametrize(("painted", "computed"), [(3, 3), (0, 0)])
def test_a_mask_smaller_than_a_block_computes_no_more_than_it(
    tiny_sd3, region, sample, last_record, pack_module, painted, computed
):
    unpack, mask = pack_module("rapid_core.record").unpack, torch.zeros(1, 1, 16, 16)
    mask[..., :2, : 2 * painted] = 1
    patched = region(tiny_sd3, keep_ratio=0.9)
    result = sample(patched, steps=10, latent=torch.randn(1, 16, 16, 16), noise_mask=mask)
    record = last_record(patched)
    assert torch.isfinite(result).all() and strip(record) == (
        "##+++#+++#" if computed else "##...#...#"
    )
    assert all(len(unpack(e.tokens[0])) == computed for e in record.evaluations if e.tokens[0])


def test_clocks_come_back_to_what_an_inpaint_mask_keeps(
    tiny_sd3, region, sample, last_record, pack_module
):
    kept_age, mask = (
        pack_module("rapid_core.techniques.region.policy").KEPT_AGE,
        torch.zeros(1, 1, 16, 16),
    )
    mask[..., :8, :] = 1
    patched = region(tiny_sd3, keep_ratio=0.75, preset="clocks", error_threshold=1.5)
    sample(patched, steps=40, latent=torch.randn(1, 16, 16, 16), noise_mask=mask)
    record = last_record(patched)
    dense = [i for i, e in enumerate(record.evaluations) if e.share[0] == 1]
    assert record.totals["held"] + record.totals["partial"] > 0
    assert max(b - a for a, b in zip(dense, dense[1:], strict=False)) <= kept_age + 1


def test_a_mask_of_another_size_says_what_comes_first(
    tiny_model, region, sample, last_record, pack_module
):
    unpack = pack_module("rapid_core.record").unpack
    mask = torch.zeros(1, 40, 40)
    mask[:, 20:, :] = 1
    patched = region(tiny_model, mask=mask, starvation=0.0)
    sample(patched, steps=10)
    first = next(unpack(e.tokens[0]) for e in last_record(patched).evaluations if e.tokens[0])
    assert sum(t >= 32 for t in first) == len(first)
    assert "mask of 40 x 40 scaled to the latent's 16 x 16" in last_record(patched).text()


def test_a_memory_limit_too_small_is_dense_with_the_reason(tiny_model, region, sample, last_record):
    patched = region(tiny_model, memory_limit=1e-6)
    assert torch.equal(sample(patched, steps=6), sample(tiny_model, steps=6))
    assert "memory_limit" in last_record(patched).text()
    patched = region(tiny_model, preset="clocks", error_threshold=9.0, memory_limit=1e-6)
    sample(patched, steps=6)
    assert "tokens are computed all or none" in last_record(patched).text()


@pytest.fixture
def cache_of(pack_module, sample, monkeypatch):
    """cache_of(model, **settings): bytes of keys and values as said before a run, and most of them
    during it."""
    run, memory = pack_module("rapid_core.comfy.run"), pack_module("rapid_core.comfy.memory")
    of, make = memory.bytes_of, run.key_store

    def measured(model, **settings):
        said, stores, held = [], [], [0]
        monkeypatch.setattr(memory, "bytes_of", lambda *a: said.append(of(*a)) or said[-1])
        monkeypatch.setattr(run, "key_store", lambda *a: stores.append(make(*a)) or stores[-1])
        sample(
            model,
            callback=lambda *_: held.append(stores[0][0].bytes if stores[0][0] else 0),
            **settings,
        )
        return said[0], max(held)

    return measured


@pytest.mark.parametrize("kv_cache", ["forecast", "model"])
def test_what_is_held_of_a_prompt_ends_with_it(
    tiny_sd3, region, pack_module, sample, make_conditioning, monkeypatch, kv_cache
):
    run, stores = pack_module("rapid_core.comfy.run"), []
    make = run.key_store
    monkeypatch.setattr(run, "key_store", lambda *a: stores.append(make(*a)) or stores[-1])

    def held(positive):
        found = []
        sample(
            region(tiny_sd3, kv_cache=kv_cache),
            steps=12,
            cfg=2.0,
            positive=positive,
            callback=lambda *_: found.append(stores[-1][0].bytes),
        )
        return found

    alone = held(make_conditioning(0))
    both = held(
        make_conditioning(0, start_percent=0.0, end_percent=0.5)
        + make_conditioning(3, start_percent=0.5, end_percent=1.0)
    )
    assert both[-1] == alone[-1] > 0 and both[3] == alone[3]


@pytest.mark.parametrize(
    "kv_cache", ["forecast", "model", "8 bit", "pooled", "host memory", "none"]
)
@pytest.mark.parametrize(
    "kind", ["flux", "sd35", "lumina2", "z_image", "wan", "flux with a reference"]
)
def test_the_memory_said_before_is_what_is_taken(
    kind, kv_cache, family, region, cache_of, make_conditioning
):
    model, (*rest, height, width) = family(kind.split()[0])
    extra = {"reference_latents": [torch.randn(1, *rest, 8, 8)]} if "reference" in kind else {}
    settings = dict(steps=6, cfg=2.0, positive=make_conditioning(0, **extra))
    for batch, high in ((1, height), (2, height - 2)):  # an odd number of rows, too
        latent = torch.zeros(batch, *rest, high, width)
        said, held = cache_of(region(model, kv_cache=kv_cache), latent=latent, **settings)
        assert said == held and (held > 0) == (kv_cache != "none")


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m_cfg_pp", "euler"])
def test_samplers_that_look_at_the_negative_at_scale_one_are_counted_so(
    tiny_model, region, cache_of, sampler
):
    said, held = cache_of(region(tiny_model), steps=6, cfg=1.0, sampler=sampler)
    assert said == held > 0


def test_a_memory_limit_holds_for_cfg_pp(tiny_flux, region, sample, last_record, cache_of):
    one, _ = cache_of(region(tiny_flux), steps=6, cfg=1.0)
    patched = region(tiny_flux, memory_limit=1.5 * one / 2**30)
    assert cache_of(patched, steps=6, cfg=1.0, sampler="euler_cfg_pp") == (2 * one, 0)
    assert (
        last_record(patched).totals["partial"] == 0
        and "memory_limit" in last_record(patched).text()
    )
    assert (
        cache_of(patched, steps=6, cfg=1.0)[1] == one and last_record(patched).totals["partial"] > 0
    )


def test_a_condition_that_was_not_counted_is_not_kept(
    tiny_flux, region, sample, last_record, cache_of
):
    """Another node asks for the negative's result in the midst of a run at scale one."""
    import comfy.sample
    import comfy.samplers

    from rapid_testing.sampling import make_conditioning

    class Curious(comfy.samplers.KSAMPLER):
        def sample(self, model_wrap, sigmas, extra_args, *rest):
            options = {**extra_args["model_options"], "disable_cfg1_optimization": True}
            return super().sample(
                model_wrap, sigmas, {**extra_args, "model_options": options}, *rest
            )

    patched, latent = region(tiny_flux, memory_limit=1.0), torch.zeros(1, 16, 16, 16)
    sampler = comfy.samplers.sampler_object("euler")
    curious = Curious(sampler.sampler_function, sampler.extra_options, sampler.inpaint_options)
    with torch.inference_mode():
        comfy.sample.sample_custom(
            patched,
            torch.randn(1, 16, 16, 16),
            1.0,
            curious,
            torch.linspace(1, 0, 9),
            make_conditioning(0),
            make_conditioning(1),
            latent,
            disable_pbar=True,
        )
    assert last_record(patched).totals["partial"] == 0
    assert "a condition that memory_limit was not counted for" in last_record(patched).text()


def test_what_one_more_condition_cannot_follow_is_dense_for_it_alone(
    tiny_flux, region, sample, last_record, comfy_host
):
    """PerpNeg asks for a third condition after the others have obeyed the decision; there is no
    room for its keys."""
    from rapid_testing.sampling import make_conditioning

    shares = {}
    for name in ("alone", "perp-neg"):
        model = tiny_flux
        if name == "perp-neg":
            empty = make_conditioning(5)
            comfy_host.load_core_nodes("nodes_perpneg.py")
            (model,) = comfy_host.run_node(
                "PerpNeg", model=model, empty_conditioning=empty, neg_scale=1.0
            )
        patched = region(model, memory_limit=1.0)
        sample(patched, steps=14, cfg=2.0)
        shares[name] = [e.share for e in last_record(patched).evaluations]
    assert shares["alone"] == shares["perp-neg"] and (0 < shares["alone"][4][0] < 1)
    assert "a condition that memory_limit was not counted for" in last_record(patched).text()


def test_easycache_on_the_same_model_keeps_nothing_that_is_partial(
    tiny_flux, region, sample, last_record, comfy_host
):
    comfy_host.load_core_nodes("nodes_easycache.py")
    (cached,) = comfy_host.run_node(
        "EasyCache",
        model=tiny_flux,
        reuse_threshold=0.0,
        start_percent=0.15,
        end_percent=0.95,
        verbose=False,
    )
    patched = region(cached)
    assert torch.equal(sample(patched, steps=10), sample(cached, steps=10))
    assert (
        last_record(patched).totals["partial"] == 0 and "EasyCache" in last_record(patched).text()
    )


@pytest.mark.parametrize("kv_cache", ["forecast", "model", "pooled"])
def test_an_area_condition_is_dense_with_the_reason(
    tiny_sd3, region, sample, last_record, comfy_host, kv_cache
):
    from rapid_testing.sampling import make_conditioning

    positive = make_conditioning(0)
    positive[0][1]["area"] = (8, 8, 0, 0)
    patched = region(tiny_sd3, kv_cache=kv_cache)
    both = positive + make_conditioning(2)
    assert torch.equal(
        sample(patched, steps=6, cfg=2.0, positive=both),
        sample(tiny_sd3, steps=6, cfg=2.0, positive=both),
    )
    assert any("has an area" in r for e in last_record(patched).evaluations for r in e.reasons)


@pytest.mark.parametrize("area", [(8, 8, 0, 0), (16, 16, 0, 4), (16, 16, 0, 0)])
def test_keys_and_values_are_kept_only_where_an_area_is_the_whole_latent(
    tiny_sd3, region, cache_of, last_record, area
):
    from rapid_testing.sampling import make_conditioning

    positive = make_conditioning(0)
    positive[0][1]["area"] = area
    whole, patched = area == (16, 16, 0, 0), region(tiny_sd3)
    _, held = cache_of(patched, steps=6, cfg=2.0, positive=positive)
    assert (held > 0) == whole == (last_record(patched).totals["partial"] > 0)


IDLE = "all tokens were computed in every evaluation: "


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (dict(keep_ratio=0.99), "lower keep_ratio"),
        (dict(warm_up=1.0), "lower keep_ratio, warm_up"),
        (
            dict(preset="clocks", error_threshold=0.01, sampler="euler_ancestral"),
            "a sampler that adds no noise",
        ),
        (dict(preset="clocks", error_threshold=1e-3, sampler="dpmpp_sde"), "raise error_threshold"),
    ],
)
def test_a_run_that_left_nothing_out_says_what_to_change(
    tiny_sd3, region, sample, last_record, settings, change
):
    sampler = settings.get("sampler", "euler")
    patched = region(tiny_sd3, **{k: v for k, v in settings.items() if k != "sampler"})
    sample(patched, steps=8, sampler=sampler)
    (said,) = [note for note in last_record(patched).notes if note.startswith(IDLE)]
    assert change in said
    busy = region(tiny_sd3)
    sample(busy, steps=8)
    assert IDLE not in last_record(busy).text()
    short = region(tiny_sd3, memory_limit=1e-6, warm_up=1.0)  # what is wrong has been said
    sample(short, steps=8)
    assert IDLE not in last_record(short).text()


def test_an_unknown_model_is_dense_with_the_reason(
    tiny_model, region, sample, last_record, pack_module, monkeypatch
):
    monkeypatch.setattr(pack_module("rapid_core.comfy.run"), "describe", lambda model: None)
    patched = region(tiny_model)
    assert torch.equal(sample(patched, steps=6), sample(tiny_model, steps=6))
    assert "not known to region-adaptive sampling" in last_record(patched).text()


def live_tensors():
    """Bytes of all tensors that Python can reach."""
    gc.collect()
    seen = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) is torch.Tensor
    }
    return sum(seen.values())


@pytest.mark.parametrize("kv_cache", ["forecast", "pooled"])
@pytest.mark.parametrize("kind", ["flux", "lumina2"])
def test_a_run_interrupted_at_any_step_leaves_nothing_behind(
    kind, kv_cache, family, region, sample, last_record, comfy_host
):
    import comfy.model_management

    model, latent = family(kind)
    settings = dict(steps=8, latent=torch.zeros(1, *latent))
    wanted = sample(region(model, kv_cache=kv_cache), **settings)
    dense, patched = sample(model, **settings), region(model, kv_cache=kv_cache)
    before = live_tensors()
    for at in range(8):

        def stop(step, *rest, at=at):
            if step == at:
                raise comfy.model_management.InterruptProcessingException

        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched, callback=stop, **settings)
        assert last_record(patched).status == "interrupted"
        assert live_tensors() <= before + 2**16  # records stay, tensors do not
    assert torch.equal(sample(patched, **settings), wanted)
    assert torch.equal(sample(model, **settings), dense) and not torch.equal(dense, wanted)


@pytest.mark.parametrize("kv_cache", ["forecast", "8 bit", "pooled", "host memory"])
@pytest.mark.parametrize("where", ["between", "within"])
def test_nothing_is_held_while_the_exception_of_a_run_is_handled(
    tiny_flux, region, sample, pack_module, monkeypatch, kv_cache, where
):
    run = pack_module("rapid_core.comfy.run")
    store = pack_module("rapid_core.engine.kv").KVStore
    make, runs, held = run.HostRun.install, [], []
    monkeypatch.setattr(
        run.HostRun, "install", lambda self, *a: runs.append(self) or make(self, *a)
    )

    def look():  # no part of the traceback
        ours = runs[-1]
        tracks = [ours.state.guided, *ours.state.slots.values()]
        kept = [t for k in ours.calls.store._kept.values() for t in k.tensors]
        held.extend(map(weakref.ref, kept + [p.value for t in tracks for p in t.points(0)]))

    def merge(self, *args):
        look()
        raise RuntimeError("no more memory")

    def stop(step, *rest):
        if step == 4:
            look()
            raise RuntimeError("no more memory")

    if where == "within":
        monkeypatch.setattr(store, "merge", merge)
    try:
        sample(region(tiny_flux, kv_cache=kv_cache), steps=8, callback=stop)
    except RuntimeError:
        gc.collect()
        alive = [ref for ref in held if ref() is not None]
        assert len(held) > 4 and not alive
    assert held


def test_size_batch_and_model_may_change_between_runs(family, region, sample):
    """Two models patched by one node each, used in turn at different sizes: every picture is that
    of a fresh run."""
    models = {kind: family(kind) for kind in ("flux", "sd3", "lumina2")}
    patched = {kind: region(model) for kind, (model, _) in models.items()}
    for size in ((1, 16, 16), (2, 12, 20), (1, 16, 16)):
        for kind, (model, _) in models.items():
            settings = dict(steps=7, cfg=2.0, latent=torch.zeros(size[0], 16, *size[1:]))
            assert torch.equal(sample(patched[kind], **settings), sample(region(model), **settings))


@pytest.mark.parametrize("level", ["hold", "reuse"])
@pytest.mark.parametrize("kind", ["flux", "sd35", "lumina2", "z_image", "flux with a reference"])
def test_cache_reuse_and_region_adaptive_work_on_one_model(
    kind, level, family, region, sample, last_record, comfy_host, make_conditioning
):
    model, latent = family(kind.split()[0])
    settings = dict(
        start_percent=0.0, end_percent=1.0, max_consecutive=1, forecast_order=1, guard=0.0
    )
    both = comfy_host.run_node(
        "RAPID_CacheReuse", model=region(model), reuse_threshold=9.0, level=level, **settings
    )[0]
    extra = (
        {"reference_latents": [torch.randn(1, *latent)[..., :8, :8]]} if "reference" in kind else {}
    )
    result = sample(
        both,
        steps=12,
        cfg=2.0,
        latent=torch.zeros(1, *latent),
        positive=make_conditioning(0, **extra),
    )
    totals = last_record(both).totals
    assert torch.isfinite(result).all()
    assert totals["partial"] > 0 and totals["held"] + totals["reused"] > 0


def test_a_control_that_ends_takes_its_history_with_it(
    tiny_model, comfy_host, pack_module, make_conditioning
):
    """A ControlNet from .3 to .6: where it begins and where it ends is computed, and the old
    forecasts are gone."""
    import comfy.controlnet
    import comfy.sample
    import comfy.samplers

    class Silent(comfy.controlnet.ControlBase):
        def get_control(self, *_args):
            return None

    chain = pack_module("rapid_core.comfy.chain")
    actions = pack_module("rapid_core.types")

    class Held(Probe):
        def act(self, observation):
            level = actions.Mode.SKIP if observation.index else actions.Mode.RUN
            return (actions.Action(level),) * len(observation.images)

    policy = Held(pack_module, None)
    policy.levels, policy.regional = frozenset(actions.Mode), False
    patched = chain.attach(tiny_model, policy)
    control = Silent()
    control.timestep_percent_range = (0.3, 0.6)
    positive, negative = (
        make_conditioning(0, control=control, control_apply_to_uncond=False),
        make_conditioning(1),
    )
    levels = torch.linspace(1, 0, 11)
    with torch.inference_mode():
        comfy.sample.sample_custom(
            patched,
            torch.randn(1, 16, 16, 16),
            2.0,
            comfy.samplers.sampler_object("euler"),
            levels,
            positive,
            negative,
            torch.zeros(1, 16, 16, 16),
            disable_pbar=True,
        )
    record, to_sigma = (
        chain.chain_of(patched).log.records[-1],
        tiny_model.model.model_sampling.percent_to_sigma,
    )
    inside = [to_sigma(0.6) <= e.sigma <= to_sigma(0.3) for e in record.evaluations]
    expected = ["run" if k == 0 or inside[k] != inside[k - 1] else "hold" for k in range(10)]
    assert [e.levels[0] for e in record.evaluations] == expected and expected.count("run") == 3


def test_patches_between_the_blocks_are_computed_whole(
    tiny_flux, region, sample, last_record, comfy_host
):
    """Z-Image's and Qwen's ControlNets come as patches that add to all tokens of a block."""
    model, lengths = tiny_flux.clone(), set()

    def between(args):
        lengths.add(args["img"].shape[1])
        return args

    model.set_model_patch(between, "double_block")
    patched = region(model)
    assert torch.equal(sample(patched, steps=8), sample(model, steps=8))
    assert "patches the model's blocks (double_block)" in last_record(patched).text()
    reuse = comfy_host.run_node(
        "RAPID_CacheReuse",
        model=model,
        reuse_threshold=9.0,
        level="reuse",
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=1,
        forecast_order=1,
        guard=0.0,
    )[0]
    assert torch.equal(sample(reuse, steps=8), sample(model, steps=8))


def test_a_clone_on_another_copy_of_the_model_gets_hooks_of_its_own(family, region, sample):
    from rapid_testing.families import FAMILIES

    model, latent = family("lumina2")
    other = FAMILIES["lumina2"].build(seed=5)
    settings = dict(steps=8, cfg=2.0, latent=torch.zeros(1, *latent))
    moved = region(model).clone(model_override=other.get_clone_model_override())
    assert torch.equal(sample(moved, **settings), sample(region(other), **settings))


def test_conditions_that_need_all_tokens_keep_no_cache(
    family, region, sample, last_record, make_conditioning
):
    model, latent = family("hunyuan_video")
    positive = make_conditioning(0, guiding_frame_index=0)
    patched = region(model)
    sample(patched, steps=8, latent=torch.zeros(1, *latent), positive=positive)
    record = last_record(patched)
    assert (
        record.totals["partial"] == 0 and "guiding_frame_index is conditioned on" in record.text()
    )
    assert record.bytes < 2**20


def test_control_residuals_follow_their_tokens(
    tiny_model, pack_module, comfy_host, make_conditioning
):
    """ControlNet residuals of every block: a subset at the same latent still equals dense."""
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
        width = 128
        generator = torch.Generator().manual_seed(5)
        residuals = [torch.randn(x.shape[0], tokens, width, generator=generator) for _ in range(4)]
        lists = {"input": residuals[:2], "output": residuals[2:]}
        return executor(x, t, c_concat, c_crossattn, lists, transformer_options, **extra)

    model = tiny_model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "control", controlled)
    patched = attach(pack_module, model, some(0.5))
    positive, negative = make_conditioning(0), make_conditioning(1)
    dense, partial = run_twice(patched, (2, 16, 16, 24), positive, negative, cfg=1.0)
    uncontrolled = attach(pack_module, tiny_model, some(0.5))
    plain, _ = run_twice(uncontrolled, (2, 16, 16, 24), positive, negative, cfg=1.0)
    assert (dense - partial).abs().max() < 1e-5 * dense.abs().max()
    assert (dense - plain).abs().max() > 1e-2 * dense.abs().max()


@pytest.mark.parametrize("kind", ["flux", "qwen_image"])
def test_reference_latents_are_always_computed(
    kind, family, pack_module, comfy_host, make_conditioning, last_record
):
    model, latent = family(kind)
    reference = torch.randn(1, *latent)[..., :8, :8]
    positive = make_conditioning(0, reference_latents=[reference])
    patched = attach(pack_module, model, some(0.5))
    dense, partial = run_twice(patched, (1, *latent), positive, make_conditioning(1), cfg=3.0)
    assert last_record(patched).evaluations[1].share[0] < 1, (
        last_record(patched).evaluations[1].reasons
    )
    assert (dense - partial).abs().max() < 1e-5 * dense.abs().max()
    without, _ = run_twice(
        patched, (1, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0
    )
    assert (dense - without).abs().max() > 1e-3


def test_text_masks_are_kept(family, pack_module, comfy_host, make_conditioning, last_record):
    for kind in ("qwen_image", "hunyuan_video"):
        model, latent = family(kind)
        mask = torch.ones(1, 16, dtype=torch.long)
        mask[:, 9:] = 0
        positive = make_conditioning(0, attention_mask=mask)
        patched = attach(pack_module, model, some(0.5))
        dense, partial = run_twice(patched, (1, *latent), positive, make_conditioning(1), cfg=3.0)
        assert last_record(patched).evaluations[1].share[0] < 1
        assert (dense - partial).abs().max() < 1e-5 * dense.abs().max()
        other, _ = run_twice(
            patched, (1, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0
        )
        assert (dense - other).abs().max() > 1e-3 * dense.abs().max()


def test_videos_compute_some_tokens_of_every_frame(
    family, region, sample, last_record, pack_module
):
    unpack = pack_module("rapid_core.record").unpack
    for kind in ("wan", "hunyuan_video"):
        model, latent = family(kind)
        patched = region(model, keep_ratio=0.4)
        sample(patched, steps=8, latent=torch.zeros(1, *latent))
        record = last_record(patched)
        frames = record.grid[0]
        size = record.grid[1] * record.grid[2]
        for tokens in (unpack(e.tokens[0]) for e in record.evaluations if e.tokens[0]):
            per_frame = [sum(t // size == f for t in tokens) for f in range(frames)]
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
    ("kind", "first"), [("flux", "compiled first"), ("lumina2", "patched first")]
)
def test_compiled_models_keep_deciding(kind, first, family, region, sample, last_record):
    """A decision must not be frozen into the compiled graph of the first evaluation."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, latent = family(kind)
    settings = dict(steps=7, cfg=2.0, latent=torch.zeros(2, *latent))
    expected = sample(region(model, metric="change"), **settings)
    if first == "compiled first":
        compiled = model.clone()
        set_torch_compile_wrapper(compiled, backend="aot_eager")
        patched = region(compiled, metric="change")
    else:
        patched = region(model, metric="change")
        set_torch_compile_wrapper(patched, backend="aot_eager")
    result = sample(patched, **settings)
    assert last_record(patched).totals["partial"] > 0
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()
    torch.compiler.reset()
