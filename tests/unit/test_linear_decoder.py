"""The decoder that equals a latent map's inverse by construction."""

import pytest
import torch
from einops import rearrange

from demo import linear_decoder
from demo.emoji import scenes
from demo.emoji.latents import MAP_FILE
from demo.latents import LatentMap
from demo.taesd import Decoder


@pytest.fixture(scope="module")
def latents() -> LatentMap:
    return LatentMap.load(MAP_FILE)


@pytest.fixture(scope="module")
def decoder(latents) -> Decoder:
    return linear_decoder.linear_decoder(latents)


def inverse(latents: LatentMap, code: torch.Tensor) -> torch.Tensor:
    """The map's inverse, not cut to 0 .. 1."""
    blocks = code.permute(0, 2, 3, 1) @ latents.backward.T + latents.mean
    return rearrange(blocks, "b h w (c p q) -> b c (h p) (w q)", c=3, p=8, q=8)


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """PSNR in dB."""
    return float(-10 * (first - second).square().mean().log10())


@pytest.mark.parametrize("shape", [(6, 9), (16, 16), (1, 1)])
def test_it_is_the_inverse_on_latents_that_no_picture_has(latents, decoder, shape):
    code = torch.randn(2, 16, *shape, generator=torch.Generator().manual_seed(0))
    assert apart(decoder(code), inverse(latents, code)) > 55
    assert (decoder(code) - inverse(latents, code)).abs().max() < 0.02


def test_it_is_the_inverse_on_scenes_with_the_weights_that_are_shipped(latents, decoder):
    generator = torch.Generator().manual_seed(1)
    pictures = scenes.draw(scenes.sample(4, generator, "dev"), 128, 128, generator)
    shipped = Decoder()
    shipped.load_state_dict({k: v.half().float() for k, v in decoder.state_dict().items()})
    code = latents.encode(pictures)
    with torch.no_grad():
        drawn = shipped(code)
    assert apart(drawn, inverse(latents, code)) > 50


def test_where_all_cells_are_alike_it_gives_their_mean_and_is_never_far_off(latents, decoder):
    code = torch.randn(1, 16, 1, 1, generator=torch.Generator().manual_seed(2)).expand(
        1, 16, 12, 12
    )
    inside = decoder(code.contiguous())[..., 32:64, 32:64]
    mean = inverse(latents, code)[..., :8, :8].mean((2, 3), keepdim=True)
    torch.testing.assert_close(inside, mean.expand_as(inside), atol=5e-3, rtol=0)


def test_cells_that_differ_by_a_breath_are_nowhere_farther_off_than_their_own_variation(
    latents, decoder
):
    base = torch.randn(1, 16, 1, 1, generator=torch.Generator().manual_seed(3))
    for size in (1e-5, 1e-4, 3e-4, 1e-3, 1e-2):
        noise = torch.randn(1, 16, 10, 10, generator=torch.Generator().manual_seed(4))
        code = base + size * noise
        wanted = inverse(latents, code)
        varies = (wanted[..., :8, :8] - wanted[..., :8, :8].mean((2, 3), keepdim=True)).abs().max()
        assert (decoder(code) - wanted).abs().max() < 2.1 * varies
