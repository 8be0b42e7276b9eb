"""Lumina-Next-T2I in the real ComfyUI: diffusers' classes and transformers' Gemma give the same."""

import io
import json
import math
import random
import shutil
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from safetensors.torch import load_file, save_file
from transformers import GemmaConfig, GemmaModel

from evaluation.random_models import fill_randomly
from rapid_testing.sampling import sample

SIDE = 16  # latent pixels of what the tiny model was "trained" on
TEXT = 64
CLOSE = 1e-4  # of the largest value


@pytest.fixture(scope="module")
def published():
    """diffusers' class with random weights."""
    model = LuminaNextDiT2DModel(
        sample_size=SIDE,
        hidden_size=96,
        num_layers=3,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=32,
        cross_attention_dim=TEXT,
    )
    fill_randomly(model, seed=3)
    with torch.no_grad():  # each head another gate, or a wrong axis would not be seen
        for layer in model.layers:
            layer.gate.copy_(torch.linspace(-1.0, 1.5, 4))
    return model.eval()


@pytest.fixture(scope="module")
def models(comfy_host):
    """Where ComfyUI looks for diffusion models."""
    import folder_paths

    return Path(folder_paths.get_folder_paths("diffusion_models")[0])


@pytest.fixture
def files(models):
    """A folder among the diffusion models for one test."""
    (models / "lumina-test").mkdir(parents=True)
    yield models / "lumina-test"
    shutil.rmtree(models / "lumina-test")


@pytest.fixture(scope="module")
def folder(models, published):
    """The tiny model as diffusers saves it: a folder with one file."""
    published.save_pretrained(models / "lumina-tiny")
    yield models / "lumina-tiny"
    shutil.rmtree(models / "lumina-tiny")


@pytest.fixture
def load(comfy_host, pack):
    """load(name, ...): what RAPID Load Lumina-Next makes of a file."""
    return lambda name, **given: comfy_host.run_node(
        "RAPID_LoadLuminaNext", model_name=name, **given
    )[0]


@pytest.fixture
def tiny(load, folder):
    return load("lumina-tiny/diffusion_pytorch_model.safetensors")


def prompts(batch, tokens, masked=0, seed=5):
    """Text (batch, tokens, TEXT) and its mask; the last `masked` tokens of the last row are none."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    if masked:
        mask[-1, -masked:] = 0
    return torch.randn(batch, tokens, TEXT, generator=generator), mask


def latents(batch, height, width, seed=6):
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed))


def published_output(model, x, sigma, text, mask, watershed=1.0, proportional=True):
    """The derivative over sigma as diffusers' pipeline gets it of the network."""
    side = math.sqrt(x.shape[2] * x.shape[3]) / SIDE
    time = 1 - sigma
    factors = (side, 1.0) if time < watershed else (1.0, side)
    positions = get_2d_rotary_pos_embed_lumina(
        24, 384, 384, linear_factor=factors[0], ntk_factor=factors[1]
    )
    named = {"base_sequence_length": (SIDE // 2) ** 2} if proportional else {}
    with torch.no_grad():
        out = model(
            x,
            torch.full((x.shape[0],), time),
            text,
            mask,
            positions,
            cross_attention_kwargs=named,
            return_dict=False,
        )[0]
    return -out.chunk(2, dim=1)[0]


def own_output(patcher, x, sigma, text, mask):
    network = patcher.model.diffusion_model
    with torch.no_grad():
        return network(x, torch.full((x.shape[0],), sigma), text, mask, {})


def difference(wanted, found):
    return ((wanted - found).abs().max() / wanted.abs().max()).item()


# The network.


@pytest.mark.parametrize("tokens", [1, 11, 256])
@pytest.mark.parametrize("size", [(16, 16), (8, 20), (24, 40)])
@pytest.mark.parametrize("sigma", [1.0, 0.4, 0.001])
def test_the_network_gives_what_diffusers_class_gives(published, tiny, size, tokens, sigma):
    x = latents(2, *size)
    text, mask = prompts(2, tokens, masked=tokens // 3)
    wanted = published_output(published, x, sigma, text, mask)
    assert difference(wanted, own_output(tiny, x, sigma, text, mask)) < CLOSE


def test_a_text_mask_of_ones_is_as_none(tiny):
    x = latents(1, 16, 24)
    text, mask = prompts(1, 9)
    without = own_output(tiny, x, 0.5, text, None)
    assert difference(without, own_output(tiny, x, 0.5, text, mask)) < 1e-5


@pytest.mark.parametrize(("sigma", "raised"), [(0.8, False), (0.6, True)])
def test_positions_of_other_sizes_are_interpolated_until_the_watershed(
    published, load, folder, sigma, raised
):
    """Time runs from noise (0) to picture (1)."""
    name = "lumina-tiny/diffusion_pytorch_model.safetensors"
    patcher = load(name, scaling_watershed=0.3)
    x, (text, mask) = latents(1, 24, 32), prompts(1, 7)
    found = own_output(patcher, x, sigma, text, mask)
    assert difference(published_output(published, x, sigma, text, mask, 0.3), found) < CLOSE
    other = published_output(published, x, sigma, text, mask, 1.0)
    assert (difference(other, found) > 1e-3) == raised


def test_rows_with_sigmas_of_their_own_keep_them(tiny, load, folder):
    patcher = load("lumina-tiny/diffusion_pytorch_model.safetensors", scaling_watershed=0.3)
    x, (text, mask) = latents(2, 24, 32), prompts(2, 7)
    network = patcher.model.diffusion_model
    with torch.no_grad():
        both = network(x, torch.tensor([0.8, 0.6]), text, mask, {})
    for row, sigma in enumerate((0.8, 0.6)):
        one = slice(row, row + 1)
        alone = own_output(patcher, x[one], sigma, text[one], mask[one])
        assert difference(alone, both[one]) < 1e-5


def test_attention_is_not_proportional_where_that_is_off(published, load, folder):
    name = "lumina-tiny/diffusion_pytorch_model.safetensors"
    patcher = load(name, proportional_attention=False)
    x, (text, mask) = latents(1, 24, 32), prompts(1, 7)
    found = own_output(patcher, x, 0.5, text, mask)
    off = published_output(published, x, 0.5, text, mask, proportional=False)
    assert difference(off, found) < CLOSE
    assert difference(published_output(published, x, 0.5, text, mask), found) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_network_is_as_exact_as_diffusers_class_in_half_precision(published, dtype):
    """Both are as far from the exact output as one another."""
    import comfy.ops

    from rapid_core.comfy.lumina_next.config import config_of
    from rapid_core.comfy.lumina_next.network import LuminaNextDiT

    weights = published.state_dict()
    network = LuminaNextDiT(
        config_of(weights, {"sample_size": SIDE}), dtype, None, comfy.ops.disable_weight_init
    )
    network.load_state_dict(weights)
    theirs = LuminaNextDiT2DModel.from_config(published.config).to(dtype).eval()
    theirs.load_state_dict(weights)
    x, (text, mask) = latents(2, 24, 16), prompts(2, 11, masked=4)
    exact = published_output(published, x, 0.5, text, mask)
    wanted = published_output(theirs, x.to(dtype), 0.5, text.to(dtype), mask)
    with torch.no_grad():
        found = network(x.to(dtype), torch.full((2,), 0.5), text.to(dtype), mask, {})
    assert found.dtype == dtype
    noise = (wanted - exact).abs().mean()
    assert (found - exact).abs().mean() < 1.5 * noise < 0.05 * exact.abs().mean()


def test_an_odd_size_is_padded_and_cut(tiny):
    text, mask = prompts(1, 7)
    assert own_output(tiny, latents(1, 15, 17), 0.5, text, mask).shape == (1, 4, 15, 17)


# Runs.


def test_sigmas_are_those_of_diffusers_scheduler(tiny):
    import comfy.samplers

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(30)
    sampling = tiny.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 30)
    assert torch.allclose(sigmas, scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
def test_a_run_ends_where_diffusers_pipeline_ends(published, tiny, size):
    """Time's direction, the velocity's sign, and guidance of three channels."""
    pipeline = LuminaPipeline(
        transformer=published,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    (positive, mask), (negative, _) = prompts(1, 9), prompts(1, 9, seed=8)
    zeros = torch.zeros(1, 4, *size)
    import comfy.sample

    noise = comfy.sample.prepare_noise(zeros, 0)
    wanted = pipeline(
        prompt_embeds=positive,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=mask,
        latents=noise.clone(),
        height=8 * size[0],
        width=8 * size[1],
        num_inference_steps=6,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    found = sample(
        tiny,
        steps=6,
        cfg=4.0,
        scheduler="normal",
        positive=[[positive, {}]],
        negative=[[negative, {}]],
        latent=zeros,
    )
    assert difference(wanted, found * 0.13025) < CLOSE


def test_all_channels_are_guided_where_that_is_chosen(tiny, load, folder):
    name = "lumina-tiny/diffusion_pytorch_model.safetensors"
    other = load(name, guided_channels="all")
    settings = {
        "steps": 1,
        "cfg": 4.0,
        "positive": [[prompts(1, 9)[0], {}]],
        "negative": [[prompts(1, 9, seed=8)[0], {}]],
        "latent": torch.zeros(1, 4, 16, 16),
    }
    three, four = sample(tiny, **settings), sample(other, **settings)
    assert torch.equal(three[:, :3], four[:, :3])
    assert difference(four[:, 3:], three[:, 3:]) > 1e-2


def test_prompts_of_other_lengths_are_computed_each_by_itself(tiny):
    """And what stands behind a mask changes nothing."""
    long, mask = prompts(1, 12)
    mask[:, 9:] = 0
    settings = {"steps": 2, "cfg": 4.0, "latent": torch.zeros(1, 4, 16, 16)}
    negative = [[prompts(1, 4, seed=8)[0], {}]]
    masked = sample(
        tiny, positive=[[long, {"attention_mask": mask}]], negative=negative, **settings
    )
    short = sample(tiny, positive=[[long[:, :9], {}]], negative=negative, **settings)
    whole = sample(tiny, positive=[[long, {}]], negative=negative, **settings)
    assert difference(short, masked) < 1e-5
    assert difference(short, whole) > 1e-3


# RAPID's nodes on it; that they are exact is tested with all families.

OFF = {
    "RAPID_Accelerate": {"mode": "off"},
    "RAPID_CacheReuse": {"reuse_threshold": 0.0},
    "RAPID_RegionAdaptive": {"keep_ratio": 1.0},
    "RAPID_SparseAttention": {"density": 1.0},
}
SETTINGS = {"cfg": 4.0, "scheduler": "normal", "latent": torch.zeros(1, 4, 24, 16)}


def conditionings():
    return {
        "positive": [[prompts(1, 9)[0], {}]],
        "negative": [[prompts(1, 5, seed=8)[0], {}]],
    }


@pytest.mark.parametrize("node", OFF)
def test_what_is_off_draws_the_same_picture(comfy_host, tiny, node):
    (off,) = comfy_host.run_node(node, model=tiny, **OFF[node])
    expected = sample(tiny, steps=5, **SETTINGS, **conditionings())
    assert torch.equal(sample(off, steps=5, **SETTINGS, **conditionings()), expected)


def test_the_papers_preset_computes_what_the_paper_computes(comfy_host, tiny, record_of):
    """30 steps: the first four and both resets in full, else fewer and fewer tokens."""
    (patched,) = comfy_host.run_node(
        "RAPID_RegionAdaptive", model=tiny, preset="paper", keep_ratio=0.5
    )
    picture = sample(patched, steps=30, **SETTINGS, **conditionings())
    shares = [evaluation.token_share[0] for evaluation in record_of(patched).evaluations]
    assert torch.isfinite(picture).all()
    assert [step for step, share in enumerate(shares) if share == 1] == [0, 1, 2, 3, 12, 22]
    partial = [share for share in shares if share < 1]
    assert partial == sorted(partial, reverse=True)
    assert sum(partial) / len(partial) == pytest.approx(0.5, abs=0.03)


def test_accelerate_computes_the_share_that_is_asked_for(comfy_host, tiny, record_of):
    (patched,) = comfy_host.run_node("RAPID_Accelerate", model=tiny, speedup=2.0)
    sample(patched, steps=20, **SETTINGS, **conditionings())
    totals = record_of(patched).totals
    assert (totals["computed"], totals["skipped"]) == (10, 10)


# Files.


def test_a_file_comes_back_as_it_was(tiny, folder):
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    kept = tiny.model.diffusion_model.state_dict()
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], value) for name, value in weights.items())


@pytest.fixture
def shards(files, published):
    """diffusers' sharded layout, with its index."""
    published.save_pretrained(files, max_shard_size="400KB")
    found = sorted(files.glob("*.safetensors"))
    assert len(found) >= 3 and len(list(files.glob("*.index.json"))) == 1
    return found


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_model_with_their_index_or_without(files, shards, load, tiny, index):
    if not index:
        next(files.glob("*.index.json")).unlink()
    kept = load(f"lumina-test/{shards[0].name}").model.diffusion_model.state_dict()
    whole = tiny.model.diffusion_model.state_dict()
    assert kept.keys() == whole.keys()
    assert all(torch.equal(kept[name], value) for name, value in whole.items())


def test_of_shards_the_first_is_offered(shards, comfy_host, pack):
    schema = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_LoadLuminaNext"].GET_SCHEMA()
    (offered,) = (slot.options for slot in schema.inputs if slot.id == "model_name")
    assert [name for name in offered if "lumina-test" in name] == [
        str(Path("lumina-test", shards[0].name))
    ]


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(files, shards, load, index):
    shards[1].unlink()
    if not index:
        next(files.glob("*.index.json")).unlink()
    with pytest.raises(ValueError, match=f"there is no {shards[1].name} beside it"):
        load(f"lumina-test/{shards[0].name}")


def test_a_file_that_lacks_tensors_is_refused(files, folder, load):
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    del weights["layers.1.norm2.weight"]
    save_file(weights, files / "part.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ tensors.*layers\.1\.norm2\.weight"):
        load("lumina-test/part.safetensors")


def test_sizes_that_shapes_do_not_show_come_from_the_config_beside(folder, tiny, load):
    config = tiny.model.diffusion_model.config
    assert (config.sample_size, config.norm_eps) == (SIDE, 1e-5)
    file = folder / "config.json"
    text = file.read_text()
    file.write_text(json.dumps({**json.loads(text), "_class_name": "SomethingElse"}))
    other = load("lumina-tiny/diffusion_pytorch_model.safetensors")
    file.write_text(text)
    assert other.model.diffusion_model.config.sample_size == 128


def test_the_published_sizes_are_read_off_the_shapes(comfy_host):
    """Without weights: nothing is allocated."""
    import comfy.ops

    from benchmarks.costs import LUMINA_NEXT
    from rapid_core.comfy.lumina_next.config import config_of
    from rapid_core.comfy.lumina_next.network import LuminaNextDiT

    with torch.device("meta"):
        theirs = LuminaNextDiT2DModel(num_layers=24, num_kv_heads=8).state_dict()
    config = config_of(theirs, {})
    assert config == LUMINA_NEXT
    operations = comfy.ops.disable_weight_init
    ours = LuminaNextDiT(config, torch.bfloat16, "meta", operations).state_dict()
    assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_a_file_that_comfyui_saved_is_read_again(tiny, models, load):
    """By its node Save Diffusion Model, as after merging a LoRA."""
    from comfy_extras.nodes_model_merging import ModelSave

    saver = ModelSave()
    saver.output_dir = str(models)
    saver.save(tiny, "lumina-saved")
    (path,) = models.glob("lumina-saved*.safetensors")
    kept = load(path.name).model.diffusion_model.state_dict()
    path.unlink()
    whole = tiny.model.diffusion_model.state_dict()
    assert kept.keys() == whole.keys()
    assert all(torch.equal(kept[name], value) for name, value in whole.items())


def test_a_file_in_8_bits_without_scales_draws_what_its_values_say(files, folder, load):
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    few = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}
    save_file(few, files / "fp8.safetensors")
    save_file({name: tensor.float() for name, tensor in few.items()}, files / "fp32.safetensors")
    settings = {**SETTINGS, **conditionings(), "steps": 2}
    wanted = sample(load("lumina-test/fp32.safetensors"), **settings)
    assert difference(wanted, sample(load("lumina-test/fp8.safetensors"), **settings)) < 1e-3


@pytest.mark.parametrize("mark", ["scale_weight", "weight_scale", "comfy_quant"])
def test_a_file_in_8_bits_with_scales_is_refused(files, folder, load, mark):
    """Without its scales its weights are others."""
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    layer = "layers.0.attn1.to_q"
    weights[f"{layer}.weight"] = weights[f"{layer}.weight"].to(torch.float8_e4m3fn)
    weights[f"{layer}.{mark}"] = torch.tensor([0.5])
    save_file(weights, files / "scaled.safetensors")
    with pytest.raises(ValueError, match=f"scaled.safetensors.*{layer}.{mark}"):
        load("lumina-test/scaled.safetensors")


OTHERS = {
    "Lumina-Next in its authors' own layout": {"layers.0.attention.wk_y.weight": (4, 4)},
    "Lumina Image 2.0 in diffusers' layout": {"context_refiner.0.attn.to_q.weight": (4, 4)},
    "is Lumina Image 2.0": {
        "cap_embedder.1.weight": (2304, 2304),
        "cap_embedder.0.weight": (2304,),
        "layers.0.attention.k_norm.weight": (96,),
        "noise_refiner.0.attention.k_norm.weight": (96,),
        "x_embedder.weight": (2304, 64),
    },
    "a text encoder": {"model.embed_tokens.weight": (4, 4)},
    "a VAE": {"decoder.conv_in.weight": (4, 4, 1, 1)},
    "no model that ComfyUI knows": {"some.weight": (4, 4)},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_models_file_is_named(files, load, what):
    weights = {name: torch.zeros(shape) for name, shape in OTHERS[what].items()}
    save_file(weights, files / "other.safetensors")
    with pytest.raises(ValueError, match=f"other.safetensors is.*{what.removeprefix('is ')}"):
        load("lumina-test/other.safetensors")


def test_another_family_that_comfyui_knows_is_named(files, load):
    from rapid_testing.tiny_models import save_tiny_model

    save_tiny_model("flux", files / "other.safetensors", 0)
    with pytest.raises(ValueError, match="a model of the family Flux"):
        load("lumina-test/other.safetensors")


def test_a_file_that_is_gone_is_said_before_anything_is_loaded(comfy_host, pack):
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_LoadLuminaNext"]
    said = node.validate_inputs(model_name="nowhere.safetensors")
    assert "model_name = 'nowhere.safetensors'" in said and "models/diffusion_models" in said


# What goes in.


def test_text_of_another_encoder_is_refused(tiny):
    text = [[torch.randn(1, 5, 2304), {}]]
    with pytest.raises(ValueError, match="text of 2304 channels a token; this model takes 64"):
        sample(tiny, positive=text, negative=text, latent=torch.zeros(1, 4, 16, 16))


def test_a_latent_of_another_familys_vae_is_refused(tiny):
    text = [[prompts(1, 5)[0], {}]]
    with pytest.raises(ValueError, match="a latent of 1 x 16 x 16 x 16; it takes .*VAE of SDXL"):
        sample(tiny, positive=text, negative=text, latent=torch.randn(1, 16, 16, 16))


# The text encoder.


@pytest.fixture
def encoders(comfy_host):
    """A folder among the text encoders for one test."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("text_encoders")[0], "gemma")
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def gemma():
    """transformers' class with random weights, as half precision has them: the host keeps encoders
    at that."""
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=200,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
    )
    model = GemmaModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.1
            parameter.copy_((torch.randn_like(parameter) * scale).half().float())
    return model


def tokenizer(size):
    """A tokenizer with Gemma's special tokens, learned of a few words."""
    words = "a red cat sits on the blue mat under green trees while big round dogs run over walls"
    chosen = random.Random(0)
    lines = [" ".join(chosen.choices(words.split(), k=8)) for _ in range(300)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        vocab_size=size,
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def spiece():
    return tokenizer(200)


@pytest.fixture
def load_text(comfy_host, pack):
    """load_text(name): what RAPID Load Lumina-Next Text Encoder makes of a file."""
    return lambda name: comfy_host.run_node("RAPID_LoadLuminaNextText", text_encoder=name)[0]


def saved(encoders, gemma, spiece, **settings):
    """Gemma as transformers saves it, with a tokenizer."""
    gemma.save_pretrained(encoders, **settings)
    if spiece is not None:
        (encoders / "tokenizer.model").write_bytes(spiece)


@pytest.mark.parametrize("shards", [1, 9])
def test_text_is_what_transformers_gives_before_the_last_block(
    encoders, gemma, spiece, load_text, shards
):
    """Padding changes nothing of it, on whichever side; here there is none."""
    saved(encoders, gemma, spiece, max_shard_size="50KB" if shards > 1 else "1GB")
    first = sorted(encoders.glob("*.safetensors"))[0]
    assert len(list(encoders.glob("*.safetensors"))) == shards
    clip = load_text(f"gemma/{first.name}")
    tokens = clip.tokenize(" A red CAT sits under the trees ")
    ids = [token for token, _ in tokens["gemma_2b"][0]]
    ((text, extra),) = clip.encode_from_tokens_scheduled(tokens)
    assert ids[0] == 2 and "attention_mask" not in extra
    padded = torch.tensor([[0] * 5 + ids])
    with torch.no_grad():
        states = gemma(
            padded, attention_mask=(padded != 0).long(), output_hidden_states=True
        ).hidden_states
    assert difference(states[-2][:, 5:], text) < CLOSE
    assert difference(states[-1][:, 5:], text) > 1e-2


def test_prompts_are_lower_cased_stripped_and_cut_as_published(encoders, gemma, spiece, load_text):
    saved(encoders, gemma, spiece)
    clip = load_text("gemma/model.safetensors")
    assert clip.tokenize(" A Red cat ") == clip.tokenize("a red cat")
    ((tokens,),) = clip.tokenize("red cat " * 400).values()
    assert len(tokens) == 256
    ((empty,),) = clip.tokenize("").values()
    assert [token for token, _ in empty] == [2]


def test_a_file_with_a_head_and_a_tokenizer_inside_is_read(encoders, gemma, spiece, load_text):
    """The names that google/gemma-2b has, and the host's way to keep a tokenizer."""
    weights = {f"model.{name}": value.clone() for name, value in gemma.state_dict().items()}
    weights["spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
    save_file(weights, encoders / "gemma-one.safetensors")
    ((tokens,),) = load_text("gemma/gemma-one.safetensors").tokenize("a red cat").values()
    assert len(tokens) > 1


def test_a_missing_tokenizer_is_named(encoders, gemma, load_text):
    saved(encoders, gemma, None)
    with pytest.raises(ValueError, match=r"no tokenizer\.model for model\.safetensors"):
        load_text("gemma/model.safetensors")


def test_an_encoder_that_lacks_tensors_is_refused(encoders, gemma, spiece, load_text):
    saved(encoders, gemma, spiece)
    weights = load_file(encoders / "model.safetensors")
    del weights["layers.2.mlp.up_proj.weight"]
    save_file(weights, encoders / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ tensors.*layers\.2\.mlp\.up_proj"):
        load_text("gemma/model.safetensors")


def test_an_encoder_in_8_bits_with_scales_is_refused(encoders, gemma, spiece, load_text):
    saved(encoders, gemma, spiece)
    weights = load_file(encoders / "model.safetensors")
    weights["layers.1.mlp.up_proj.scale_weight"] = torch.tensor([0.5])
    save_file(weights, encoders / "model.safetensors")
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.scale_weight"):
        load_text("gemma/model.safetensors")


def test_a_config_of_another_encoder_beside_changes_nothing(encoders, gemma, spiece, load_text):
    """As where several encoders lie in one folder."""
    saved(encoders, gemma, spiece)
    first = load_text("gemma/model.safetensors")
    config = json.loads((encoders / "config.json").read_text())
    other = {**config, "model_type": "gemma2", "num_key_value_heads": 4}
    (encoders / "config.json").write_text(json.dumps(other))
    second = load_text("gemma/model.safetensors")
    tokens = first.tokenize("a red cat")
    wanted, found = first.encode_from_tokens(tokens), second.encode_from_tokens(tokens)
    assert difference(wanted, found) < 1e-6


def test_an_encoder_that_comfyui_saved_is_read_again(encoders, gemma, spiece, load_text):
    """By its node CLIP Save, which puts the tokenizer into the file."""
    from comfy_extras.nodes_model_merging import CLIPSave

    saved(encoders, gemma, spiece)
    first = load_text("gemma/model.safetensors")
    (encoders / "tokenizer.model").unlink()
    saver = CLIPSave()
    saver.output_dir = str(encoders)
    saver.save(first, "again")
    (path,) = encoders.glob("again*.safetensors")
    second = load_text(f"gemma/{path.name}")
    tokens = first.tokenize("a red cat")
    assert second.tokenize("a red cat") == tokens
    assert torch.equal(first.encode_from_tokens(tokens), second.encode_from_tokens(tokens))


def test_the_host_can_load_an_encoder_once_more(encoders, gemma, spiece, load_text):
    """It does so for hooks on a CLIP, and for a second device."""
    saved(encoders, gemma, spiece)
    clip = load_text("gemma/model.safetensors")
    reload, given = clip.patcher.cached_patcher_init
    again = reload(*given, disable_dynamic=True)
    assert again.model is not clip.patcher.model and again.is_clip
    wanted, kept = clip.patcher.model.state_dict(), again.model.state_dict()
    assert wanted.keys() == kept.keys()
    assert all(torch.equal(kept[name], value) for name, value in wanted.items())


def test_an_embedding_whose_name_has_capitals_is_found(encoders, gemma, spiece, load_text):
    import folder_paths

    saved(encoders, gemma, spiece)
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"gemma_2b": torch.randn(2, 48)}, folder / "MyStyle.safetensors")
    clip = load_text("gemma/model.safetensors")
    texts = ("A red embedding:MyStyle Cat", "a red embedding:MyStyle cat")
    first, second = (clip.tokenize(text)["gemma_2b"][0] for text in texts)
    (folder / "MyStyle.safetensors").unlink()
    assert sum(torch.is_tensor(token) for token, _ in first) == 2
    words = [[token for token, _ in tokens if isinstance(token, int)] for tokens in (first, second)]
    assert words[0] == words[1]


def test_a_tokenizer_of_another_encoder_is_refused(encoders, gemma, load_text):
    saved(encoders, gemma, tokenizer(80))
    with pytest.raises(ValueError, match=r"has 80 tokens, the encoder 200: .* another encoder"):
        load_text("gemma/model.safetensors")


WRONG = {
    "Gemma 2, as Lumina Image 2.0 takes it": "layers.0.pre_feedforward_layernorm.weight",
    "Gemma 3, or a Qwen": "layers.0.self_attn.q_norm.weight",
    "a text encoder of another family": "norm.weight",
}


@pytest.mark.parametrize("what", WRONG)
def test_another_text_encoder_is_named(encoders, gemma, spiece, load_text, what):
    weights = {f"model.{name}": value.clone() for name, value in gemma.state_dict().items()}
    if what.startswith("Gemma"):
        weights[f"model.{WRONG[what]}"] = torch.ones(4)
    else:
        del weights[f"model.{WRONG[what]}"]
    save_file(weights, encoders / "other.safetensors")
    with pytest.raises(ValueError, match=f"other.safetensors is {what}"):
        load_text("gemma/other.safetensors")


# With the pack.


def test_nothing_of_it_is_imported_with_the_pack(pack):
    """Its modules are imported by its nodes alone, when they run."""
    source = Path(pack.__file__).parent
    importing = [
        path.relative_to(source).as_posix()
        for folder in ("nodes", "rapid_core")
        for path in (source / folder).rglob("*.py")
        if any(
            line.startswith(("from", "import")) and "lumina_next." in line
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    ]
    assert importing == []
    assert f"{pack.__name__}.nodes" in sys.modules
