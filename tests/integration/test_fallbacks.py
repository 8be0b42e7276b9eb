"""Samplers and set-ups that do what a prediction cannot follow: nothing is skipped there, and the
report says why."""

from types import SimpleNamespace

import pytest
import torch

from rapid_testing.safety import even_so
from rapid_testing.sampling import empty_latent, make_conditioning, sample

STEPS = 12
REGION = dict(
    preset="custom",
    keep_ratio=0.5,
    warm_up=0.2,
    tail=0.1,
    refresh_interval=3,
    drift_threshold=0.0,
    metric="std",
    direction="low",
    starvation=0.1,
    inactive="predict",
    slope=0.0,
    kv_cache="last value",
)


def custom(model, function, sigmas, latent=None):
    """A run of a sampler function of one's own."""
    import comfy.sample
    import comfy.samplers

    latent = empty_latent() if latent is None else latent
    sampler = function if hasattr(function, "sample") else comfy.samplers.KSAMPLER(function)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(latent, 0),
            2.0,
            sampler,
            sigmas,
            make_conditioning(0),
            make_conditioning(1),
            latent,
            disable_pbar=True,
            seed=0,
        ).clone()


def codes_of(record):
    """Codes of all reasons why something was computed in full."""
    return {reason.code for e in record.evaluations for reason in e.reasons}


def sigmas_of(model):
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple", STEPS
    )


def test_sigmas_that_rise_are_computed_in_full(accelerate, comfy_host, tiny_sd3, record_of):
    """Unsampling: euler on flipped sigmas."""
    import comfy.samplers

    up = sigmas_of(tiny_sd3).flip(0)
    up[0] = 1e-4
    patched, euler = accelerate(tiny_sd3, 4.0), comfy.samplers.sampler_object("euler")
    found, wanted = (custom(m, euler, up) for m in (patched, tiny_sd3))
    assert torch.equal(found, wanted) and record_of(patched).totals["computed"] == STEPS
    assert [note.code for note in record_of(patched).notes] == ["sigmas_rise"]
    sparse = comfy_host.run_node(
        "RAPID_RegionAdaptive", model=tiny_sd3, **REGION, error_threshold=0.0
    )[0]
    for other in (even_so(patched), sparse):
        assert torch.equal(custom(other, euler, up), wanted)
        assert codes_of(record_of(other)) == {"sigmas_rise"}


def test_a_latent_that_changes_its_size_is_computed_in_full_from_there_on(
    accelerate, tiny_sd3, record_of
):
    def shrinking(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(len(sigmas) - 1):
            if i == 6:
                x = x[..., :-2]
            d = (x - model(x, sigmas[i] * x.new_ones(x.shape[0]), **extra_args)) / sigmas[i]
            x = x + d * (sigmas[i + 1] - sigmas[i])
        return x

    patched = accelerate(tiny_sd3)
    found = custom(patched, shrinking, sigmas_of(tiny_sd3))
    assert torch.isfinite(found).all() and found.shape[-1] == 14
    assert [note.code for note in record_of(patched).notes] == ["latent_resized"]
    assert len(record_of(patched).evaluations) == 6


def test_a_sampler_that_keeps_keys_and_values_has_every_call_computed(
    accelerate, tiny_sd3, record_of
):
    calls = []

    def sample_ar_video(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(len(sigmas) - 1):
            x = model(x, sigmas[i] * x.new_ones(x.shape[0]), **extra_args)
            calls.append(i)
        return x

    patched = accelerate(tiny_sd3)
    custom(patched, sample_ar_video, sigmas_of(tiny_sd3))
    assert record_of(patched).totals["computed"] == len(calls) == STEPS
    assert codes_of(record_of(patched)) == {"ar_video"}


@pytest.mark.parametrize("sampler", ["exp_heun_2_x0", "exp_heun_2_x0_sde"])
@pytest.mark.parametrize("node", ["accelerate", "cache_reuse"])
def test_sigmas_that_a_sampler_computes_anew_are_those_of_the_schedule(
    accelerate, comfy_host, tiny_sd3, record_of, sampler, node
):
    """Both looks at a step are at one sigma, and no line goes through two points a rounding
    apart."""
    reuse = dict(
        reuse_threshold=9.0,
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=2,
        forecast_order=1,
        level="skip",
        guard=0.0,
    )
    patched = (
        accelerate(tiny_sd3)
        if node == "accelerate"
        else comfy_host.run_node("RAPID_CacheReuse", model=tiny_sd3, **reuse)[0]
    )
    patched = even_so(patched)
    found = sample(patched, steps=STEPS, cfg=2.0, sampler=sampler)
    sigmas = {e.sigma for e in record_of(patched).evaluations}
    first = max(sigmas)  # the sampler moves it a little off 1
    assert sigmas - {first} <= set(record_of(patched).sigmas)
    assert any(e.modes[0] == "skip" for e in record_of(patched).evaluations)
    wanted = sample(tiny_sd3, steps=STEPS, cfg=2.0, sampler=sampler)
    assert float((found - wanted).square().mean() / wanted.square().mean()) < 1


def test_a_prediction_does_not_cross_keyframes_of_a_hook(comfy_host, pack_module):
    import comfy.hooks

    hook_state = pack_module("rapid_core.comfy.conditions").hook_state
    group = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.5, 0.4), (0.2, 0.7)):
        group.add(comfy.hooks.HookKeyframe(strength, start))
    group.initialize_timesteps(
        SimpleNamespace(model_sampling=SimpleNamespace(percent_to_sigma=lambda p: 1 - p))
    )
    hook, hooks = comfy.hooks.Hook(), comfy.hooks.HookGroup()
    hook.hook_keyframe = group
    hooks.add(hook)
    seen = [hook_state({"hooks": hooks}, sigma) for sigma in (1.0, 0.61, 0.6, 0.4, 0.3, 0.1)]
    assert seen == [(0,), (0,), (1,), (1,), (2,), (2,)] and hook_state({}, 0.5) == ()
    for sigma, place in zip(
        (1.0, 0.61, 0.6, 0.4, 0.3, 0.1), seen, strict=True
    ):  # as the host counts them
        group.prepare_current_keyframe(sigma, {"sample_sigmas": torch.tensor([1.0, 0.0])})
        assert group._current_index == place[0]


@pytest.mark.main_host
@pytest.mark.parametrize("node", ["region", "accelerate"])
def test_a_guider_with_another_model_for_the_negative(
    accelerate, comfy_host, load_tiny, record_of, node
):
    """It is called with this run's options; hooks and keys of the first model are not for its
    blocks."""
    import comfy.sample
    import comfy.samplers

    comfy_host.load_core_nodes("nodes_custom_sampler.py")
    main, other = load_tiny("sd3"), load_tiny("sd3", seed=1)
    del other.model.diffusion_model.joint_blocks[0]
    patched = (
        accelerate(main)
        if node == "accelerate"
        else comfy_host.run_node("RAPID_RegionAdaptive", model=main, **REGION)[0]
    )
    found = {}
    for name, model in (("ours", patched), ("full", main)):
        guider = comfy_host.run_node(
            "DualModelGuider",
            model=model,
            model_negative=other,
            cfg=3.0,
            positive=make_conditioning(0),
            negative=make_conditioning(1),
        )[0]
        with torch.inference_mode():
            latent = empty_latent()
            found[name] = guider.sample(
                comfy.sample.prepare_noise(latent, 0),
                latent,
                comfy.samplers.sampler_object("euler"),
                sigmas_of(main),
                disable_pbar=True,
                seed=0,
            ).clone()
    error = (found["ours"] - found["full"]).square().mean() / found["full"].square().mean()
    assert float(error) < 0.1
    totals = record_of(patched).totals
    assert totals["skipped"] == STEPS // 2 if node == "accelerate" else totals["partial"] > 0


def test_keys_and_values_that_nobody_would_read_are_not_kept(comfy_host, pack, tiny_sd3, record_of):
    import comfy.samplers

    patched = comfy_host.run_node("RAPID_RegionAdaptive", model=tiny_sd3, **REGION)[0]
    down, euler = sigmas_of(tiny_sd3), comfy.samplers.sampler_object("euler")
    custom(patched, euler, down)
    kept = record_of(patched).bytes
    up = down.flip(0)
    up[0] = 1e-4
    custom(patched, euler, up)
    assert record_of(patched).bytes < kept / 2 and record_of(patched).totals["computed"] == STEPS


def test_frames_of_one_video_are_skipped_together(comfy_host, pack, pack_module):
    """SVD's batch is a video, whose frames attend to each other."""
    from evaluation.host_models import TINY
    from evaluation.probes import probe

    types = pack_module("rapid_core.types")
    skip = types.Action(mode=types.Mode.SKIP)

    def act(observation):
        if observation.index == 4:
            return skip if observation.image else types.FULL
        return skip if observation.index == 6 else types.FULL

    tiny = TINY["SVD_img2vid"].model
    model = tiny.build()
    policy = probe(types, act, modes=frozenset(types.Mode))
    patched = pack_module("rapid_core.comfy.chain").attach(model, policy)
    tiny.sample(patched, steps=8, batch=2)
    record = patched.model_options["transformer_options"]["rapid"].log.records[-1]
    modes = [e.modes for e in record.evaluations]
    assert modes[4] == ("run",) * 2 and modes[6] == ("skip",) * 2
    assert "one_video" in {reason.code for reason in record.evaluations[4].reasons}
