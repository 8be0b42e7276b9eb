"""Sparse attention in the real ComfyUI: on every family, beside the other techniques, and where it
cannot be."""

import dataclasses
import gc

import pytest
import torch

from evaluation.probes import probe, run_twice
from rapid_testing.families import BUILT, FROM_FILES
from rapid_testing.flops import flops_of
from rapid_testing.records import codes, the_note, the_reason
from rapid_testing.sampling import empty_latent, make_conditioning, sample

KINDS = FROM_FILES + BUILT


@pytest.fixture
def sparse(comfy_host, pack):
    """sparse(model, density, **settings): the node's output."""
    inputs = {
        "start_percent": 0.0,
        "end_percent": 1.0,
        "dense_first": 0,
        "dense_last": 0,
        "backend": "gather",
        "left_out": "means",
        "tile": "16",
    }

    def patch(model, density=0.5, **settings):
        values = {**inputs, "density": density, **settings}
        return comfy_host.run_node("RAPID_SparseAttention", model=model, **values)[0]

    return patch


@pytest.fixture
def second(pack_module):
    """second(model, *densities, compensation): every second evaluation has these densities, image by
    image; the others are dense, and measure them where differences are kept."""
    types = pack_module("rapid_core.types")
    attach = pack_module("rapid_core.comfy.chain").attach

    def patch(model, *densities, compensation="means"):
        sparsity = types.Sparsity("gather", tile=16, compensation=compensation)

        def act(observation):
            density = densities[observation.image]
            if observation.index % 2:
                return types.Action(density=density)
            measures = sparsity.keeps_residual and density < 1
            return types.Action(measured_density=density if measures else None)

        return attach(model, probe(types, act, attention=sparsity))

    return patch


def twice(model, latent, batch=2):
    """Both evaluations of `run_twice`, with two prompts."""
    return run_twice(model, (batch, *latent), make_conditioning(0), make_conditioning(1), cfg=3.0)


def worth_it(kind, latent):
    """A latent of which sparse attention saves something: beside the 512 text tokens to which the
    host pads FLUX.2's prompts, fewer image tokens do not."""
    return (128, 24, 24) if kind == "flux2" else latent


def difference(one, other):
    """Largest difference, as a share of the largest value."""
    return ((one - other).abs().max() / one.abs().max()).item()


def all_tiles(pack_module, monkeypatch, less=0):
    """Keep every key tile but `less` of them."""
    attention = pack_module("rapid_core.engine.sparse.attention")
    monkeypatch.setattr(attention.SparseAttention, "_unfit", lambda *args: None)
    monkeypatch.setattr(attention, "tiles_kept", lambda density, tiles: tiles - less)


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_tiles_kept_it_is_dense_attention_and_with_one_less_it_is_not(
    kind, family, second, record_of, pack_module, monkeypatch
):
    model, latent = family(kind)
    patched = second(model, 0.5, 0.5)
    for less in (0, 1):
        all_tiles(pack_module, monkeypatch, less)
        dense, thin = twice(patched, latent)
        evaluation = record_of(patched).evaluations[1]
        assert evaluation.density == (0.5, 0.5) and not evaluation.reasons
        assert (difference(dense, thin) < 1e-5) == (less == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_gives_the_same_with_the_reference(
    kind, family, second, pack_module, monkeypatch, record_of
):
    model, latent = family(kind)
    patched = second(model, 0.4, 0.4)
    backends = pack_module("rapid_core.engine.sparse.backends").BACKENDS
    reference = pack_module("rapid_core.engine.sparse.reference")
    pictures = []
    for attend in (backends["gather"].attend, reference.attend):
        backend = dataclasses.replace(backends["gather"], attend=attend)
        monkeypatch.setitem(backends, "gather", backend)
        pictures.append(twice(patched, worth_it(kind, latent))[1])
        assert record_of(patched).evaluations[1].density == (0.4, 0.4)
    assert difference(*pictures) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_difference_when_measured_makes_the_same_evaluation_dense_again(
    kind, family, second, record_of, pack_module, monkeypatch
):
    """Both evaluations see the same input, so that the difference that is kept is exact."""
    model, latent = family(kind)
    all_tiles(pack_module, monkeypatch, less=2)
    for compensation in ("last value", "means"):
        patched = second(model, 0.4, 0.4, compensation=compensation)
        dense, thin = twice(patched, latent)
        assert not record_of(patched).evaluations[1].reasons
        assert (difference(dense, thin) < 1e-5) == (compensation == "last value")
        assert torch.equal(dense, twice(model, latent)[0])


@pytest.mark.parametrize("compensation", ["means", "last value"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_is_what_torch_counts_and_what_the_formula_promises(
    kind, compensation, family, second, record_of, pack_module
):
    model, latent = family(kind)
    latent = worth_it(kind, latent)
    text = 512 if kind == "flux2" else 16
    patched = second(model, 0.4, 0.4, compensation=compensation)
    counted = flops_of(twice, patched, latent)
    record = record_of(patched)
    assert record.totals["flops"] == pytest.approx(counted, rel=0.02)
    dense, thin = record.evaluations
    assert thin.cost[0] < thin.full_cost[0] <= dense.cost[0]
    sparsity = pack_module("rapid_core.types").Sparsity(
        "gather", tile=16, compensation=compensation
    )
    network = model.model.diffusion_model
    architecture = pack_module("rapid_core.architectures").describe(network)
    number = architecture.image_tokens(network, (1, *latent))
    flops = pack_module("rapid_core.cost").CostModel(network, architecture).flops
    promised = flops(number, text, density=0.4, sparsity=sparsity).full
    assert 2 * promised == pytest.approx(thin.cost[0], rel=1e-6)
    measures = 0.4 if compensation == "last value" else None
    measuring = flops(number, text, sparsity=sparsity, measures=measures).full
    assert 2 * measuring == pytest.approx(dense.cost[0], rel=1e-6)


def test_images_of_a_batch_may_have_densities_of_their_own(second, tiny_sd3, record_of):
    latent = (16, 16, 24)
    both = second(tiny_sd3, 0.4, 1.0)
    _, mixed = twice(both, latent)
    cost = record_of(both).evaluations[1].cost
    assert cost[0] < cost[1]
    _, thin = twice(second(tiny_sd3, 0.4, 0.4), latent)
    dense, _ = twice(second(tiny_sd3, 1.0, 1.0), latent)
    assert difference(torch.stack((thin[0], dense[1])), mixed) < 1e-4


def test_images_measure_each_their_own_density(second, tiny_sd3, record_of):
    both = second(tiny_sd3, 0.4, 1.0, compensation="last value")
    dense, thin = twice(both, (16, 16, 24))
    first = record_of(both).evaluations[0]
    assert first.measured_density == (0.4, None)
    assert first.cost[0] > first.cost[1] == first.full_cost[1]
    assert difference(dense, thin) < 1e-4


def test_differences_are_kept_within_the_memory_that_was_promised_and_freed_with_the_run(
    sparse, tiny_flux, record_of, pack_module
):
    patched = sparse(tiny_flux, 0.4, left_out="predict", refresh_interval=2)
    latent = empty_latent(height=32, width=32)
    sample(patched, latent=latent, steps=8)
    record = record_of(patched)
    marks = [(e.density[0], e.measured_density[0]) for e in record.evaluations]
    assert marks[:6] == [(1.0, 0.4), (0.4, None), (0.4, None)] * 2
    hidden = tiny_flux.model.diffusion_model.hidden_size
    promised = 2 * 256 * hidden * 4 * 4  # points, queries, channels, blocks, bytes
    note = the_note(record, "residual_memory")
    assert note.params == {"mib": f"{promised / 2**20:.0f}", "kind": "predict", "conds": 1}
    assert promised < record.bytes < 1.5 * promised
    residual = pack_module("rapid_core.engine.sparse").SparseResidual
    assert not [o for o in gc.get_objects() if type(o) is residual]


def test_a_memory_limit_too_small_leaves_the_means_and_says_so(sparse, tiny_flux, record_of):
    latent = empty_latent(height=16, width=24)
    small = sparse(tiny_flux, 0.4, left_out="predict", memory_limit=1e-6)
    means = sparse(tiny_flux, 0.4, left_out="means")
    assert torch.equal(*(sample(m, latent=latent, steps=6) for m in (small, means)))
    assert the_note(record_of(small), "residual_over_limit").params["limit"] == 1e-6
    assert "more than 1e-06 GiB: none are kept, means stand in" in record_of(small).text()


def test_density_one_leaves_the_model_alone(sparse, tiny_flux):
    assert sparse(tiny_flux, 1.0) is tiny_flux


def test_blocks_and_steps_may_stay_dense(sparse, tiny_flux, record_of):
    patched = sparse(tiny_flux, 0.4, dense_first=2, dense_last=2)  # it has four blocks
    latent = empty_latent(height=16, width=24)
    assert torch.equal(sample(patched, latent=latent), sample(tiny_flux, latent=latent))
    patched = sparse(tiny_flux, 0.4, start_percent=0.5)
    sample(patched, latent=latent)
    densities = [e.density[0] for e in record_of(patched).evaluations]
    assert densities[0] == 1.0 and densities[-1] == 0.4
    assert "attention at density 0.4" in record_of(patched).text()


@pytest.mark.parametrize("left_out", ["means", "predict"])
@pytest.mark.parametrize("kind", ["flux", "sd35", "lumina2"])
def test_it_composes_with_some_tokens_and_with_reuse(
    kind, left_out, sparse, family, region, comfy_host, record_of
):
    model, latent = family(kind)
    latent = torch.zeros(1, *latent)
    partial = region(model, starvation=0.3, kv_cache="predict")
    both = sparse(partial, 0.4, left_out=left_out)
    alone, thin = (sample(m, latent=latent, steps=8) for m in (partial, both))
    record = record_of(both)
    assert record.totals["partial"] > 2 and torch.isfinite(thin).all()
    assert not torch.equal(alone, thin)
    assert record.totals["flops"] < record_of(partial).totals["flops"]
    for level, counted in (("skip", "skipped"), ("reuse", "reused")):
        (less,) = comfy_host.run_node(
            "RAPID_CacheReuse",
            model=both,
            reuse_threshold=5.0,
            start_percent=0.0,
            end_percent=1.0,
            max_consecutive=3,
            forecast_order=1,
            level=level,
            guard=0.0,
        )
        assert torch.isfinite(sample(less, latent=latent, steps=8)).all()
        assert record_of(less).totals[counted] > 0


def test_small_pictures_stay_dense_and_say_why(sparse, tiny_flux, record_of):
    patched = sparse(tiny_flux, 0.4, tile="64")
    assert torch.equal(sample(patched), sample(tiny_flux))
    record = record_of(patched)
    why = the_reason(record, "attention_dense").params["why"]
    assert why.code == "few_tiles"
    assert why.params == {"tokens": 64, "tiles": 1, "size": 64}
    assert record.totals["flops"] == record.totals["full_flops"]


def test_attention_that_no_backend_makes_sparse_is_reported_as_dense(sparse, tiny_flux, record_of):
    """256 tokens: nothing was measured faster than dense attention, which `auto` then takes."""
    patched = sparse(tiny_flux, 0.25, backend="auto", left_out="predict", refresh_interval=2)
    settings = {"latent": empty_latent(height=32, width=32), "steps": 6}
    assert torch.equal(sample(patched, **settings), sample(tiny_flux, **settings))
    record = record_of(patched)
    assert all(e.density == (1.0,) and e.measured_density == (None,) for e in record.evaluations)
    assert all(e.full for e in record.evaluations) and record.bytes < 2**20
    whys = [r.params["why"].code for e in record.evaluations for r in e.reasons]
    assert set(whys) == {"auto_is_dense"}
    assert "residual_memory" not in codes(record)
    assert "attention at density" not in record.text()


def test_an_unknown_model_is_computed_densely_and_says_so(
    sparse, tiny_flux, record_of, monkeypatch, pack_module
):
    for name in ("facts", "chain"):
        module = pack_module(f"rapid_core.comfy.{name}")
        monkeypatch.setattr(module, "describe", lambda model: None)
    patched = sparse(tiny_flux, 0.4)
    latent = empty_latent(height=16, width=24)
    assert torch.equal(sample(patched, latent=latent), sample(tiny_flux, latent=latent))
    assert the_reason(record_of(patched), "blocks_unknown").params == {"model": "Flux"}


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("density", 0.0, "density = 0.0 was given; accepted is a number from 0.01 to 1"),
        ("density", 1.5, "density = 1.5"),
        ("dense_first", -1, "dense_first = -1"),
        ("start_percent", 2.0, "start_percent = 2.0"),
        ("backend", "cuda", "accepted is one of auto, gather, flex, xformers."),
        ("backend", "xformers", "xformers runs on CUDA only"),
        ("tile", "63", "tile = '63'"),
        ("left_out", "zero", "accepted is one of predict, last value, means, none"),
        ("refresh_interval", 0, "refresh_interval = 0"),
        ("memory_limit", -1.0, "memory_limit = -1.0"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_accepted(setting, value, words, sparse, tiny_flux):
    with pytest.raises(ValueError, match="RAPID Sparse Attention") as error:
        sparse(tiny_flux, **{setting: value})
    assert words in str(error.value)


def test_a_tile_that_the_backend_does_not_take_is_refused(
    sparse, tiny_flux, pack_module, monkeypatch
):
    backends = pack_module("rapid_core.engine.sparse").BACKENDS
    installed = dataclasses.replace(backends["xformers"], missing=lambda device: None)
    monkeypatch.setitem(backends, "xformers", installed)
    words = "RAPID Sparse Attention: tile = '16' was given; xformers takes tiles of 64, 128, not 16"
    with pytest.raises(ValueError, match=words):
        sparse(tiny_flux, backend="xformers", tile="16")
    assert sparse(tiny_flux, backend="xformers", tile="64") is not tiny_flux
    assert sparse(tiny_flux, backend="auto", tile="16") is not tiny_flux


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_cost_beside_region_adaptive_is_what_torch_counts(
    cfg, sparse, tiny_sd3, region, record_of
):
    """Conds are attended to one by one there; what is saved must not be counted for each of them
    twice."""
    both = sparse(region(tiny_sd3, starvation=0.3, kv_cache="predict"), 0.4)
    counted = flops_of(sample, both, latent=torch.zeros(1, 16, 32, 32), steps=8, cfg=cfg)
    record = record_of(both)
    assert record.totals["partial"] > 2
    assert record.totals["flops"] == pytest.approx(counted, rel=0.02)
