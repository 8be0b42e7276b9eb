"""Cache Reuse in the real ComfyUI, on tiny random models."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from rapid_testing.safety import even_so
from rapid_testing.sampling import empty_latent, make_conditioning

LATENT = empty_latent()
SAMPLERS = [
    "euler",
    "heun",
    "heunpp2",
    "dpmpp_2m",
    "res_multistep",
    "uni_pc",
    "dpm_2",
    "euler_ancestral",
    "dpmpp_2m_sde",
]


@pytest.fixture
def cache_reuse(pack_module):
    """cache_reuse(model, **settings): the node's output model."""
    node = pack_module("nodes.cache_reuse").CacheReuse

    def patch(model, **settings):
        defaults = dict(
            reuse_threshold=4.0,
            start_percent=0.0,
            end_percent=1.0,
            max_consecutive=3,
            forecast_order=1,
            level="skip",
            guard=0.0,  # predictions on random weights are bad
        )
        return node.execute(model, **{**defaults, **settings}).args[0]

    return patch


@pytest.fixture
def last_record(pack_module):
    """last_record(model): the latest run's record."""
    chain_of = pack_module("rapid_core.comfy.chain").chain_of
    return lambda model: chain_of(model).log.records[-1]


def codes_of(record):
    """Codes of all reasons why something was computed in full."""
    return {reason.code for e in record.evaluations for reason in e.reasons}


def guided(**extra):
    """Settings of a run with classifier-free guidance and conditionings of its own."""
    return {"cfg": 3.0, "positive": make_conditioning(0), "negative": make_conditioning(1), **extra}


def test_threshold_zero_leaves_the_model_untouched(tiny_model, cache_reuse):
    patched = cache_reuse(tiny_model, reuse_threshold=0.0)
    assert patched is tiny_model
    assert "rapid" not in patched.model_options.get("transformer_options", {})


@pytest.mark.parametrize("level", ["skip", "reuse"])
def test_a_threshold_too_small_to_skip_is_the_full_run_bit_for_bit(
    tiny_model, cache_reuse, sample, last_record, level
):
    full = sample(tiny_model, steps=6, **guided())
    patched = even_so(cache_reuse(tiny_model, reuse_threshold=1e-9, level=level))
    assert torch.equal(sample(patched, steps=6, **guided()), full)
    assert last_record(patched).totals["computed"] == 6


@pytest.mark.parametrize("level", ["skip", "reuse"])
def test_evaluations_are_skipped_and_later_full_runs_are_full(
    tiny_model, cache_reuse, sample, last_record, level
):
    full = sample(tiny_model, steps=12, **guided())
    patched = cache_reuse(tiny_model, level=level)
    fast = sample(patched, steps=12, **guided())
    totals = last_record(patched).totals
    assert totals["skipped" if level == "skip" else "reused"] > 2
    assert totals["computed"] + totals["skipped"] + totals["reused"] == totals["evaluations"] == 12
    assert totals["speedup_theoretical"] > 1.2
    assert torch.isfinite(fast).all() and not torch.equal(fast, full)
    assert torch.equal(sample(tiny_model, steps=12, **guided()), full)


def eulers_steps(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's, under a name that nothing is known of: what skipped steps were given is not
    corrected."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
        x = x + (sigmas[i + 1] - sigmas[i]) * (x - denoised) / sigmas[i]
    return x


def test_skipping_at_order_zero_along_euler_is_one_larger_step(
    tiny_flux, cache_reuse, sample, last_record, comfy_host
):
    """With every second derivative the last one, Euler's two steps are algebraically one from the
    first to the last sigma."""
    import comfy.model_management
    import comfy.samplers

    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.0])
    patched = even_so(
        cache_reuse(tiny_flux, reuse_threshold=10.0, forecast_order=0, max_consecutive=1)
    )

    def run(model, schedule):
        noise = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(0))
        return comfy.samplers.sample(
            model,
            noise,
            make_conditioning(0),
            make_conditioning(1),
            1.0,
            model.load_device,
            comfy.samplers.KSAMPLER(eulers_steps),
            schedule,
            model.model_options,
            latent_image=LATENT,
            seed=0,
        )

    fast = run(patched, sigmas)
    modes = [e.modes[0] for e in last_record(patched).evaluations]
    assert modes == ["run", "run", "skip", "run"]
    assert torch.allclose(fast, run(tiny_flux, torch.tensor([1.0, 0.8, 0.3, 0.0])), atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_evaluation_of_every_sampler_is_accounted_for(
    tiny_model, cache_reuse, sample, last_record, sampler
):
    calls = []
    model = tiny_model.clone()
    model.set_model_unet_function_wrapper(
        lambda f, a: calls.append(1) or f(a["input"], a["timestep"], **a["c"])
    )
    sample(model, sampler=sampler, steps=10, **guided())
    due = len(calls)
    calls.clear()
    patched = even_so(cache_reuse(model))
    out = sample(patched, sampler=sampler, steps=10, **guided())
    totals = last_record(patched).totals
    assert torch.isfinite(out).all()
    assert totals["computed"] == len(calls)
    if sampler != "dpm_adaptive":  # whose steps follow from what it is given
        assert totals["evaluations"] == due


def test_a_sampler_that_comes_back_to_sigmas_may_be_predicted_by_a_parabola(
    tiny_model, cache_reuse, sample
):
    out = sample(cache_reuse(tiny_model, forecast_order=2, guard=0.0), sampler="heunpp2", steps=10)
    assert torch.isfinite(out).all()


@pytest.fixture
def attach_modes(pack_module):
    """attach_modes(model, mode_of): a MODEL whose policy asks for mode_of(index, image), the name of
    a mode, in every evaluation."""
    types = pack_module("rapid_core.types")
    chain = pack_module("rapid_core.comfy.chain")

    @dataclass(frozen=True, kw_only=True)
    class Modes(types.Policy):
        technique: ClassVar[str] = "modes of a test"
        mode_of: Callable

        @property
        def requirements(self):
            return types.Requirements(modes=frozenset(types.Mode), prediction_order=1)

        def start(self, window, image=0):
            return ModesActor(self.mode_of)

        def to_record(self):
            return {"technique": self.technique}

    class ModesActor(types.Actor):
        def __init__(self, mode_of):
            self.mode_of = mode_of

        def act(self, observation):
            mode = self.mode_of(observation.index, observation.image)
            return types.Action(types.Mode(mode))

    return lambda model, mode_of: chain.attach(model, Modes(mode_of=mode_of))


def test_images_of_a_batch_decide_for_themselves(tiny_model, attach_modes, sample, last_record):
    def mode_of(index, image):
        return ("run", "skip", "reuse")[image] if index in (4, 6) else "run"

    latent = empty_latent(batch=3)
    patched = attach_modes(tiny_model, mode_of)
    settings = guided(positive=make_conditioning(0, batch=3), latent=latent)
    mixed = sample(patched, steps=8, **settings)
    full = sample(tiny_model, steps=8, **settings)
    record = last_record(patched)
    assert record.evaluations[4].modes == ("run", "skip", "reuse")
    assert torch.allclose(mixed[0], full[0], atol=1e-4)
    assert not torch.allclose(mixed[1], full[1], atol=1e-4)
    assert not torch.allclose(mixed[2], full[2], atol=1e-4)
    cost = record.evaluations[4].cost
    assert cost[1] == 0 and 0 < cost[2] < 0.2 * cost[0]


def test_joined_and_split_conds_give_the_same_picture(
    tiny_sd3, cache_reuse, sample, last_record, monkeypatch
):
    joined_model = cache_reuse(tiny_sd3)
    joined = sample(joined_model, steps=12, **guided())
    import comfy.samplers

    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    split_model = cache_reuse(tiny_sd3)
    split = sample(split_model, steps=12, **guided())
    decisions = [[e.modes for e in last_record(m).evaluations] for m in (joined_model, split_model)]
    assert decisions[0] == decisions[1]
    assert torch.allclose(joined, split, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["skip", "reuse"])
def test_prompts_of_different_lengths_are_handled(
    tiny_model, cache_reuse, sample, last_record, level
):
    patched = cache_reuse(tiny_model, level=level)
    out = sample(patched, steps=12, **guided(negative=make_conditioning(1, tokens=24)))
    assert torch.isfinite(out).all()
    assert last_record(patched).totals["computed"] < 12


@pytest.mark.parametrize("change", ["steps", "seed", "size", "batch", "prompt"])
def test_no_state_outlives_a_run(tiny_model, cache_reuse, sample, change):
    settings = dict(steps=10, seed=1)
    other = {
        "steps": dict(steps=7),
        "seed": dict(seed=9),
        "size": dict(latent=empty_latent(height=12, width=20)),
        "batch": dict(latent=empty_latent(batch=2)),
        "prompt": dict(positive=make_conditioning(5)),
    }[change]
    wanted = sample(cache_reuse(tiny_model), **guided(**{**settings, **other}))
    reused = cache_reuse(tiny_model)
    sample(reused, **guided(**settings))
    assert torch.equal(sample(reused, **guided(**{**settings, **other})), wanted)


def test_an_interrupted_run_leaves_nothing_behind(
    tiny_model, cache_reuse, sample, last_record, comfy_host
):
    import comfy.model_management

    wanted = sample(cache_reuse(tiny_model), steps=10, **guided())
    patched = cache_reuse(tiny_model)

    def stop(step, *_):
        if step == 5:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(patched, steps=10, callback=stop, **guided())
    assert last_record(patched).status == "interrupted"
    assert torch.equal(sample(patched, steps=10, **guided()), wanted)


def test_a_foreign_block_patch_makes_reuse_full_and_the_report_says_so(
    tiny_flux, cache_reuse, sample, last_record
):
    model = tiny_flux.clone()
    model.set_model_patch_replace(
        lambda args, extra: extra["original_block"](args), "dit", "double_block", 1
    )
    patched = cache_reuse(model, level="reuse")
    full = sample(model, steps=8, **guided())
    assert torch.equal(sample(patched, steps=8, **guided()), full)
    (reason,) = {r for e in last_record(patched).evaluations for r in e.reasons}
    assert (reason.code, reason.params) == ("block_replaced", {"block": "double_block 1"})
    assert "another node replaced double_block 1" in last_record(patched).text()


def test_a_batch_is_not_split_where_a_foreign_patch_may_keep_rows(
    tiny_flux, attach_modes, sample, last_record, comfy_host
):
    """As the host's FluxKVCache does, which gives the first image's keys to whatever part of the
    batch it meets."""

    def mode_of(index, image):
        return "skip" if index > 2 and (image + index) % 3 else "run"

    rows, model = [], tiny_flux.clone()
    model.set_model_attn1_patch(
        lambda q, k, v, **extra: rows.append(q.shape[0]) or {"q": q, "k": k, "v": v}
    )
    latent = empty_latent(batch=2)
    sample(model, steps=1, latent=latent)
    if not rows:
        pytest.skip(f"FLUX has attn1_patch in a later ComfyUI than {comfy_host.version}")
    patched = attach_modes(model, mode_of)
    sample(patched, steps=9, latent=latent)
    assert set(rows) == {2} and last_record(patched).totals["skipped"] > 0
    (reason,) = {r for e in last_record(patched).evaluations for r in e.reasons}
    assert (reason.code, reason.params) == ("blocks_patched", {"patches": "attn1_patch"})
    plain = attach_modes(tiny_flux, mode_of)
    sample(plain, steps=9, latent=latent)
    split = [e.modes for e in last_record(plain).evaluations]
    assert any(len(set(modes)) == 2 for modes in split)


def test_a_foreign_conditioning_function_is_yielded_to(tiny_sd3, cache_reuse, sample, last_record):
    import comfy.samplers

    model = tiny_sd3.clone()
    model.set_model_sampler_calc_cond_batch_function(
        lambda a: comfy.samplers.calc_cond_batch(
            a["model"], a["conds"], a["input"], a["sigma"], a["model_options"]
        )
    )
    patched = cache_reuse(model)
    assert torch.equal(sample(patched, steps=8, **guided()), sample(model, steps=8, **guided()))
    assert codes_of(last_record(patched)) == {"foreign_cond_batch"}
    assert "sampler_calc_cond_batch_function" in last_record(patched).text()


def test_the_same_technique_twice_the_later_wins(tiny_flux, cache_reuse, sample, last_record):
    patched = cache_reuse(cache_reuse(tiny_flux, reuse_threshold=0.5), reuse_threshold=1e-9)
    sample(patched, steps=8)
    record = last_record(patched)
    assert record.totals["computed"] == 8
    assert [(n.code, n.params) for n in record.notes if n.code == "set_twice"] == [
        ("set_twice", {"technique": "cache_reuse"})
    ]
    assert len(patched.get_wrappers("outer_sample", "rapid")) == 1


def test_a_clone_with_another_setting_does_not_disturb_the_first(tiny_flux, cache_reuse, sample):
    wanted = sample(cache_reuse(tiny_flux, reuse_threshold=2.0), steps=10)
    first = cache_reuse(tiny_flux, reuse_threshold=2.0)
    second = cache_reuse(tiny_flux, reuse_threshold=5.0, level="reuse")
    sample(second, steps=10)
    assert torch.equal(sample(first, steps=10), wanted)


def test_a_masked_latent_and_a_partial_denoise_sample(tiny_model, cache_reuse, sample, last_record):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12] = 1
    patched = cache_reuse(tiny_model)
    out = sample(
        patched,
        steps=12,
        denoise=0.7,
        noise_mask=mask,
        latent=torch.randn(LATENT.shape),
        **guided(),
    )
    assert torch.isfinite(out).all()
    assert last_record(patched).totals["skipped"] > 0


def test_a_conditioning_that_starts_late_is_computed_first(
    tiny_sd3, cache_reuse, sample, last_record
):
    late = make_conditioning(3, start_percent=0.5, end_percent=1.0)
    early = make_conditioning(4, start_percent=0.0, end_percent=0.5)
    patched = cache_reuse(tiny_sd3, reuse_threshold=9.0, max_consecutive=9, forecast_order=1)
    out = sample(patched, steps=16, **guided(positive=early + late))
    assert torch.isfinite(out).all()
    assert codes_of(last_record(patched)) == {"cond_without_history"}


@pytest.mark.parametrize("level, order", [("skip", 1), ("reuse", 0)])
@pytest.mark.parametrize("where", [0, 1, -1])
def test_where_a_range_ends_on_a_sigma_of_the_schedule_the_host_says_who_is_active(
    tiny_sd3, cache_reuse, sample, pack_module, monkeypatch, level, order, where
):
    """The host compares in single precision: both of two conditionings that meet there run. where: of
    the bound, in units of a double's rounding."""
    import comfy.samplers

    sampling = tiny_sd3.get_model_object("model_sampling")
    meeting = comfy.samplers.calculate_sigmas(sampling, "simple", 16)[6].item()
    bound = meeting * (1 + where * 1e-9)
    own = type(sampling).percent_to_sigma
    monkeypatch.setattr(
        type(sampling), "percent_to_sigma", lambda s, p: bound if p == 0.375 else own(s, p)
    )
    late = make_conditioning(3, start_percent=0.375, end_percent=1.0)
    early = make_conditioning(4, start_percent=0.0, end_percent=0.375)
    conditions, seen = pack_module("rapid_core.comfy.conditions"), []
    real = conditions.cond_key
    monkeypatch.setattr(
        conditions, "cond_key", lambda i, c, *a: seen.append(real(i, c, *a)) or seen[-1]
    )
    patched = cache_reuse(
        tiny_sd3, reuse_threshold=9.0, max_consecutive=2, forecast_order=order, level=level
    )
    out = sample(patched, steps=16, **guided(positive=early + late))
    assert torch.isfinite(out).all()
    numbers = [len(key[1]) for key in seen if key[0] == 0]
    assert numbers[:16].count(2) == 1 and set(numbers) == {1, 2}


def test_a_conditioning_counts_as_the_host_counts_it(pack_module):
    """Against the host's own comparison, at sigmas next to the bounds."""
    is_active = pack_module("rapid_core.comfy.conditions").is_active
    for bound in (0.75, 0.7500000001, 0.3, 1 / 3, 0.8571428571428572):
        middle = torch.tensor(bound)
        for sigma in (middle, *(torch.nextafter(middle, torch.tensor(to)) for to in (0.0, 1.0))):
            assert is_active({"timestep_start": bound}, sigma.item()) == (not bool(sigma > bound))
            assert is_active({"timestep_end": bound}, sigma.item()) == (not bool(sigma < bound))


def test_a_window_that_ends_before_it_begins_is_refused(tiny_flux, cache_reuse):
    with pytest.raises(ValueError, match="start_percent = 0.8 was given with end_percent = 0.2"):
        cache_reuse(tiny_flux, start_percent=0.8, end_percent=0.2)


def test_outside_its_part_of_the_schedule_everything_is_computed(
    tiny_sd3, cache_reuse, sample, last_record
):
    patched = cache_reuse(
        tiny_sd3, reuse_threshold=10.0, start_percent=0.3, end_percent=0.7, guard=0.0
    )
    sample(patched, steps=20)
    skipped = [e.sigma for e in last_record(patched).evaluations if e.modes[0] == "skip"]
    sigma = tiny_sd3.get_model_object("model_sampling").percent_to_sigma
    assert len(skipped) > 2 and sigma(0.7) <= min(skipped) <= max(skipped) <= sigma(0.3)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("reuse_threshold", -1, "from 0 to 10"),
        ("reuse_threshold", float("nan"), "from 0 to 10"),
        ("start_percent", 1.5, "start_percent"),
        ("max_consecutive", 0, "from 1 to 100"),
        ("forecast_order", 3, "a whole number from 0 to 2"),
        ("level", "sometimes", "skip, reuse"),
    ],
)
def test_bad_settings_are_refused_with_what_is_accepted(
    tiny_flux, cache_reuse, setting, value, words
):
    with pytest.raises(ValueError, match=words):
        cache_reuse(tiny_flux, **{setting: value})


def test_the_report_finds_the_run_of_its_latent(tiny_flux, cache_reuse, sample, pack_module):
    report = pack_module("nodes.report").Report
    patched = cache_reuse(tiny_flux)
    first = sample(patched, steps=6)
    sample(patched, steps=9)
    out = report.execute(patched, {"samples": first})
    assert "of 6 evaluations computed" in out.args[1]
    assert torch.equal(out.args[0]["samples"], first)
    assert "no RAPID node" in report.execute(tiny_flux, {"samples": first}).args[1]


def test_the_report_of_a_latent_that_its_model_did_not_make_has_no_numbers(
    tiny_flux, cache_reuse, sample, pack_module
):
    """As where the report's model is taken before the last RAPID node: what it ran earlier is
    another workflow's."""
    report = pack_module("nodes.report").Report
    first = cache_reuse(tiny_flux)
    other = {"samples": sample(cache_reuse(first), steps=6)}
    assert "was not made by a run of this model" in report.execute(first, other).args[1]
    sample(first, steps=9)
    out = report.execute(first, other)
    assert "was not made by a run of this model" in out.args[1] and out.args[3] is None
    assert "Connect the model output of the last RAPID node" in out.args[1]
    assert not any(character.isdigit() for character in out.args[1])
    assert out.ui["rapid_record"] == out.ui["rapid_summary"] == out.ui["rapid_map"] == []
    assert json.loads(out.ui["rapid_reason"][0])["code"] == "other_latent"


@pytest.mark.parametrize("level", ["skip", "reuse"])
def test_a_second_look_at_a_conditioning_changes_no_history(
    tiny_sd3, cache_reuse, sample, last_record, level
):
    """Skip-layer guidance evaluates the prompt again with other options, in a post-CFG function."""
    import comfy.samplers

    calls = []

    def with_second_look(options_of):
        model = tiny_sd3.clone()

        def look_again(args):
            options = options_of(args["model_options"])
            look = (args["model"], [args["cond"]], args["input"], args["sigma"], options)
            calls.append(comfy.samplers.calc_cond_batch(*look))
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(look_again)
        return cache_reuse(model, level=level)

    def noisy(options):
        replace = {
            ("double_block", 1): lambda args, extra: {"img": args["img"] * 3, "txt": args["txt"]}
        }
        patched = {**options["transformer_options"], "patches_replace": {"dit": replace}}
        return {**options, "transformer_options": patched}

    wanted = sample(cache_reuse(tiny_sd3, level=level), steps=10, **guided())
    model = with_second_look(noisy)
    assert torch.equal(sample(model, steps=10, **guided()), wanted)
    assert len(calls) == 10 and last_record(model).totals["computed"] < 10


def test_a_latent_of_another_family_is_refused_in_words(tiny_flux, cache_reuse, sample):
    with pytest.raises(ValueError, match="latent of 4 channels was given; Flux takes 16"):
        sample(cache_reuse(tiny_flux), latent=torch.randn(1, 4, 16, 16))


def test_batched_control_residuals_are_split_with_the_images(
    tiny_flux, cache_reuse, sample, pack_module
):
    """ControlNet's residuals arrive as lists of tensors, one row an image of every conditioning."""
    rows_module = pack_module("rapid_core.comfy.batch_rows")
    take_rows = rows_module.take_rows
    rows = torch.tensor([1, 3])
    control = {"input": [torch.arange(4.0).view(4, 1, 1), None], "output": [torch.zeros(1, 2, 3)]}
    out = take_rows(control, rows, 4)
    assert out["input"][0].flatten().tolist() == [1.0, 3.0] and out["input"][1] is None
    assert out["output"][0].shape == (1, 2, 3)
    with pytest.raises(rows_module.NotSliceable) as refused:
        take_rows({"y": torch.zeros(3, 2)}, rows, 4)
    reason = refused.value.reason
    assert (reason.code, reason.params) == ("other_rows", {"given": 3, "expected": 4})


def test_a_run_tells_on_its_node_how_it_goes_on(
    comfy_host, pack, pack_module, tiny_flux, sample, monkeypatch
):
    """As a browser sees it: a line an evaluation, on the node that patched the model last."""
    from comfy_api.latest import io

    told = []

    class Browser:
        client_id = "a browser"
        sockets_metadata = {
            "a browser": {"feature_flags": {"supports_preview_metadata": True}},
            "a script": {"feature_flags": {}},
        }

        def send_progress_text(self, *arguments):
            told.append(arguments)

    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_CacheReuse"]
    settings = dict(
        reuse_threshold=9.0,
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=1,
        forecast_order=1,
        level="skip",
        guard=0.0,
    )
    data = {"hidden_inputs": {io.Hidden.unique_id: "7:3"}}
    patched = node.PREPARE_CLASS_CLONE(data).execute(tiny_flux, **settings).args[0]
    sample(patched, steps=8)
    assert not told  # nobody looks
    monkeypatch.setitem(
        sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=Browser()))
    )
    sample(patched, steps=8)
    lines = [text for text, *_ in told]
    assert len(lines) == 8 and all(rest == ["7:3", "a browser"] for _, *rest in told)
    Browser.client_id = "a script"
    sample(patched, steps=8)
    assert len(told) == 8  # it would take the message for a picture
    record = pack_module("rapid_core.comfy.chain").chain_of(patched).log.records[-1]
    skipped, speed = record.totals["skipped"], record.totals["speedup_theoretical"]
    assert lines[0] == "1/8 · 0 skipped · 1.0x"
    assert skipped and lines[-1] == f"8/8 · {skipped} skipped · {speed:.1f}x"
    told.clear()
    Browser.client_id = "a browser"
    sample(patched, steps=4, sampler="heun")
    assert [text.split()[0] for text, *_ in told] == [f"{i}/4" for i in (1, 2, 2, 3, 3, 4, 4)]
