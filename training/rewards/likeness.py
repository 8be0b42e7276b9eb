"""Rewards of likeness to the reference, a run of the same seed. Legitimate because the sampler is
an ODE: the same noise has one true picture, and no other reward has so little variance."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from rapid_core.calibration.search import latent_psnr
from training.optional import device, needed
from training.pictures import Drawn
from training.rewards.reward import Reward

MIDDLE = 40.0  # dB at which fidelity is worth a half
WIDTH = 6.0  # dB over which it rises
BACKBONES = {"alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights", "vgg": "VGG16_Weights"}


class Fidelity(Reward):
    """PSNR of the latent, through a sigmoid. It needs no picture."""

    name = "psnr"
    about = f"sigmoid((PSNR of the latent to the reference's - {MIDDLE:g} dB) / {WIDTH:g})"
    looks = False

    def __call__(self, drawn: Drawn) -> list[float]:
        psnr = [latent_psnr(x[None].cpu(), drawn.reference.latent) for x in drawn.latents]
        return [1 / (1 + math.exp((MIDDLE - p) / WIDTH)) for p in psnr]


class Decibels(Reward):
    """PSNR of the latent as it is: a dB is worth the same on every picture, where `psnr` cares most
    for pictures about its middle. What a mean over pictures is measured by."""

    name = "decibels"
    about = "PSNR of the latent to the reference's, as a share of 100 dB"
    looks = False

    def __call__(self, drawn: Drawn) -> list[float]:
        return [
            max(0.0, latent_psnr(x[None].cpu(), drawn.reference.latent)) / 100
            for x in drawn.latents
        ]


class Similarity(Reward):
    """Structural similarity (Wang et al. 2004) of the picture."""

    name = "ssim"
    about = "max(0, SSIM to the reference picture)"

    def __init__(self) -> None:
        self.metric = needed("torchmetrics.functional.image", "torchmetrics", "reward ssim")

    def __call__(self, drawn: Drawn) -> list[float]:
        similarity = self.metric.structural_similarity_index_measure(
            drawn.pictures, drawn.reference_pictures, data_range=1.0, reduction="none"
        )
        return drawn.by_image(similarity.clamp(0, 1))


class Perceptual(Reward):
    """LPIPS (Zhang et al. 2018) of the picture. backbone: the network, of `BACKBONES`."""

    name = "lpips"

    def __init__(self, backbone: str = "alex") -> None:
        metric = needed("torchmetrics.image.lpip", "torchmetrics", "reward lpips")
        models = needed("torchvision.models", "torchvision", "reward lpips")
        weights = getattr(models, BACKBONES[backbone]).DEFAULT
        file_name = weights.url.rpartition("/")[2]
        if not (Path(torch.hub.get_dir()) / "checkpoints" / file_name).is_file():
            name = BACKBONES[backbone]
            fetch = f"from torchvision.models import {name} as w; w.DEFAULT.get_state_dict()"
            raise ValueError(
                f'reward lpips needs torchvision\'s weights, which are not here: python -c "{fetch}"'
            )
        self.about = f"max(0, 1 - LPIPS ({backbone}) to the reference picture)"
        network = metric.LearnedPerceptualImagePatchSimilarity(backbone, normalize=True)
        self.network = network.net.to(device()).requires_grad_(False)

    @torch.no_grad()
    def __call__(self, drawn: Drawn) -> list[float]:
        distance = self.network(
            drawn.pictures.to(device()), drawn.reference_pictures.to(device()), normalize=True
        )
        return drawn.by_image((1 - distance.flatten()).clamp(0, 1).cpu())
