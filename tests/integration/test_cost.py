"""The cost formulas against torch's FLOP counter, and the trainable twins against the classes that
draw."""

import importlib

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evaluation.subjects import FAMILIES, Subject
from rapid_core.architectures import describe
from rapid_core.cost import CostModel
from rapid_core.techniques.heads.rapid3 import HEADS, Heads
from rapid_core.techniques.heads.rapid_plus import NUMBERS

BATCH, HEIGHT, WIDTH, TEXT = 2, 16, 24, 12


def call(model, tokens=TEXT):
    """One call of a host's diffusion_model on random inputs."""
    x = torch.randn(BATCH, 16, HEIGHT, WIDTH)
    arguments = dict(
        context=torch.randn(BATCH, tokens, 64), y=torch.randn(BATCH, 64), transformer_options={}
    )
    if hasattr(model, "double_blocks"):
        arguments["guidance"] = torch.full((BATCH,), 3.5)
    with torch.no_grad():
        return x, arguments, model(x, torch.tensor([0.7, 0.2]), **arguments)


def counted(model) -> int:
    # The counter knows the plain attention only, not the CPU's fused one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["tiny_flux", "tiny_sd3", "tiny_sd35"])
def test_the_cost_formula_equals_torchs_counter(kind, request):
    model = request.getfixturevalue(kind).model.diffusion_model
    architecture = describe(model)
    formula = CostModel(model, architecture).flops(
        architecture.image_tokens(model, (BATCH, 16, HEIGHT, WIDTH)), TEXT
    )
    assert BATCH * formula.full == pytest.approx(counted(model), rel=0.01)


@pytest.mark.parametrize("kind", ["tiny_flux", "tiny_sd3"])
def test_the_cost_of_a_reuse_equals_torchs_counter(kind, request):
    model = request.getfixturevalue(kind).model.diffusion_model
    architecture = describe(model)
    formula = CostModel(model, architecture).flops(
        architecture.image_tokens(model, (BATCH, 16, HEIGHT, WIDTH)), TEXT
    )

    def through(args, extra):
        return {k: args[k] for k in ("img", "txt") if k in args}

    groups = ((g.name, len(getattr(model, g.attribute))) for g in architecture.groups)
    replace = {"dit": {(name, i): through for name, number in groups for i in range(number)}}
    x, arguments, _ = call(model)
    arguments["transformer_options"] = {"patches_replace": replace}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x, torch.tensor([0.7, 0.2]), **arguments)
    assert BATCH * formula.reuse == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("kind", ["flux", "sd3", "lumina", "lumina_next"])
def test_a_twin_gives_what_the_class_that_draws_gives(kind, comfy_host, demo_pack, tmp_path):
    from demo.demo_model import DemoModel, export

    torch.manual_seed(0)
    model = DemoModel(kind)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p + 0.05 * torch.randn_like(p)).half().float())
    export(kind, model.state_dict(), tmp_path / f"{kind}.safetensors", seen=0)
    host = load_demo(demo_pack, kind, str(tmp_path / f"{kind}.safetensors")).float()
    x = torch.randn(BATCH, 16, HEIGHT, WIDTH)
    context, pooled = torch.randn(BATCH, 8, 64), torch.randn(BATCH, 64)
    t, guidance = torch.tensor([0.7, 0.2]), torch.tensor([1.0, 3.0])
    scale = {"flux": 1, "sd3": 1000, "lumina": 1, "lumina_next": 1}[kind]
    extra = {
        "flux": {"guidance": guidance, "y": pooled},
        "sd3": {"y": pooled},
        "lumina": {"num_tokens": 8},
        "lumina_next": {},
    }[kind]
    with torch.no_grad():
        wanted = host(x, t * scale, context=context, transformer_options={}, **extra)
        got = model.twin(x, t, context, pooled, guidance)
    assert (wanted - got).abs().max() < 1e-4 * wanted.abs().max()


def load_demo(demo_pack, kind, path):
    """The diffusion_model of a demo file, as its loader node makes it."""
    import comfy.sd

    own = {"lumina": "nextdit", "lumina_next": "lumina_next"}.get(kind)
    if own is None:
        return comfy.sd.load_diffusion_model(path).model.diffusion_model
    return importlib.import_module(f"{demo_pack.__name__}.{own}").load(path).model.diffusion_model


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_the_demos_heads_cost_less_than_a_hundredth_of_a_full_evaluation_of_1024_tokens(
    kind, comfy_host, demo_pack
):
    comfy_host.load_core_nodes("nodes_flux.py")
    subject = Subject(comfy_host, FAMILIES[kind])
    hidden = subject.model.model.diffusion_model.hidden_size
    latent, pooled = torch.randn(1, 64, 32, 32), torch.zeros(1, hidden)
    shares = {}
    for names, numbers, width in ((HEADS, 1, 32), (("pace",), NUMBERS, 32), (HEADS, 1, 128)):
        heads = Heads(16, hidden, names, numbers, width)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            heads(dict.fromkeys(names, latent), torch.zeros(1, numbers), pooled)
        shares[len(names), width] = counter.get_total_flops() / subject.full_flops(512)
    assert shares[3, 32] < 0.01 and shares[1, 32] < 0.003
    assert 0.02 < shares[3, 128] < 0.05  # what is measured is there
