"""The emoji world's models in ComfyUI: exported ones in its own classes, and those of the repository by the
host's own loaders, beside one of drawn shapes."""

import importlib
import shutil

import folder_paths
import pytest
import torch

from demo.emoji.demo_model import DemoModel, export
from demo.pack.emoji_words import WIDTH
from demo.pack.word_table import file_name
from demo.scene_judge import SceneJudge
from demo.world import EMOJI, SHAPES, weights_of
from evaluation.rows import psnr
from evaluation.subjects import FAMILIES, LUMINA, Subject

BATCH, TOKENS = 2, 6


@pytest.mark.parametrize("kind", ["flux", "sd3", "lumina"])
def test_an_exported_model_gives_the_twins_velocity_in_the_host(
    kind, comfy_host, demo_pack, tmp_path
):
    import comfy.sd

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


@pytest.fixture
def ready(comfy_host, demo_pack):
    """The host with the demo's models."""
    comfy_host.load_core_nodes("nodes_flux.py")
    return comfy_host


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_model_draws_what_it_is_asked_for_and_its_judge_says_so(ready, kind):
    with torch.inference_mode():
        subject = Subject(ready, FAMILIES[kind])
        judge = SceneJudge.of(subject.weights, 2)
        assert judge.world is EMOJI
        latents = subject.sample_many(subject.model, judge.prompts, [0, 1], 256).latent
        pictures = [subject.picture(latent[None]) for latent in latents]
        own = subject.model.model.latent_format.process_in(latents)
        wanted = EMOJI.load_decoder()(own.float()).clamp(0, 1)
    assert pictures[0].shape == (3, 256, 256)
    assert all(psnr(*pair) > 45 for pair in zip(pictures, wanted, strict=True))
    found = [judge.right(picture, number) for number, picture in enumerate(pictures)]
    assert sum(right for right, _ in found) >= 0.5 * sum(named for _, named in found)
    swapped = [judge.right(picture, 1 - number) for number, picture in enumerate(pictures)]
    assert sum(right for right, _ in swapped) < sum(right for right, _ in found)


def test_a_prompt_that_another_one_follows_is_planned_for(ready, pack_module, monkeypatch):
    """Planned without, the gap that leads over the change costs 5 dB and more (docs/lab.md)."""
    import comfy.sample
    import node_helpers

    subject = Subject(ready, FAMILIES["flux"])
    prompts = EMOJI.prompts(4, "dev", 3).prompts()
    search = pack_module("rapid_core.calibration.search")
    facts = pack_module("rapid_core.comfy.facts")

    def draw(model, first: str, second: str):
        ranges = ((first, 0.0, 0.5), (second, 0.5, 1.0))
        positive = [
            cond
            for prompt, start, end in ranges
            for cond in node_helpers.conditioning_set_values(
                subject.conditioning(prompt), {"start_percent": start, "end_percent": end}
            )
        ]
        noise = comfy.sample.prepare_noise(torch.zeros(1, 16, 16, 16), 5)
        given = (
            1.0,
            "euler",
            "simple",
            positive,
            subject.conditioning(""),
            torch.zeros_like(noise),
        )
        return comfy.sample.sample(model, noise, 28, *given, disable_pbar=True)

    def closeness() -> float:
        (model,) = ready.run_node("RAPID_Accelerate", model=subject.model, speedup=3.0)
        pairs = ((draw(model, *p), draw(subject.model, *p)) for p in (prompts[:2], prompts[2:]))
        return sum(search.latent_psnr(*pair) for pair in pairs) / 2

    with torch.inference_mode():
        planned = closeness()
        monkeypatch.setattr(facts, "turns_of", lambda *_: ())
        assert planned > closeness() + 3


def test_a_model_of_drawn_shapes_has_a_decoder_of_its_own(ready):
    with torch.inference_mode():
        subject = Subject(ready, LUMINA)
        latent = torch.randn(1, 16, 6, 6, generator=torch.Generator().manual_seed(0))
        own = subject.picture(subject.model.model.latent_format.process_out(latent))
        old = SHAPES.load_decoder()(latent)[0].clamp(0, 1)
        new = EMOJI.load_decoder()(latent)[0].clamp(0, 1)
    assert psnr(own, old) > 50 and psnr(own, new) < 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flat red background, big gitar left", r"unknown object 'gitar'.*Did you mean 'guitar'"),
        ("flat red background" + ", small bee top" * 5, "5 objects given, at most 4 accepted"),
        ("flat red background, big blue plain circle top", "unknown object 'blue plain circle'"),
    ],
)
def test_a_prompt_that_it_cannot_read_is_answered_by_what_it_can(ready, text, message):
    with pytest.raises(ValueError, match=message):
        ready.run_node("RAPIDDemoPrompt", text=text, model="flux")


def test_a_context_has_the_length_of_its_world_unless_more_is_asked_for(ready):
    (own,) = ready.run_node("RAPIDDemoPrompt", text=EMOJI.language.example, model="flux")
    (more,) = ready.run_node("RAPIDDemoPrompt", text=EMOJI.language.example, model="flux", tokens=9)
    assert own[0][0].shape == (1, 6, 128) and more[0][0].shape == (1, 9, 128)
    assert torch.equal(more[0][0][:, :6], own[0][0])
    (other,) = ready.run_node("RAPIDDemoPrompt", text="red circle", model="lumina")
    assert other[0][0].shape == (1, 8, 64)


def test_a_word_table_that_is_cut_off_or_missing_is_named_by_the_node(ready, tmp_path, monkeypatch):
    folders = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", folders)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    weights = weights_of("flux")
    table = weights.with_name(file_name("flux"))
    shutil.copyfile(weights, tmp_path / weights.name)
    (tmp_path / table.name).write_bytes(table.read_bytes()[:900])
    with pytest.raises(RuntimeError, match="flux_words.safetensors cannot be read.*truncated"):
        ready.run_node("RAPIDDemoPrompt", text="", model="flux")
