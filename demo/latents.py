"""The demo's latent space: a fixed linear map of 8 x 8 pixel blocks to 16 channels.

The map is a PCA of drawn scenes, half whitened (deviation to the power 1/2), rotated by a Hadamard
matrix so that all channels have about the same deviation, scaled to unit mean square. TAESD's
decoder learns to invert it and its encoder to imitate it, so transformers can be trained before the
decoder is and without a convolution.
"""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from demo import scenes, weights

BLOCK, CHANNELS = 8, 16
VALUES = 3 * BLOCK**2  # of a block
MAP_FILE = Path(__file__).parent / "models" / "latent_map.safetensors"


class LatentMap:
    """Latents of the transformers, (B, 16, H / 8, W / 8), from pictures (B, 3, H, W) in 0 .. 1."""

    def __init__(self, forward: Tensor, backward: Tensor, mean: Tensor):
        self.forward = forward
        self.backward = backward
        self.mean = mean

    @classmethod
    def load(cls, path: Path = MAP_FILE, device: torch.device | str = "cpu") -> LatentMap:
        """Read the committed map. Raises `weights.WeightsError`."""
        _, tensors = weights.read(path, "a latent map")
        shapes = {"forward": (CHANNELS, VALUES), "backward": (VALUES, CHANNELS), "mean": (VALUES,)}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != shapes:
            raise weights.WeightsError(
                f"{path} is no latent map of {CHANNELS} channels: it has {given}, {shapes} are accepted."
            )
        return cls(**{name: tensor.to(device) for name, tensor in tensors.items()})

    def save(self, path: Path = MAP_FILE) -> None:
        """Write the map; every weight file of the demo depends on it, so a new one is a new
        version."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"forward": self.forward, "backward": self.backward, "mean": self.mean}, path)

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in 0 .. 1 -> (B, 16, H / 8, W / 8)."""
        blocks = rearrange(pictures, "b c (h p) (w q) -> b h w (c p q)", p=BLOCK, q=BLOCK)
        return ((blocks - self.mean) @ self.forward.T).permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Least-squares pictures (blocky): a quick look, and the lower bound for the learned
        decoder."""
        blocks = latents.permute(0, 2, 3, 1) @ self.backward.T + self.mean
        return rearrange(blocks, "b h w (c p q) -> b c (h p) (w q)", p=BLOCK, q=BLOCK, c=3).clamp(
            0, 1
        )


def hadamard(n: int) -> Tensor:
    """Orthogonal Hadamard matrix of order n, a power of two (Sylvester)."""
    matrix = torch.ones(1, 1)
    while len(matrix) < n:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / n**0.5


def fit(seed: int = 0, number: int = 512) -> LatentMap:
    """Fit the map on scenes of 128 and 256 px."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for size in (128, 256):
        pictures = scenes.draw(scenes.sample(number, generator), size, size, generator)
        flat = rearrange(pictures, "b c (h p) (w q) -> (b h w) (c p q)", p=BLOCK, q=BLOCK)
        blocks.append(flat[torch.randperm(len(flat), generator=generator)[: number * 200]])
    data = torch.cat(blocks).double()
    mean = data.mean(0)
    values, vectors = torch.linalg.eigh((data - mean).T @ (data - mean) / len(data))
    values, vectors = values[-CHANNELS:].flip(0), vectors[:, -CHANNELS:].flip(1)
    scale = values**-0.25
    scale = scale * (CHANNELS / (values * scale**2).sum()) ** 0.5
    rotation = hadamard(CHANNELS).double()
    forward = rotation @ (vectors * scale).T
    backward = (vectors / scale) @ rotation.T
    return LatentMap(forward.float().contiguous(), backward.float().contiguous(), mean.float())


if __name__ == "__main__":
    fit().save()
    print(f"wrote {MAP_FILE.name}")
