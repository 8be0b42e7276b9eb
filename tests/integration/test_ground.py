"""The ground itself: packs load, tiny models sample, and sampling repeats."""

import torch

LATENT = (1, 16, 16, 16)


def test_the_pack_loads_through_the_host(comfy_host, pack):
    assert {"RAPID_CacheReuse", "RAPID_Report"} <= set(comfy_host.pack_nodes())


def test_the_demo_pack_loads_through_the_host(comfy_host, demo_pack):
    assert "RAPIDDemoPrompt" in comfy_host.pack_nodes()


def test_tiny_models_are_recognised_as_what_they_are(load_tiny):
    kinds = {kind: type(load_tiny(kind).model).__name__ for kind in ("flux", "sd3", "sd35")}
    assert kinds == {"flux": "Flux", "sd3": "SD3", "sd35": "SD3"}


def test_the_sd35_like_model_has_its_second_attention(tiny_sd35):
    blocks = tiny_sd35.model.diffusion_model.joint_blocks
    assert [block.x_block.x_block_self_attn for block in blocks] == [True, False]


def test_tiny_models_sample_finite_latents(tiny_model, sample):
    latent = sample(tiny_model, steps=3, cfg=4.0)
    assert latent.shape == LATENT
    assert torch.isfinite(latent).all()
    assert latent.std() > 0.01


def test_same_seed_same_picture(tiny_model, sample):
    assert torch.equal(sample(tiny_model, seed=7), sample(tiny_model, seed=7))


def test_another_seed_gives_another_picture(tiny_model, sample):
    assert not torch.allclose(sample(tiny_model, seed=7), sample(tiny_model, seed=8), atol=1e-3)


def test_the_prompt_changes_the_picture(tiny_model, sample, make_conditioning):
    first = sample(tiny_model, positive=make_conditioning(2))
    assert not torch.allclose(first, sample(tiny_model, positive=make_conditioning(3)), atol=1e-3)
