"""The demo's TAESD: structure, the encoder that equals the latent map, the decoder's quality."""

import pytest
import torch
from safetensors.torch import load_file

from demo import scenes
from demo.autoencoder import Crops, psnr
from demo.latents import LatentMap
from demo.taesd import (
    DECODER,
    SCALES,
    Decoder,
    Encoder,
    exact_encoder,
    load_decoder,
    save_one_file,
    save_pair,
)
from demo.world import weights_of, world_of
from evaluation.subjects import ALL_FAMILIES


@pytest.fixture(scope="module")
def latents() -> LatentMap:
    return LatentMap.load()


def test_shapes_go_down_and_up_by_eight():
    assert Encoder()(torch.rand(2, 3, 32, 48)).shape == (2, 16, 4, 6)
    assert Decoder()(torch.randn(2, 16, 4, 6)).shape == (2, 3, 32, 48)


def test_keys_and_shapes_are_those_of_taesd():
    for network, blocks, plain, strided in (
        (Encoder(), (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), (0, 14), (2, 6, 10)),
        (Decoder(), (3, 4, 5, 8, 9, 10, 13, 14, 15, 18), (1, 19), (7, 12, 17)),
    ):
        parts = [f"{i}.conv.{j}" for i in blocks for j in (0, 2, 4)] + [str(i) for i in plain]
        expected = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
        expected |= {f"{i}.weight" for i in strided}
        assert set(network.state_dict()) == expected
    assert Decoder().state_dict()["1.weight"].shape == (64, 16, 3, 3)
    assert Encoder().state_dict()["14.weight"].shape == (16, 64, 3, 3)


def test_the_constructed_encoder_equals_the_latent_map(latents):
    pictures = torch.rand(2, 3, 48, 32)
    torch.testing.assert_close(
        exact_encoder(latents)(pictures), latents.encode(pictures), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", [*ALL_FAMILIES])
def test_the_host_decodes_a_model_by_its_worlds_vae_in_float16(kind):
    weights = weights_of(kind)
    if not weights.exists():
        pytest.skip(f"there is no {kind}-like model yet")
    name, folder = ALL_FAMILIES[kind].vae, weights.parents[1]
    if name in SCALES:
        found = load_file(folder / "vae_approx" / f"{name}_decoder.safetensors")
        encoder = load_file(folder / "vae_approx" / f"{name}_encoder.safetensors")
    else:
        parts = load_file(folder / "vae" / name)
        assert parts["vae_scale"].item() == pytest.approx(SCALES["taef1"][0])
        assert parts["vae_shift"].item() == pytest.approx(SCALES["taef1"][1])
        found, encoder = (
            {k.removeprefix(mark): v for k, v in parts.items() if k.startswith(mark)}
            for mark in ("taesd_decoder.", "taesd_encoder.")
        )
    wanted = world_of(weights).load_decoder().state_dict()
    assert found.keys() == wanted.keys() and encoder.keys() == Encoder().state_dict().keys()
    for key, value in found.items():
        assert value.dtype == torch.float16 and torch.equal(value.float(), wanted[key])


def test_a_decoder_is_read_again_from_a_file_of_its_own_and_from_one_of_both_parts(tmp_path):
    torch.manual_seed(0)
    decoder, encoder = Decoder(), Encoder()
    save_pair(decoder, encoder, "taef1", tmp_path, {})
    save_one_file(decoder, encoder, "taesd3", tmp_path / "vae" / "both.safetensors", {})
    for path in (tmp_path / "taef1_decoder.safetensors", tmp_path / "vae" / "both.safetensors"):
        for key, value in load_decoder(path).state_dict().items():
            assert torch.equal(value, decoder.state_dict()[key].half().float())
    parts = load_file(tmp_path / "vae" / "both.safetensors")
    pair = load_file(tmp_path / "taef1_encoder.safetensors")
    assert all(torch.equal(parts[f"taesd_encoder.{key}"], pair[key]) for key in pair)
    assert float(parts["vae_scale"]) == pytest.approx(SCALES["taesd3"][0])


def test_the_shipped_encoder_imitates_the_latent_map(latents):
    encoder = Encoder()
    mark = "taesd_encoder."
    parts = load_file(DECODER).items()
    encoder.load_state_dict({k.removeprefix(mark): v for k, v in parts if k.startswith(mark)})
    chosen = scenes.sample(2, torch.Generator().manual_seed(0))
    pictures = scenes.draw(chosen, 64, 64, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures), latents.encode(pictures), atol=5e-3, rtol=0)


@pytest.mark.parametrize(("size", "number"), [(128, 12), (256, 4)])
def test_the_shipped_decoder_reaches_28_db_and_beats_the_linear_inverse(latents, size, number):
    learned = psnr(load_decoder(), size, number)
    assert learned >= 28
    assert learned > psnr(latents, size, number) + 1


def test_crops_lie_on_the_latent_grid_and_repeat_with_the_seed(latents):
    first, second = (
        Crops(32, latents, torch.Generator().manual_seed(5), 240, 3.0).batch(8) for _ in range(2)
    )
    assert first.shape == (8, 3, 32, 32) and torch.equal(first, second)
    assert 0 <= first.min() and first.max() <= 1
