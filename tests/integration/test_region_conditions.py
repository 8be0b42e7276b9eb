"""RAPID Region Adaptive in the real ComfyUI, conditionings and what else on a model bears on them:
joined and split ones, areas, controls that end, and where all tokens are computed for a reason."""

import pytest
import torch

from evaluation.probes import probe
from rapid_testing.records import codes, the_note, the_reason
from rapid_testing.sampling import make_conditioning, sample


def test_joined_and_split_conds_give_the_same_picture(tiny_sd3, region, record_of, monkeypatch):
    import comfy.model_management

    settings = {
        "steps": 8,
        "cfg": 3.0,
        "positive": make_conditioning(0, tokens=16),
        "negative": make_conditioning(1, tokens=16),
    }
    joined_model = region(tiny_sd3)
    split_model = region(tiny_sd3)
    joined = sample(joined_model, **settings)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *a, **k: 0)
    split = sample(split_model, **settings)
    tokens = [[e.tokens for e in record_of(m).evaluations] for m in (joined_model, split_model)]
    assert tokens[0] == tokens[1]
    assert (joined - split).abs().max() < 1e-4 * joined.abs().max()


def test_prompts_of_different_lengths_are_split_and_work(tiny_model, region, record_of):
    patched = region(tiny_model)
    result = sample(
        patched,
        steps=8,
        cfg=3.0,
        positive=make_conditioning(0, tokens=24),
        negative=make_conditioning(1, tokens=16),
    )
    assert torch.isfinite(result).all() and record_of(patched).totals["partial"] > 0


def test_a_cond_that_was_not_counted_is_not_kept(tiny_flux, region, record_of):
    """Another node asks for the negative's result in the midst of a run at scale one."""
    import comfy.sample
    import comfy.samplers

    class Curious(comfy.samplers.KSAMPLER):
        def sample(self, model_wrap, sigmas, extra_args, *rest):
            options = {**extra_args["model_options"], "disable_cfg1_optimization": True}
            arguments = {**extra_args, "model_options": options}
            return super().sample(model_wrap, sigmas, arguments, *rest)

    patched = region(tiny_flux, memory_limit=1.0)
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
            torch.zeros(1, 16, 16, 16),
            disable_pbar=True,
        )
    assert record_of(patched).totals["partial"] == 0
    assert "cond_not_counted" in codes(record_of(patched))


@pytest.mark.parametrize("memory_limit", [0.0, 1.0])
def test_what_one_more_cond_cannot_follow_is_computed_in_full_for_it_alone(
    tiny_flux, region, record_of, comfy_host, memory_limit
):
    """PerpNeg asks for a third cond after the others have obeyed the decision. Where a limit was
    set, there is no room for its keys; the default bound turns nobody away."""
    comfy_host.load_core_nodes("nodes_perpneg.py")
    (perp_neg,) = comfy_host.run_node(
        "PerpNeg", model=tiny_flux, empty_conditioning=make_conditioning(5), neg_scale=1.0
    )
    shares = []
    for model in (tiny_flux, perp_neg):
        patched = region(model, memory_limit=memory_limit)
        sample(patched, steps=14, cfg=2.0)
        shares.append([e.token_share for e in record_of(patched).evaluations])
    alone, beside = shares
    assert alone == beside and 0 < alone[4][0] < 1
    assert ("cond_not_counted" in codes(record_of(patched))) == bool(memory_limit)


def test_easycache_on_the_same_model_keeps_nothing_that_is_partial(
    tiny_flux, region, record_of, comfy_host
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
    assert record_of(patched).totals["partial"] == 0
    assert "easycache" in codes(record_of(patched))


@pytest.mark.parametrize("kv_cache", ["predict", "last value"])
def test_with_an_area_all_tokens_are_computed_with_the_reason(
    tiny_sd3, region, record_of, kv_cache
):
    positive = make_conditioning(0, area=(8, 8, 0, 0)) + make_conditioning(2)
    patched = region(tiny_sd3, kv_cache=kv_cache)
    settings = {"steps": 6, "cfg": 2.0, "positive": positive}
    assert torch.equal(sample(patched, **settings), sample(tiny_sd3, **settings))
    assert the_reason(record_of(patched), "cond_area")


def test_an_unknown_model_is_computed_in_full_with_the_reason(
    tiny_model, region, record_of, pack_module, monkeypatch
):
    for name in ("facts", "chain"):
        module = pack_module(f"rapid_core.comfy.{name}")
        monkeypatch.setattr(module, "describe", lambda model: None)
    patched = region(tiny_model)
    assert torch.equal(sample(patched, steps=6), sample(tiny_model, steps=6))
    note = the_note(record_of(patched), "unknown_to_region")
    assert note.params == {"model": type(tiny_model.model.diffusion_model).__name__}


def test_a_control_that_ends_takes_its_history_with_it(tiny_model, pack_module, record_of):
    """A ControlNet from 0.3 to 0.6: where it begins and where it ends is computed, and the old
    predictions are gone."""
    import comfy.controlnet
    import comfy.sample
    import comfy.samplers

    class Silent(comfy.controlnet.ControlBase):
        def get_control(self, *_args):
            return None

    types = pack_module("rapid_core.types")

    def skip_all_but_the_first(observation):
        return types.Action(types.Mode.SKIP if observation.index else types.Mode.RUN)

    policy = probe(types, skip_all_but_the_first, modes=frozenset(types.Mode))
    patched = pack_module("rapid_core.comfy.chain").attach(tiny_model, policy)
    control = Silent()
    control.timestep_percent_range = (0.3, 0.6)
    with torch.inference_mode():
        comfy.sample.sample_custom(
            patched,
            torch.randn(1, 16, 16, 16),
            2.0,
            comfy.samplers.sampler_object("euler"),
            torch.linspace(1, 0, 11),
            make_conditioning(0, control=control, control_apply_to_uncond=False),
            make_conditioning(1),
            torch.zeros(1, 16, 16, 16),
            disable_pbar=True,
        )
    record = record_of(patched)
    to_sigma = tiny_model.model.model_sampling.percent_to_sigma
    inside = [to_sigma(0.6) <= e.sigma <= to_sigma(0.3) for e in record.evaluations]
    expected = ["run" if k == 0 or inside[k] != inside[k - 1] else "skip" for k in range(10)]
    assert [e.modes[0] for e in record.evaluations] == expected
    assert expected.count("run") == 3


@pytest.mark.parametrize("kind", ["lumina2", "qwen_image"])
def test_with_patches_between_the_blocks_all_tokens_are_computed(
    kind, family, region, record_of, comfy_host
):
    """Z-Image's and Qwen's ControlNets come as patches that add to all tokens of a block."""
    model, latent = family(kind)
    lengths = set()

    def between(args):
        lengths.add(args["img"].shape[1])
        return args

    model.set_model_patch(between, "double_block")
    patched = region(model)
    settings = {"steps": 8, "latent": torch.zeros(1, *latent)}
    expected = sample(model, **settings)
    assert torch.equal(sample(patched, **settings), expected)
    assert lengths == {latent[-2] * latent[-1] // 4}
    reason = the_reason(record_of(patched), "blocks_patched")
    assert reason.params == {"patches": "double_block"}
    (reuse,) = comfy_host.run_node(
        "RAPID_CacheReuse",
        model=model,
        reuse_threshold=9.0,
        level="reuse",
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=1,
        forecast_order=1,
        guard=0.0,
    )
    assert torch.equal(sample(reuse, **settings), expected)


def test_conditions_that_need_all_tokens_keep_no_cache(family, region, record_of):
    model, latent = family("hunyuan_video")
    positive = make_conditioning(0, guiding_frame_index=0)
    patched = region(model)
    sample(patched, steps=8, latent=torch.zeros(1, *latent), positive=positive)
    record = record_of(patched)
    assert record.totals["partial"] == 0
    assert the_reason(record, "cond_given").params == {"name": "guiding_frame_index"}
    assert record.bytes < 2**20
