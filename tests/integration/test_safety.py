"""Where skipping is not safe, everything is computed and one plain line says why, unless it is asked
for even so."""

import json
import math

import pytest
import torch

from rapid_testing.safety import even_so
from rapid_testing.sampling import empty_latent, make_conditioning, sample

STEPS = 12
EULER = "EULER"
ONE = "ONE_EVALUATION"
SEVERAL = "SEVERAL_EVALUATIONS"
NOISE = "ADDS_NOISE"
KINDS = {
    "euler": EULER,
    "euler_cfg_pp": ONE,  # along the negative's derivative
    "euler_ancestral": NOISE,
    "euler_ancestral_cfg_pp": NOISE,
    "heun": SEVERAL,
    "heunpp2": SEVERAL,
    "exp_heun_2_x0": SEVERAL,
    "exp_heun_2_x0_sde": NOISE,
    "dpm_2": SEVERAL,
    "dpm_2_ancestral": NOISE,
    "lms": ONE,
    "dpm_fast": "OWN_SIGMAS",
    "dpm_adaptive": "OWN_SIGMAS",
    "dpmpp_2s_ancestral": NOISE,
    "dpmpp_2s_ancestral_cfg_pp": NOISE,
    "dpmpp_sde": NOISE,
    "dpmpp_sde_gpu": NOISE,
    "dpmpp_2m": ONE,
    "dpmpp_2m_cfg_pp": ONE,
    "dpmpp_2m_sde": NOISE,
    "dpmpp_2m_sde_gpu": NOISE,
    "dpmpp_2m_sde_heun": NOISE,
    "dpmpp_2m_sde_heun_gpu": NOISE,
    "dpmpp_3m_sde": NOISE,
    "dpmpp_3m_sde_gpu": NOISE,
    "ddpm": NOISE,
    "lcm": NOISE,
    "ipndm": ONE,
    "ipndm_v": ONE,
    "deis": ONE,
    "res_multistep": ONE,
    "res_multistep_cfg_pp": ONE,
    "res_multistep_ancestral": NOISE,
    "res_multistep_ancestral_cfg_pp": NOISE,
    "gradient_estimation": ONE,
    "gradient_estimation_cfg_pp": ONE,
    "er_sde": ONE,  # adds noise, and can be predicted
    "seeds_2": NOISE,
    "seeds_3": NOISE,
    "sa_solver": NOISE,
    "sa_solver_pece": NOISE,
    "ddim": EULER,  # the host's euler
    "uni_pc": ONE,
    "uni_pc_bh2": ONE,
}


@pytest.fixture
def facts(pack_module):
    return pack_module("rapid_core.comfy.sampler_facts")


@pytest.fixture
def cache_reuse(pack_module):
    node = pack_module("nodes.cache_reuse").CacheReuse

    def patch(model, **settings):
        defaults = dict(
            reuse_threshold=4.0,
            start_percent=0.0,
            end_percent=1.0,
            max_consecutive=3,
            forecast_order=1,
            level="skip",
            guard=0.0,
        )
        return node.execute(model, **{**defaults, **settings}).args[0]

    return patch


def test_every_sampler_of_the_host_is_known(facts):
    """One that is not here is new: say what it does."""
    import comfy.samplers

    assert set(comfy.samplers.SAMPLER_NAMES) <= set(KINDS)
    found = {
        name: facts.sampler_kind(comfy.samplers.sampler_object(name), (1.0, 0.5, 0.0)).name
        for name in comfy.samplers.SAMPLER_NAMES
    }
    assert found == {name: KINDS[name] for name in found}


def test_samplers_that_make_small_errors_large_are_known(facts):
    """All of cfg++, which go along another derivative than they are given, dpm_fast, dpm_adaptive, and
    those that go by four derivatives in a row."""
    import comfy.samplers

    found = {
        name
        for name in comfy.samplers.SAMPLER_NAMES
        if facts.is_sensitive(comfy.samplers.sampler_object(name))
    }
    wanted = {name for name in comfy.samplers.SAMPLER_NAMES if name.endswith("_cfg_pp")}
    assert found == wanted | {"dpm_fast", "dpm_adaptive", "lms", "ipndm", "ipndm_v"}


def test_every_sampler_of_the_host_is_said_by_its_name(facts):
    import comfy.samplers

    for name in comfy.samplers.SAMPLER_NAMES:
        shown = facts.sampler_name(comfy.samplers.sampler_object(name))
        assert shown == ("euler" if name == "ddim" else name)


def test_every_sampler_function_of_the_host_is_known(facts):
    """Those that no name stands for, too. ar_video is computed in full for another reason."""
    from comfy.k_diffusion import sampling

    names = {name for name in vars(sampling) if name.startswith("sample_")}
    names -= {"sample_ar_video", "sample_euler_ancestral_RF", "sample_dpm_2_ancestral_RF"}
    names -= {"sample_dpmpp_2s_ancestral_RF"}  # the three are what the plain ones call
    unknown = {
        name for name in names if facts.sampler_kind(getattr(sampling, name)).name == "UNKNOWN"
    }
    assert not unknown


@pytest.mark.parametrize(
    "node, settings, kind",
    [
        ("SamplerEulerAncestral", dict(eta=0.0, s_noise=1.0), EULER),
        ("SamplerEulerAncestral", dict(eta=0.5, s_noise=1.0), NOISE),
        ("SamplerEulerAncestralCFGPP", dict(eta=0.0, s_noise=1.0), ONE),
        ("SamplerEulerCFGpp", dict(version="regular"), ONE),
        ("SamplerEulerCFGpp", dict(version="alternative"), ONE),
        ("SamplerLMS", dict(order=4), ONE),
        ("SamplerLCM", dict(s_noise=1.0, s_noise_end=1.0, noise_clip_std=0.0), NOISE),
        ("SamplerLCMUpscale", dict(scale_ratio=2.0, scale_steps=-1, upscale_method="area"), NOISE),
        ("SamplerER_SDE", dict(solver_type="ER-SDE", max_stage=3, eta=1.0, s_noise=1.0), ONE),
        ("SamplerER_SDE", dict(solver_type="ODE", max_stage=3, eta=1.0, s_noise=1.0), ONE),
        ("SamplerSEEDS2", dict(solver_type="phi_2", eta=0.0, s_noise=1.0, r=1.0), SEVERAL),
        ("SamplerSEEDS2", dict(solver_type="phi_2", eta=1.0, s_noise=1.0, r=1.0), NOISE),
    ],
)
def test_samplers_of_the_hosts_nodes_are_told_by_their_settings(
    comfy_host, facts, node, settings, kind
):
    comfy_host.load_core_nodes("nodes_custom_sampler.py")
    comfy_host.load_core_nodes("nodes_advanced_samplers.py")
    if node not in comfy_host.nodes.NODE_CLASS_MAPPINGS:
        pytest.skip(f"{node} came with a later ComfyUI than {comfy_host.version}")
    (sampler,) = comfy_host.run_node(node, **settings)
    assert facts.sampler_kind(sampler, (1.0, 0.5, 0.0)).name == kind


# What a run does and says.

UNSAFE = [
    (dict(sampler="lcm", steps=STEPS), ("sampler_adds_noise", {"sampler": "lcm"})),
    (
        dict(sampler="dpmpp_2m_cfg_pp", steps=STEPS),
        ("sampler_sensitive", {"sampler": "dpmpp_2m_cfg_pp"}),
    ),
    (
        dict(sampler="euler_ancestral", steps=STEPS),
        ("sampler_adds_noise", {"sampler": "euler_ancestral"}),
    ),
    (
        dict(sampler="dpmpp_2m_sde", steps=STEPS),
        ("sampler_adds_noise", {"sampler": "dpmpp_2m_sde"}),
    ),
    (dict(steps=1), ("few_steps", {"steps": 1, "few": 6})),
    (dict(steps=4), ("few_steps", {"steps": 4, "few": 6})),
    (dict(steps=6), ("few_steps", {"steps": 6, "few": 6})),
    (dict(sampler="lcm", steps=4), ("few_steps", {"steps": 4, "few": 6})),
]


@pytest.mark.parametrize("settings, said", UNSAFE)
@pytest.mark.parametrize("node", ["accelerate", "skip", "reuse"])
def test_where_skipping_is_not_safe_the_picture_is_the_full_one(
    accelerate, cache_reuse, tiny_sd3, record_of, comfy_host, node, settings, said
):
    patched = accelerate(tiny_sd3) if node == "accelerate" else cache_reuse(tiny_sd3, level=node)
    found = sample(patched, cfg=2.0, **settings)
    assert torch.equal(found, sample(tiny_sd3, cfg=2.0, **settings))
    record = record_of(patched)
    assert set(record.strip(0)) == {"#"} and record.totals["skipped"] == 0
    assert [(note.code, note.params) for note in record.notes] == [said]
    words = comfy_host.run_node("RAPID_Report", model=patched, latent={"samples": found})[1]
    assert "nothing is skipped" in words


@pytest.mark.parametrize("settings", [settings for settings, _ in UNSAFE if settings["steps"] > 1])
def test_even_so_steps_are_skipped(accelerate, cache_reuse, tiny_sd3, record_of, settings):
    for patched in (even_so(accelerate(tiny_sd3)), even_so(cache_reuse(tiny_sd3))):
        sample(patched, cfg=2.0, **settings)
        assert record_of(patched).totals["skipped"] > 0
        codes = {note.code for note in record_of(patched).notes}
        assert not codes & {"few_steps", "sampler_adds_noise"}


@pytest.mark.parametrize("steps", [7, 8, 12])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "res_multistep", "uni_pc", "heun"])
def test_from_seven_steps_on_the_dial_goes(
    accelerate, cache_reuse, tiny_sd3, record_of, sampler, steps
):
    for patched in (accelerate(tiny_sd3), cache_reuse(tiny_sd3)):
        sample(patched, steps=steps, sampler=sampler)
        assert record_of(patched).totals["skipped"] > 0


def test_region_adaptive_on_the_same_model_goes_on(accelerate, comfy_host, tiny_sd3, record_of):
    region = comfy_host.run_node(
        "RAPID_RegionAdaptive",
        **{
            slot.id: slot.default
            for slot in comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_RegionAdaptive"]
            .GET_SCHEMA()
            .inputs
            if getattr(slot, "default", None) is not None
        },
        **{"model": accelerate(tiny_sd3)},
    )[0]
    sample(region, steps=STEPS, sampler="euler_ancestral")
    record = record_of(region)
    assert [policy["technique"] for policy in record.policies] == ["region_adaptive"]
    assert "sampler_adds_noise" in [note.code for note in record.notes]
    assert record.totals["skipped"] == 0


# A model that gives no numbers, and one whose predictions are bad.


@pytest.mark.parametrize("node", ["accelerate", "skip"])
def test_a_model_that_gives_no_numbers_is_computed_to_the_end(
    accelerate, cache_reuse, tiny_flux, record_of, bad_predictions, node
):
    tiny_flux.set_model_unet_function_wrapper(lambda apply, given: given["input"] * math.nan)
    patched = accelerate(tiny_flux) if node == "accelerate" else cache_reuse(tiny_flux, guard=0.5)
    sample(patched, steps=STEPS)
    record = record_of(patched)
    assert record.status == "finished" and len(record.evaluations) == STEPS
    assert "#" * (STEPS - 4) in record.strip(0)
    json.dumps(record.to_json(), allow_nan=False)


@pytest.fixture
def bad_predictions(pack_module, monkeypatch):
    """Bounds in the place of those that conftest sets aside. What a gap of this toy does to the
    latent is little, since its steps are short."""
    actor = pack_module("rapid_core.techniques.step_skip.schedule_actor")
    monkeypatch.setattr(actor, "SAFE_ERROR", 1.0)
    monkeypatch.setattr(actor, "SAFE_GAP", 1e-5)


def rough(sigmas, until):
    """A model whose derivative is another at every step down to a sigma, and constant below."""

    def model(apply_model, given):
        x = given["input"]
        sigma = given["timestep"].view(-1, 1, 1, 1)
        told = float(sigma.max())
        step = int((sigmas >= told - 1e-6).sum()) if told >= until else 0
        generator = torch.Generator().manual_seed(step)
        return x - sigma * torch.randn(x.shape[1:], generator=generator)

    return model


def test_while_predictions_are_bad_steps_are_computed_and_it_is_said_once(
    accelerate, tiny_flux, record_of, bad_predictions
):
    import comfy.samplers

    steps = 24
    sigmas = comfy.samplers.calculate_sigmas(
        tiny_flux.get_model_object("model_sampling"), "simple", steps
    )
    tiny_flux.set_model_unet_function_wrapper(rough(sigmas, 0.6))
    latent = empty_latent(batch=2)
    for patched, acts in ((accelerate(tiny_flux), True), (even_so(accelerate(tiny_flux)), False)):
        sample(patched, steps=steps, latent=latent)
        record = record_of(patched)
        smooth = sum(e.sigma >= 0.6 for e in record.evaluations)
        marks = record.strip(0)
        assert (set(marks[5:smooth]) == {"#"}) == acts and "." in marks[smooth + 3 :]
        said = [(note.code, note.params) for note in record.notes]
        assert said == ([("predictions_off", {})] if acts else [])


# Sigmas that are not the schedule's.


def around(sampler, tell):
    """A SAMPLER around another, that tells the model other sigmas, as Detail Daemon does."""
    import comfy.samplers

    def detail_daemon(model, x, sigmas, *, dds_wrapped_sampler, **named):
        def told(x, sigma, **given):
            return model(x, tell(sigma), **given)

        for name in ("inner_model", "sigmas"):
            setattr(told, name, getattr(model, name))
        inner = dds_wrapped_sampler
        return inner.sampler_function(told, x, sigmas, **named, **inner.extra_options)

    inner = comfy.samplers.sampler_object(sampler)
    return comfy.samplers.KSAMPLER(detail_daemon, {"dds_wrapped_sampler": inner})


def run(model, sampler, sigmas):
    import comfy.sample

    latent = empty_latent()
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(latent, 0),
            1.0,
            sampler,
            sigmas,
            make_conditioning(0),
            make_conditioning(1),
            latent,
            disable_pbar=True,
            seed=0,
        ).clone()


def schedule_of(model, steps=20):
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple", steps
    )


def lower_in_the_middle(sigma):
    return sigma * 0.95 if 0.25 < float(sigma.max()) < 0.9 else sigma


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("node", ["accelerate", "cache_reuse"])
def test_from_the_first_other_sigma_on_everything_is_computed(
    accelerate, cache_reuse, tiny_sd3, record_of, sampler, node
):
    patched = accelerate(tiny_sd3, 3.0) if node == "accelerate" else cache_reuse(tiny_sd3)
    sigmas = schedule_of(tiny_sd3)
    run(patched, around(sampler, lower_in_the_middle), sigmas)
    record = record_of(patched)
    marks = record.strip(0)
    first = int((sigmas >= 0.9).sum())
    assert "." in marks[:first] and set(marks[first:]) == {"#"}
    assert [note.code for note in record.notes] == ["other_sigmas"]
    free = even_so(patched)
    run(free, around(sampler, lower_in_the_middle), sigmas)
    assert record_of(free).strip(0)[first:].count(".") > 5


def test_a_first_sigma_that_is_not_the_schedules_is_seen_at_once(accelerate, tiny_sd3, record_of):
    patched = accelerate(tiny_sd3)
    told = around("euler", lambda sigma: sigma * 0.97)
    found = run(patched, told, schedule_of(tiny_sd3))
    assert torch.equal(found, run(tiny_sd3, told, schedule_of(tiny_sd3)))
    assert set(record_of(patched).strip(0)) == {"#"}
    assert [note.code for note in record_of(patched).notes] == ["other_sigmas"]


def test_a_noisy_sampler_inside_another_is_seen(accelerate, tiny_sd3, record_of):
    patched = accelerate(tiny_sd3)
    run(patched, around("euler_ancestral", lambda sigma: sigma), schedule_of(tiny_sd3))
    assert [note.code for note in record_of(patched).notes] == ["sampler_adds_noise"]


def test_a_zero_before_the_schedule_has_everything_computed(accelerate, tiny_sd3, record_of):
    """RES4LYF's resample puts one before and one more behind."""

    def sample_resample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(1, len(sigmas) - 2):
            denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    import comfy.samplers

    sampler = comfy.samplers.KSAMPLER(sample_resample)
    zero = torch.zeros(1)
    patched = accelerate(tiny_sd3)
    sigmas = torch.cat([zero, schedule_of(tiny_sd3), zero])
    found = run(patched, sampler, sigmas)
    assert torch.equal(found, run(tiny_sd3, sampler, sigmas))
    assert [note.code for note in record_of(patched).notes] == ["sigmas_rise"]


@pytest.mark.parametrize("calls_back", [True, False])
def test_sigmas_that_are_told_twice_are_the_schedules(accelerate, tiny_sd3, record_of, calls_back):
    """Both looks of a step that is skipped are predictions, and of one that is not, computed."""

    def sample_twice(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(len(sigmas) - 1):
            for _ in range(2):
                denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
            if calls_back and callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    import comfy.samplers

    patched = accelerate(tiny_sd3)
    out = run(patched, comfy.samplers.KSAMPLER(sample_twice), schedule_of(tiny_sd3))
    marks = record_of(patched).strip(0)
    assert out.isfinite().all() and marks[::2] == marks[1::2] and marks.count("#") == 20
    assert record_of(patched).notes == ()
