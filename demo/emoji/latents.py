"""The latent map of the emoji world: `demo.latents.LatentMap`, fitted anew on its scenes.

python -m demo.emoji.latents
"""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange

from demo.emoji import scenes
from demo.latents import BLOCK, CHANNELS, LatentMap, hadamard

MODELS = Path(__file__).parents[1] / "models" / "emoji"
MAP_FILE = MODELS / "latent_map.safetensors"


def fit(seed: int = 0, number: int = 1024) -> LatentMap:
    """Fit the map on scenes of 128 and 256 px; half whitened PCA in a Hadamard rotation, as `demo.latents.fit`."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for size in (128, 256):
        for _ in range(0, number, 64):
            pictures = scenes.draw(scenes.sample(64, generator), size, size, generator)
            flat = rearrange(pictures, "b c (h p) (w q) -> (b h w) (c p q)", p=BLOCK, q=BLOCK)
            blocks.append(flat[torch.randperm(len(flat), generator=generator)[: 64 * 200]])
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


def psnr(
    latents: LatentMap, size: int, number: int = 64, split: str = "dev"
) -> tuple[float, float]:
    """Mean and worst PSNR in dB of the map's own inverse on drawn scenes of a split."""
    generator = torch.Generator().manual_seed(1)
    chosen = scenes.sample(number, generator, split)
    values = []
    for rows in torch.arange(number).split(8):
        pictures = scenes.draw(chosen.take(rows), size, size, generator)
        error = (latents.decode(latents.encode(pictures)) - pictures).square().flatten(1).mean(1)
        values.append(-10 * error.clamp_min(1e-10).log10())
    return float(torch.cat(values).mean()), float(torch.cat(values).min())


if __name__ == "__main__":
    fitted = fit()
    fitted.save(MAP_FILE)
    for side in (128, 256, 512):
        print(
            f"{MAP_FILE.name}: %.1f dB on dev scenes of {side} px, worst %.1f" % psnr(fitted, side)
        )
