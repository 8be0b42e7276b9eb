"""The emoji world's models, exported, in ComfyUI's own classes: wider words, the same functions."""

import importlib

import pytest
import torch

BATCH, TOKENS = 2, 6


@pytest.mark.parametrize("kind", ["flux", "sd3", "lumina"])
def test_an_exported_model_gives_the_twins_velocity_in_the_host(
    kind, comfy_host, demo_pack, tmp_path
):
    import comfy.sd

    from demo.emoji.demo_model import DemoModel, export
    from demo.pack.emoji_words import WIDTH

    torch.manual_seed(0)
    model = DemoModel(kind)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p + 0.05 * torch.randn_like(p)).half().float())
    path = tmp_path / f"{kind}.safetensors"
    export(kind, model.state_dict(), path, seen=0)
    if kind == "lumina":
        patcher = importlib.import_module(f"{demo_pack.__name__}.nextdit").load(str(path))
    else:
        patcher = comfy.sd.load_diffusion_model(str(path))
    host = patcher.model.diffusion_model.float()
    x = torch.randn(BATCH, 16, 16, 24)
    context, pooled = torch.randn(BATCH, TOKENS, WIDTH), torch.randn(BATCH, WIDTH)
    t, guidance = torch.tensor([0.7, 0.2]), torch.tensor([1.0, 3.0])
    scale = {"flux": 1, "sd3": 1000, "lumina": 1}[kind]
    extra = {
        "flux": {"guidance": guidance, "y": pooled},
        "sd3": {"y": pooled},
        "lumina": {"num_tokens": TOKENS},
    }[kind]
    with torch.no_grad():
        wanted = host(x, t * scale, context=context, transformer_options={}, **extra)
        got = model.twin(x, t, context, pooled, guidance)
    assert (wanted - got).abs().max() < 1e-4 * wanted.abs().max()
