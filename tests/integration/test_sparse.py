"""Sparse attention in the real ComfyUI: on every family, beside the other techniques, and where it
cannot be."""

import gc

import pytest
import torch

from rapid_testing.families import BUILT, FROM_FILES
from rapid_testing.sampling import empty_latent, run_twice, sample


@pytest.fixture
def sparse(comfy_host, pack):
    """sparse(model, density, **settings): the node's output."""
    inputs = dict(
        start_percent=0.0,
        end_percent=1.0,
        dense_first=0,
        dense_last=0,
        backend="gather",
        left_out="means",
        tile="16",
    )
    return lambda model, density=0.5, **settings: comfy_host.run_node(
        "RAPID_SparseAttention", model=model, density=density, **{**inputs, **settings}
    )[0]


@pytest.fixture
def second(pack_module):
    """second(model, *densities, left_out): every second evaluation has these densities, image by
    image; the others are dense, and measure them where differences are kept."""
    actions, chain = (pack_module(f"rapid_core.{name}") for name in ("actions", "host.chain"))

    class Second:
        def __init__(self, policy, densities):
            self.policy, self.densities = policy, densities

        def __getattr__(self, name):
            return getattr(self.policy, name)

        def start(self, window):
            return self

        def act(self, observation):
            measures = [
                d if self.policy.sparsity.remembers and d < 1 else None for d in self.densities
            ]
            return tuple(
                actions.Action(density=self.densities[i])
                if observation.index % 2
                else actions.Action(measures=measures[i])
                for i in range(len(observation.images))
            )

    def attach(model, *densities, left_out="means"):
        settings = actions.Sparsity("gather", tile=16, left_out=left_out)
        policy = pack_module("rapid_core.techniques.sparse_attention.policy").SparsePolicy(
            0.5, settings
        )
        return chain.attach(model, Second(policy, densities))

    return attach


def all_tiles(pack_module, monkeypatch, less=0):
    """Keep every key tile but `less` of them."""
    attention = pack_module("rapid_core.engine.sparse.attention")
    monkeypatch.setattr(attention.SparseAttention, "_unfit", lambda *args: None)
    monkeypatch.setattr(attention, "tiles_kept", lambda density, tiles: tiles - less)


@pytest.mark.parametrize("kind", FROM_FILES + BUILT)
def test_with_all_tiles_kept_it_is_dense_attention_and_with_one_less_it_is_not(
    kind, family, second, record_of, pack_module, make_conditioning, monkeypatch
):
    model, latent = family(kind)
    patched = second(model, 0.5, 0.5)
    for less in (0, 1):
        all_tiles(pack_module, monkeypatch, less)
        dense, found = run_twice(
            patched, (2, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0
        )
        evaluation = record_of(patched).evaluations[1]
        assert evaluation.density == (0.5, 0.5) and not evaluation.reasons
        error = (dense - found).abs().max() / dense.abs().max()
        assert error < 1e-5 if less == 0 else error > 1e-5


@pytest.mark.parametrize("kind", FROM_FILES + BUILT)
def test_a_model_gives_the_same_with_the_masked_reference(
    kind, family, second, pack_module, make_conditioning, monkeypatch, record_of
):
    model, latent = family(kind)
    latent = (
        (128, 24, 24) if kind == "flux2" else latent
    )  # beside its 512 tokens of text fewer are not worth it
    patched = second(model, 0.4, 0.4)
    pictures = []
    for name in ("gather", "masked"):
        backends = pack_module("rapid_core.engine.sparse.backends")
        monkeypatch.setitem(backends.BACKENDS, "gather", backends.BACKENDS[name])
        pictures.append(
            run_twice(patched, (2, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0)[1]
        )
        assert record_of(patched).evaluations[1].density == (0.4, 0.4)
    assert (pictures[0] - pictures[1]).abs().max() < 1e-5 * pictures[0].abs().max()


@pytest.mark.parametrize("kind", FROM_FILES + BUILT)
def test_what_was_left_out_when_measured_makes_the_same_evaluation_dense_again(
    kind, family, second, record_of, pack_module, make_conditioning, monkeypatch
):
    """Both evaluations see the same input, so that the difference that is kept is exact."""
    model, latent = family(kind)
    all_tiles(pack_module, monkeypatch, less=2)

    def run(model):
        return run_twice(model, (2, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0)

    for left_out in ("hold", "means"):
        patched = second(model, 0.4, 0.4, left_out=left_out)
        dense, found = run(patched)
        assert not record_of(patched).evaluations[1].reasons
        error = (dense - found).abs().max() / dense.abs().max()
        assert error < 1e-5 if left_out == "hold" else error > 1e-5
        assert torch.equal(dense, run(model)[0])


@pytest.mark.parametrize("left_out", ["means", "hold"])
@pytest.mark.parametrize("kind", FROM_FILES + BUILT)
def test_the_cost_is_what_torch_counts_and_what_the_formula_promises(
    kind, left_out, family, second, record_of, pack_module, make_conditioning
):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, latent = family(kind)
    latent, text = (
        ((128, 24, 24), 512) if kind == "flux2" else (latent, 16)
    )  # the host pads FLUX.2's prompts
    patched = second(model, 0.4, 0.4, left_out=left_out)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run_twice(patched, (2, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0)
    record = record_of(patched)
    assert record.totals["flops"] == pytest.approx(counter.get_total_flops(), rel=0.02)
    dense, found = record.evaluations
    assert found.cost[0] < found.dense_cost[0] <= dense.cost[0]
    sparsity = pack_module("rapid_core.types").Sparsity("gather", tile=16, left_out=left_out)
    network, cost = model.model.diffusion_model, pack_module("rapid_core.cost")
    architecture = pack_module("rapid_core.architectures").describe(network)
    number = architecture.image_tokens(network, (1, *latent))
    flops = cost.CostModel(network, architecture).flops
    promised = flops(number, text, density=0.4, sparsity=sparsity).dense
    assert 2 * promised == pytest.approx(found.cost[0], rel=1e-6)
    measuring = flops(
        number, text, sparsity=sparsity, measures=0.4 if left_out == "hold" else None
    ).dense
    assert 2 * measuring == pytest.approx(dense.cost[0], rel=1e-6)


def test_images_of_a_batch_may_have_densities_of_their_own(
    second, tiny_sd3, make_conditioning, record_of
):
    def run(model):
        return run_twice(model, (2, 16, 16, 24), make_conditioning(0), make_conditioning(1), 3.0)

    both = second(tiny_sd3, 0.4, 1.0)
    _, found = run(both)
    cost = record_of(both).evaluations[1].cost
    assert cost[0] < cost[1]
    _, thin = run(second(tiny_sd3, 0.4, 0.4))
    dense, _ = run(second(tiny_sd3, 1.0, 1.0))
    wanted = torch.stack((thin[0], dense[1]))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_differences_are_kept_within_the_memory_that_was_promised_and_freed_with_the_run(
    sparse, tiny_flux, record_of, pack_module
):
    patched = sparse(tiny_flux, 0.4, left_out="forecast", refresh_interval=2)
    latent = empty_latent(height=32, width=32)
    sample(patched, latent=latent, steps=8)
    record = record_of(patched)
    marks = [(e.density[0], e.measures[0]) for e in record.evaluations]
    assert marks[:6] == [(1.0, 0.4), (0.4, None), (0.4, None)] * 2
    (said,) = [note for note in record.notes if note.startswith("differences to dense attention")]
    assert "(forecast), conditions: 1" in said
    promised = (
        2 * 256 * tiny_flux.model.diffusion_model.hidden_size * 4 * 4
    )  # points, queries, channels, blocks, bytes
    assert f": {promised / 2**20:.0f} MiB" in said
    assert promised < record.bytes < 1.5 * promised
    held = [
        o
        for o in gc.get_objects()
        if type(o) is pack_module("rapid_core.engine.sparse.residual").SparseResidual
    ]
    assert not held


def test_a_memory_limit_too_small_leaves_the_means_and_says_so(sparse, tiny_flux, record_of):
    latent = empty_latent(height=16, width=24)
    small = sparse(tiny_flux, 0.4, left_out="forecast", memory_limit=1e-6)
    means = sparse(tiny_flux, 0.4, left_out="means")
    assert torch.equal(*(sample(m, latent=latent, steps=6) for m in (small, means)))
    assert (
        "more than memory_limit = 1e-06 GiB: none are kept, means stand in"
        in record_of(small).text()
    )


def test_images_measure_each_their_own_density(second, tiny_sd3, make_conditioning, record_of):
    def run(model):
        return run_twice(model, (2, 16, 16, 24), make_conditioning(0), make_conditioning(1), 3.0)

    both = second(tiny_sd3, 0.4, 1.0, left_out="hold")
    dense, found = run(both)
    first = record_of(both).evaluations[0]
    assert first.measures == (0.4, None) and first.cost[0] > first.cost[1] == first.dense_cost[1]
    assert (found - dense).abs().max() < 1e-4 * dense.abs().max()


def test_density_one_leaves_the_model_alone(sparse, tiny_flux):
    assert sparse(tiny_flux, 1.0) is tiny_flux


def test_blocks_and_steps_may_stay_dense(sparse, tiny_flux, record_of, make_conditioning):
    patched = sparse(tiny_flux, 0.4, dense_first=2, dense_last=2)  # it has four blocks
    latent = empty_latent(height=16, width=24)
    assert torch.equal(sample(patched, latent=latent), sample(tiny_flux, latent=latent))
    patched = sparse(tiny_flux, 0.4, start_percent=0.5)
    sample(patched, latent=latent, positive=make_conditioning(0))
    densities = [e.density[0] for e in record_of(patched).evaluations]
    assert densities[0] == 1.0 and densities[-1] == 0.4
    assert "attention at density 0.4" in record_of(patched).text()


@pytest.mark.parametrize("left_out", ["means", "forecast"])
@pytest.mark.parametrize("kind", ["flux", "sd35", "lumina2"])
def test_it_composes_with_some_tokens_and_with_reuse(
    kind, left_out, sparse, family, comfy_host, pack, record_of
):
    model, latent = family(kind)
    latent = torch.zeros(1, *latent)
    region = comfy_host.run_node(
        "RAPID_RegionAdaptive",
        model=model,
        keep_ratio=0.5,
        preset="custom",
        warm_up=0.2,
        tail=0.1,
        refresh_interval=3,
        drift_threshold=0.0,
        metric="std",
        direction="low",
        starvation=0.3,
        inactive="forecast",
        slope=0.0,
    )[0]
    both = sparse(region, 0.4, left_out=left_out)
    alone, thin = (sample(m, latent=latent, steps=8) for m in (region, both))
    record = record_of(both)
    assert record.totals["partial"] > 2 and torch.isfinite(thin).all()
    assert not torch.equal(alone, thin)
    assert record.totals["flops"] < record_of(region).totals["flops"]
    for level, counted in (("hold", "held"), ("reuse", "reused")):
        less = comfy_host.run_node(
            "RAPID_CacheReuse",
            model=both,
            reuse_threshold=5.0,
            start_percent=0.0,
            end_percent=1.0,
            max_consecutive=3,
            forecast_order=1,
            level=level,
            guard=0.0,
        )[0]
        assert torch.isfinite(sample(less, latent=latent, steps=8)).all()
        assert record_of(less).totals[counted] > 0


def test_small_pictures_stay_dense_and_say_why(sparse, tiny_flux, record_of):
    patched = sparse(tiny_flux, 0.4, tile="64")
    assert torch.equal(sample(patched), sample(tiny_flux))
    record = record_of(patched)
    assert "64 image tokens make 1 tiles of 64" in record.evaluations[0].reasons[0]
    assert record.totals["flops"] == record.totals["dense_flops"]


def test_attention_that_no_backend_makes_sparse_is_reported_as_dense(sparse, tiny_flux, record_of):
    """256 tokens: nothing was measured faster than dense attention, which `auto` then takes."""
    patched = sparse(tiny_flux, 0.25, backend="auto", left_out="forecast", refresh_interval=2)
    latent = empty_latent(height=32, width=32)
    assert torch.equal(
        sample(patched, latent=latent, steps=6), sample(tiny_flux, latent=latent, steps=6)
    )
    record = record_of(patched)
    assert all(e.density == (1.0,) and e.measures == (None,) for e in record.evaluations)
    assert all(e.whole for e in record.evaluations) and record.bytes < 2**20
    said = record.text()
    assert "auto: no sparse attention was measured faster" in said
    assert (
        "at density" not in said.replace("and density", "")
        and "differences to dense attention" not in said
    )


def test_an_unknown_model_is_computed_densely_and_says_so(
    sparse, tiny_flux, record_of, monkeypatch, pack_module
):
    for name in ("rapid_core.comfy.run", "rapid_core.comfy.chain"):
        monkeypatch.setattr(pack_module(name), "describe", lambda model: None)
    patched = sparse(tiny_flux, 0.4)
    latent = empty_latent(height=16, width=24)
    assert torch.equal(sample(patched, latent=latent), sample(tiny_flux, latent=latent))
    assert "not known" in record_of(patched).evaluations[0].reasons[0]


@pytest.mark.parametrize(
    "setting, value, said",
    [
        ("density", 0.0, "density = 0.0 was given; accepted is a number from 0.01 to 1"),
        ("density", 1.5, "density = 1.5"),
        ("dense_first", -1, "dense_first = -1"),
        ("start_percent", 2.0, "start_percent = 2.0"),
        ("backend", "cuda", "accepted is one of auto, gather, flex, xformers, spargeattn"),
        ("backend", "spargeattn", "spargeattn runs on CUDA only"),
        ("tile", "63", "tile = '63'"),
        ("left_out", "zero", "accepted is one of forecast, hold, means, dropped"),
        ("refresh_interval", 0, "refresh_interval = 0"),
        ("memory_limit", -1.0, "memory_limit = -1.0"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_accepted(setting, value, said, sparse, tiny_flux):
    with pytest.raises(ValueError, match="RAPID Sparse Attention") as error:
        sparse(tiny_flux, **{setting: value})
    assert said in str(error.value)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_cost_beside_region_adaptive_is_what_torch_counts(
    cfg, sparse, tiny_sd3, comfy_host, pack, record_of
):
    """Streams are attended to one by one there; what is left out must not be counted for each of
    them twice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    region = comfy_host.run_node(
        "RAPID_RegionAdaptive",
        model=tiny_sd3,
        keep_ratio=0.5,
        preset="custom",
        warm_up=0.2,
        tail=0.1,
        refresh_interval=3,
        drift_threshold=0.0,
        metric="std",
        direction="low",
        starvation=0.3,
        inactive="forecast",
        slope=0.0,
    )[0]
    both = sparse(region, 0.4)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sample(both, latent=torch.zeros(1, 16, 32, 32), steps=8, cfg=cfg)
    record = record_of(both)
    assert record.totals["partial"] > 2
    assert record.totals["flops"] == pytest.approx(counter.get_total_flops(), rel=0.02)
