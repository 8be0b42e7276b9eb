"""RAPID Region Adaptive in the real ComfyUI, memory: what is said and announced before a run, what is
taken in it, its limits, and that nothing is left after it."""

import gc
import weakref

import pytest
import torch

from evaluation.probes import kept_tensors
from rapid_testing.records import codes, the_note
from rapid_testing.safety import even_so
from rapid_testing.sampling import make_conditioning, sample

GIB = 2**30


@pytest.fixture
def bound_runs(pack_module, monkeypatch):
    """The runs of the test, in order."""
    bound_run = pack_module("rapid_core.comfy.bind").BoundRun
    install = bound_run.install
    runs = []

    def watched(self, options):
        runs.append(self)
        return install(self, options)

    monkeypatch.setattr(bound_run, "install", watched)
    return runs


def held_by(run):
    """Bytes of the keys and values that a run holds now."""
    return 0 if run.batched.store is None else run.batched.store.bytes


@pytest.fixture
def cache_of(bound_runs):
    """cache_of(model, **settings): bytes of keys and values that a run was planned to take of the
    device, and most of them during it."""

    def measured(model, **settings):
        held = []
        sample(model, callback=lambda *_: held.append(held_by(bound_runs[-1])), **settings)
        return bound_runs[-1].run.plan.memory, max(held)

    return measured


# Limits.


def test_with_a_memory_limit_too_small_all_tokens_are_computed_with_the_reason(
    tiny_model, region, record_of
):
    patched = region(tiny_model, memory_limit=1e-6)
    assert torch.equal(sample(patched, steps=6), sample(tiny_model, steps=6))
    assert the_note(record_of(patched), "kv_over_limit").params["limit"] == 1e-6
    assert "more than 1e-06 GiB" in record_of(patched).text()
    by_error = {"preset": "per-token error", "error_threshold": 9.0}
    patched = region(tiny_model, memory_limit=1e-6, **by_error)
    sample(patched, steps=6)
    assert "every evaluation computes all tokens or none" in record_of(patched).text()
    assert record_of(patched).totals["partial"] == 0


@pytest.fixture
def device_memory(monkeypatch):
    """device_memory(bytes): how much the model's device has from now on."""
    import comfy.model_management

    def set_to(number):
        def total(*_args, torch_total_too=False, **_named):
            return (number, number) if torch_total_too else number

        monkeypatch.setattr(comfy.model_management, "get_total_memory", total)

    return set_to


def test_by_default_keys_and_values_take_a_quarter_of_the_device(
    tiny_flux, region, record_of, cache_of, device_memory
):
    """What would be more is kept in a smaller way; where none is small enough, all tokens are
    computed."""
    sizes = {}
    pictures = {}
    for kind in ("predict", "last value", "8 bit"):
        patched = region(tiny_flux, kv_cache=kind)
        sizes[kind], _ = cache_of(patched, steps=6)
        pictures[kind] = sample(patched, steps=6)
        assert not codes(record_of(patched)) & {"kv_smaller", "kv_over_limit"}
    for kind, size in sizes.items():
        device_memory(4 * size)
        patched = region(tiny_flux, kv_cache="predict")
        assert cache_of(patched, steps=6) == (size, size)
        assert torch.equal(sample(patched, steps=6), pictures[kind])
        record = record_of(patched)
        assert the_note(record, "kv_memory").params["kind"] == kind
        if kind != "predict":
            note = the_note(record, "kv_smaller")
            assert (note.params["wanted"], note.params["kind"]) == ("predict", kind)
    device_memory(4 * sizes["8 bit"] - 4)
    patched = region(tiny_flux, kv_cache="predict")
    assert cache_of(patched, steps=6) == (0, 0)
    assert torch.equal(sample(patched, steps=6), sample(tiny_flux, steps=6))
    assert the_note(record_of(patched), "kv_over_limit").params["kind"] == "8 bit"
    asked = region(tiny_flux, kv_cache="predict", memory_limit=1.0)  # by the user, who may take all
    assert cache_of(asked, steps=6) == (sizes["predict"], sizes["predict"])


def test_keys_and_values_that_the_device_cannot_keep_are_refused(
    tiny_flux, region, pack_module, monkeypatch
):
    monkeypatch.setattr(
        pack_module("rapid_core.engine.kv.last"), "_has_float8", lambda device: False
    )
    with pytest.raises(
        ValueError, match="RAPID Region Adaptive: kv_cache = '8 bit' was given; "
    ) as e:
        region(tiny_flux, kv_cache="8 bit")
    assert "8 bit needs 8-bit floats, which PyTorch does not have on cpu" in str(e.value)
    assert region(tiny_flux, kv_cache="last value") is not tiny_flux
    assert region(tiny_flux, kv_cache="8 bit", preset="paper") is not tiny_flux  # it takes none


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m_cfg_pp", "euler"])
def test_samplers_that_look_at_the_negative_at_scale_one_are_counted_so(
    tiny_model, region, cache_of, sampler
):
    planned, held = cache_of(region(tiny_model), steps=6, cfg=1.0, sampler=sampler)
    assert planned == held > 0


def test_a_memory_limit_holds_for_cfg_pp(tiny_flux, region, record_of, cache_of):
    settings = {"steps": 6, "cfg": 1.0}
    one, _ = cache_of(region(tiny_flux), **settings)
    patched = region(tiny_flux, memory_limit=1.5 * one / GIB)
    two = cache_of(region(tiny_flux), sampler="euler_cfg_pp", **settings)
    assert two == (2 * one, 2 * one)
    assert cache_of(patched, sampler="euler_cfg_pp", **settings) == (0, 0)
    assert record_of(patched).totals["partial"] == 0
    assert "kv_over_limit" in codes(record_of(patched))
    assert cache_of(patched, **settings) == (one, one)
    assert record_of(patched).totals["partial"] > 0


# What is planned, announced and taken.


@pytest.mark.parametrize("kv_cache", ["predict", "last value", "8 bit", "host memory", "none"])
@pytest.mark.parametrize(
    "kind", ["flux", "sd35", "lumina2", "z_image", "wan", "lumina_next", "flux with a reference"]
)
def test_the_memory_planned_before_is_what_is_taken(kind, kv_cache, family, region, cache_of):
    model, (*rest, height, width) = family(kind.split()[0])
    extra = {"reference_latents": [torch.randn(1, *rest, 8, 8)]} if "reference" in kind else {}
    settings = {"steps": 6, "cfg": 2.0, "positive": make_conditioning(0, **extra)}
    for batch, high in ((1, height), (2, height - 2)):  # an odd number of rows, too
        latent = torch.zeros(batch, *rest, high, width)
        planned, held = cache_of(region(model, kv_cache=kv_cache), latent=latent, **settings)
        if kv_cache == "host memory":  # as much as of `last value`, but none of the device's
            assert planned == 0
            planned, _ = cache_of(region(model), latent=latent, **settings)
        assert planned == held and (held > 0) == (kv_cache != "none")


def shapes_asked(model, monkeypatch):
    """Shapes of latents for which the host asks how much memory a run will take; it names the conds'
    shapes, which RAPID does not when it reckons."""
    reckon = model.model.memory_required
    asked = []

    def watched(shape, **named):
        if "cond_shapes" in named:
            asked.append(tuple(shape))
        return reckon(shape, **named)

    monkeypatch.setattr(model.model, "memory_required", watched)
    return asked


@pytest.mark.parametrize("kind", ["flux", "lumina2", "wan", "lumina_next"])
def test_the_host_is_asked_for_the_memory_of_the_run_and_draws_the_same(
    kind, family, region, bound_runs, pack_module, monkeypatch
):
    model, latent = family(kind)
    settings = {"steps": 6, "latent": torch.zeros(1, *latent)}
    reckon = model.model.memory_required
    asked = shapes_asked(model, monkeypatch)
    announced = sample(region(model), **settings)
    widest = max(asked)
    plain = (2, *latent)  # the host reckons with two conds
    assert widest[:-1] == plain[:-1]
    memory = bound_runs[-1].run.plan.memory + bound_runs[-1].run.plan.histories
    more = reckon(list(widest)) - reckon(list(plain))
    one_column = reckon([*plain[:-1], plain[-1] + 1]) - reckon(list(plain))
    assert 0 < memory <= more + 1e-3 and more - one_column < memory + 1e-3

    asked.clear()
    monkeypatch.setattr(
        pack_module("rapid_core.comfy.memory").Announcement,
        "__call__",
        lambda self, executor, *args, **named: executor(*args, **named),
    )
    assert torch.equal(sample(region(model), **settings), announced)
    assert max(asked) == plain


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name", ["accelerate 2", "skip", "reuse", "per token", "region"])
def test_what_is_announced_is_what_the_report_says_was_held(
    tiny_sd3, patched, record_of, bound_runs, name, cfg
):
    model = even_so(patched(tiny_sd3, name))
    sample(model, steps=14, cfg=cfg, latent=torch.zeros(2, 16, 16, 16))
    plan = bound_runs[-1].run.plan
    assert record_of(model).bytes == plan.memory + plan.histories


@pytest.mark.parametrize("kv_cache", ["none", "host memory"])
def test_what_keeps_no_keys_on_the_device_announces_its_histories_alone(
    tiny_flux, region, bound_runs, kv_cache
):
    sample(region(tiny_flux, kv_cache=kv_cache), steps=6)
    plan = bound_runs[-1].run.plan
    assert plan.memory == 0 and 0 < plan.histories < 20 * 4 * 16**3


def test_a_run_in_which_nothing_may_be_predicted_keeps_and_announces_nothing(
    tiny_flux, accelerate, bound_runs, record_of
):
    held = []
    patched = accelerate(tiny_flux)
    drawn = sample(patched, steps=2, callback=lambda *_: held.append(bound_runs[-1].run.bytes))
    assert "few_steps" in codes(record_of(patched))
    assert held == [0, 0] and bound_runs[-1].run.plan.histories == 0
    assert torch.equal(drawn, sample(tiny_flux, steps=2))


@pytest.mark.parametrize("area", [(8, 8, 0, 0), (16, 16, 0, 4), (16, 16, 0, 0)])
def test_keys_and_values_are_kept_only_where_an_area_is_the_whole_latent(
    tiny_sd3, region, cache_of, record_of, area
):
    patched = region(tiny_sd3)
    positive = make_conditioning(0, area=area)
    _, held = cache_of(patched, steps=6, cfg=2.0, positive=positive)
    whole = area == (16, 16, 0, 0)
    assert (held > 0) == whole == (record_of(patched).totals["partial"] > 0)


# What is left.


@pytest.mark.parametrize("kv_cache", ["predict", "last value"])
def test_what_is_held_of_a_prompt_ends_with_it(tiny_sd3, region, bound_runs, kv_cache):
    def held(positive):
        out = []
        sample(
            region(tiny_sd3, kv_cache=kv_cache),
            steps=12,
            cfg=2.0,
            positive=positive,
            callback=lambda *_: out.append(held_by(bound_runs[-1])),
        )
        return out

    alone = held(make_conditioning(0))
    first = make_conditioning(0, start_percent=0.0, end_percent=0.5)
    second = make_conditioning(3, start_percent=0.5, end_percent=1.0)
    both = held(first + second)
    assert both[-1] == alone[-1] > 0 and both[3] == alone[3]


def live_tensors():
    """Bytes of all tensors that Python can reach."""
    gc.collect()
    seen = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) is torch.Tensor
    }
    return sum(seen.values())


@pytest.mark.parametrize("kv_cache", ["predict", "8 bit"])
@pytest.mark.parametrize("kind", ["flux", "lumina2", "lumina_next"])
def test_a_run_interrupted_at_any_step_leaves_nothing_behind(
    kind, kv_cache, family, region, record_of
):
    import comfy.model_management

    interruption = comfy.model_management.InterruptProcessingException
    model, latent = family(kind)
    settings = {"steps": 8, "latent": torch.zeros(1, *latent)}
    patched = region(model, kv_cache=kv_cache)
    expected = sample(region(model, kv_cache=kv_cache), **settings)
    full = sample(model, **settings)
    before = live_tensors()
    for at in range(8):

        def stop(step, *rest, at=at):
            if step == at:
                raise interruption

        with pytest.raises(interruption):
            sample(patched, callback=stop, **settings)
        assert record_of(patched).status == "interrupted"
        assert live_tensors() <= before + 2**16  # records stay, tensors do not
    assert torch.equal(sample(patched, **settings), expected)
    assert torch.equal(sample(model, **settings), full) and not torch.equal(full, expected)


@pytest.mark.parametrize("kv_cache", ["predict", "8 bit", "last value", "host memory"])
@pytest.mark.parametrize("where", ["between", "within"])
def test_nothing_is_held_while_the_exception_of_a_run_is_handled(
    tiny_flux, region, bound_runs, pack_module, monkeypatch, kv_cache, where
):
    held = []

    def look():  # no part of the traceback
        ours = bound_runs[-1]
        histories = [h for im in ours.run.images for h in (im.guided, *im.conds.values())]
        values = [point.value for history in histories for point in history.points]
        held.extend(map(weakref.ref, kept_tensors(ours.batched.store) + values))

    def merge(self, *args):
        look()
        raise RuntimeError("no more memory")

    def stop(step, *rest):
        if step == 4:
            look()
            raise RuntimeError("no more memory")

    if where == "within":
        monkeypatch.setattr(pack_module("rapid_core.engine.kv").KVStore, "merge", merge)
    try:
        sample(region(tiny_flux, kv_cache=kv_cache), steps=8, callback=stop)
    except RuntimeError:
        gc.collect()
        alive = [ref for ref in held if ref() is not None]
        assert len(held) > 4 and not alive
    assert held


# Newer hosts.


def test_what_is_kept_from_inside_a_block_stays_out_of_the_hosts_record_of_it(
    tiny_model, region, pack_module, monkeypatch
):
    """A stand-in for `pause_malloc_graph` of ComfyUI 0.38 and newer, which end the process where a
    block leaves something behind that they have recorded."""
    import contextlib
    from types import SimpleNamespace

    wanted = sample(region(tiny_model), steps=6)
    paused = []
    kept = []

    @contextlib.contextmanager
    def pause():
        paused.append(True)
        yield
        paused.pop()

    prefetch = SimpleNamespace(pause_malloc_graph=pause)
    monkeypatch.setattr(pack_module("rapid_core.comfy.memory"), "model_prefetch", prefetch)
    subset = pack_module("rapid_core.comfy.token_subset").TokenSubset
    attend = subset.attend

    def watched(self, *args, **named):
        kept.append(bool(paused))
        return attend(self, *args, **named)

    monkeypatch.setattr(subset, "attend", watched)
    assert torch.equal(sample(region(tiny_model), steps=6), wanted)
    assert kept and all(kept) and not paused
