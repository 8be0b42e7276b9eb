"""TAESD with 16 channels: structure and state-dict keys of the host's `comfy.taesd.taesd`.

All model families of a world use the same weights: VAELoader gives `taef1` and `taesd3` the shift and scale of
their latent formats, and the host's latents are x / scale + shift of the transformer's own x. So
TAESD.decode's (latent - shift) * scale is x again, and the h / scale + shift of TAESD.encode
becomes h in the transformer: what the networks here see and give is the transformer's latent
itself.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from demo import weights
from demo.latents import CHANNELS, LatentMap

MODELS = Path(__file__).parent / "models"
FOLDER = MODELS / "vae_approx"
DECODER = MODELS / "vae" / "shapes.safetensors"  # of the drawn shapes' world, encoder in it
SCALES = {"taef1": (0.3611, 0.1159), "taesd3": (1.5305, 0.0609)}  # scale and shift of latents
WIDTH = 64


def conv(n_in: int, n_out: int, **options) -> nn.Conv2d:
    """3 x 3 convolution that keeps the size."""
    return nn.Conv2d(n_in, n_out, 3, padding=1, **options)


class Clamp(nn.Module):
    """Soft limit of latents to -3 .. 3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """TAESD's residual block; starts as relu, that is as the identity on what a relu gave."""

    def __init__(self):
        super().__init__()
        layers = conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH)
        self.conv = nn.Sequential(*layers)
        nn.init.zeros_(self.conv[-1].weight)
        nn.init.zeros_(self.conv[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class Encoder(nn.Sequential):
    """(B, 3, H, W) in 0 .. 1 -> (B, 16, H / 8, W / 8)."""

    def __init__(self):
        def down() -> list[nn.Module]:
            return [conv(WIDTH, WIDTH, stride=2, bias=False), Block(), Block(), Block()]

        super().__init__(conv(3, WIDTH), Block(), *down(), *down(), *down(), conv(WIDTH, CHANNELS))


class Decoder(nn.Sequential):
    """(B, 16, H / 8, W / 8) -> (B, 3, H, W), about 0 .. 1."""

    def __init__(self):
        def up() -> list[nn.Module]:
            return [
                Block(),
                Block(),
                Block(),
                nn.Upsample(scale_factor=2),
                conv(WIDTH, WIDTH, bias=False),
            ]

        start = Clamp(), conv(CHANNELS, WIDTH), nn.ReLU()
        super().__init__(*start, *up(), *up(), *up(), Block(), conv(WIDTH, 3))


@torch.no_grad()
def exact_encoder(latents: LatentMap) -> Encoder:
    """An encoder that equals the map: two strided convolutions sort pixels into channels, the third
    applies the map and its negative, relu keeps the positive part of each, the last takes the
    difference."""
    encoder = Encoder()
    first, last = encoder[0], encoder[14]
    strided = [encoder[i] for i in (2, 6, 10)]
    for parameter in encoder.parameters():
        parameter.zero_()
    channel = torch.arange(3)
    first.weight[channel, channel, 1, 1] = 1
    for layer, parts in zip(strided[:2], (3, 12), strict=True):  # (row, column, channel) order
        for y in range(2):
            for x in range(2):
                at = torch.arange(parts)
                layer.weight[(2 * y + x) * parts + at, at, y + 1, x + 1] = 1
    # Pixel row = 4 y3 + 2 y2 + y1: the first convolution sorts y1, the second y2, the third sees
    # y3.
    taps = latents.forward.view(CHANNELS, 3, 2, 2, 2, 2, 2, 2)  # (16, c, y3, y2, y1, x3, x2, x1)
    taps = taps.permute(0, 3, 6, 4, 7, 1, 2, 5).reshape(
        CHANNELS, 48, 2, 2
    )  # (16, y2 x2 y1 x1 c, y3, x3)
    strided[2].weight[:CHANNELS, :48, 1:, 1:] = taps
    strided[2].weight[CHANNELS : 2 * CHANNELS, :48, 1:, 1:] = -taps
    row = torch.arange(CHANNELS)
    last.weight[row, row, 1, 1] = 1
    last.weight[row, row + CHANNELS, 1, 1] = -1
    last.bias.copy_(-latents.forward @ latents.mean)
    return encoder


def load_decoder(path: Path = DECODER) -> Decoder:
    """A decoder of a file of its own or of one that holds both parts, in float32. Raises
    `weights.WeightsError`."""
    decoder = Decoder()
    what = f"a TAESD decoder of {CHANNELS} channels"
    tensors = weights.read(path, what)[1]
    mark = "taesd_decoder."
    if any(key.startswith(mark) for key in tensors):
        tensors = {k.removeprefix(mark): v for k, v in tensors.items() if k.startswith(mark)}
    weights.fill(decoder, tensors, path, what)
    return decoder.requires_grad_(False)


def _float16(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().half().contiguous() for k, v in network.state_dict().items()}


def save_pair(
    decoder: Decoder, encoder: Encoder, name: str, folder: Path, note: dict[str, str]
) -> None:
    """The two float16 files in `models/vae_approx` that VAELoader's `taef1` or `taesd3` is made of."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, network in (("decoder", decoder), ("encoder", encoder)):
        path = folder / f"{name}_{part}.safetensors"
        save_file(_float16(network), path, metadata={"format": "pt", **note})


def save_one_file(
    decoder: Decoder, encoder: Encoder, family: str, path: Path, note: dict[str, str]
) -> None:
    """Both parts in one float16 file, as VAELoader reads it from `models/vae`, with a family's scale and
    shift."""
    scale, shift = SCALES[family]
    tensors = {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
    for part, network in (("decoder", decoder), ("encoder", encoder)):
        tensors |= {f"taesd_{part}.{key}": value for key, value in _float16(network).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt", **note})
