"""The emoji world's model, exported, in ComfyUI's own class: wider words, the same function."""

import torch

BATCH, TOKENS = 2, 6


def test_the_exported_model_gives_the_twins_velocity_in_the_host(comfy_host, tmp_path):
    import comfy.sd

    from demo.emoji.demo_model import DemoModel, export
    from demo.emoji.words import WIDTH

    torch.manual_seed(0)
    model = DemoModel()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p + 0.05 * torch.randn_like(p)).half().float())
    export(model.state_dict(), tmp_path / "flux.safetensors", seen=0)
    host = comfy.sd.load_diffusion_model(str(tmp_path / "flux.safetensors")).model.diffusion_model.float()
    x = torch.randn(BATCH, 16, 16, 24)
    context, pooled = torch.randn(BATCH, TOKENS, WIDTH), torch.randn(BATCH, WIDTH)
    t, guidance = torch.tensor([0.7, 0.2]), torch.tensor([1.0, 3.0])
    with torch.no_grad():
        wanted = host(x, t, context=context, y=pooled, guidance=guidance, transformer_options={})
        got = model.twin(x, t, context, pooled, guidance)
    assert (wanted - got).abs().max() < 1e-4 * wanted.abs().max()
