"""How near pictures are to one another, and where they differ. Pictures are IMAGEs: (B, H, W, C),
values from 0 to 1."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .heatmap import coloured
from .record import verdict

EQUAL = 100.0  # dB of pictures that are the same: JSON has no infinity
WINDOW, SPREAD = 11, 1.5  # pixels of SSIM's Gaussian window, and its standard deviation
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"  # of torchvision, which would fetch them


@dataclass(frozen=True)
class Pair:
    """Two pictures."""

    psnr: float
    """dB, at most EQUAL."""
    ssim: float
    lpips: float | None
    """None where the package lpips is not there."""
    fingerprint: str
    """Of both pictures."""

    @property
    def swapped(self) -> bool:
        """Whether a blind comparison has the second picture on the left: by chance, and always the
        same for these pictures."""
        return bool(int(self.fingerprint[:2], 16) & 1)


def compare(a: Tensor, b: Tensor) -> list[Pair]:
    """What there is to say of each pair. a, b: as `pairs` gives them."""
    perceptual = lpips(a, b)
    return [
        Pair(
            psnr=round(psnr(one, two), 2),
            ssim=round(ssim(one, two), 5),
            lpips=None if perceptual is None else round(perceptual[i], 5),
            fingerprint=fingerprint(one, two),
        )
        for i, (one, two) in enumerate(zip(a, b, strict=True))
    ]


def pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in RGB, float32 on the CPU, one of B beside each of A; a single picture stands beside
    each of the others. Raises ValueError where that cannot be."""
    a, b = rgb(a, "picture_a"), rgb(b, "picture_b")
    if a.shape[1:3] != b.shape[1:3]:
        one, two = (f"{x.shape[2]} x {x.shape[1]}" for x in (a, b))
        raise ValueError(
            f"picture_a of {one} and picture_b of {two} pixels were given; accepted are pictures of "
            "one size. Draw both at the same size, or scale one with Upscale Image."
        )
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(
            f"{len(a)} pictures were given as picture_a and {len(b)} as picture_b; accepted are as "
            "many of both, or one to compare with all of the others."
        )
    number = max(len(a), len(b))
    return a.expand(number, -1, -1, -1), b.expand(number, -1, -1, -1)


def rgb(picture: Any, name: str) -> Tensor:
    """An IMAGE of 1 (grey), 3 or 4 channels as (B, H, W, 3), float32 on the CPU, within 0 .. 1.
    Raises ValueError for anything else."""
    if not isinstance(picture, Tensor) or picture.ndim != 4 or not picture.numel():
        shape = tuple(picture.shape) if isinstance(picture, Tensor) else type(picture).__name__
        raise ValueError(
            f"{name} = {shape} was given; accepted is an IMAGE (batch, height, width, channels)."
        )
    channels = picture.shape[3]
    if channels not in (1, 3, 4):
        raise ValueError(
            f"{name} of {channels} channels was given; accepted are 3 (RGB), 4 (with alpha, which is "
            "left out) and 1 (grey)."
        )
    picture = picture.detach().float().cpu()[..., :3]
    if not picture.isfinite().all():
        raise ValueError(
            f"{name} has values that are not finite (NaN); something before it went wrong."
        )
    return picture.expand(-1, -1, -1, 3).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of two pictures (H, W, C); EQUAL where they are the same."""
    error = float((a - b).double().square().mean())
    return min(EQUAL, -10 * math.log10(error)) if error else EQUAL


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures (H, W, C), the mean over channels and
    all whole windows. Pictures smaller than a window take a smaller one."""
    side = min(WINDOW, *a.shape[:2])
    side -= 1 - side % 2
    place = torch.arange(side, dtype=torch.float64) - side // 2
    row = torch.exp(-(place**2) / (2 * SPREAD**2))
    row = row / row.sum()
    x, y = (p.double().permute(2, 0, 1)[:, None] for p in (a, b))

    def blurred(values: Tensor) -> Tensor:
        across = F.conv2d(values, row[None, None, None])
        return F.conv2d(across, row[None, None, :, None])

    mean_x, mean_y = blurred(x), blurred(y)
    variance_x = blurred(x * x) - mean_x**2
    variance_y = blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return float(likeness.mean())


def lpips(a: Tensor, b: Tensor) -> list[float] | None:
    """LPIPS (Zhang et al. 2018, AlexNet) of each pair, by the package of that name. None where it is
    not installed, or its weights are not on this machine: nothing is fetched here."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    if importlib.util.find_spec("lpips") is None or not weights.is_file():
        return None
    try:
        import lpips as package  # type: ignore[import-not-found]

        network = package.LPIPS(net="alex", verbose=False)
        with torch.no_grad():
            found = [
                network(*(p.permute(2, 0, 1)[None] * 2 - 1 for p in (one, two)))
                for one, two in zip(a, b, strict=True)
            ]
        return [float(value) for value in found]
    except Exception:
        logging.exception("RAPID Compare: LPIPS could not be computed")
        return None


def difference(a: Tensor, b: Tensor, times: float) -> Tensor:
    """Where pictures (B, H, W, 3) differ: the largest difference of a pixel's channels, so many times
    as large, coloured from dark blue (none) to yellow. (B, H, W, 3) in 0 .. 1."""
    return coloured((a - b).abs().amax(-1) * times)


def fingerprint(a: Tensor, b: Tensor) -> str:
    """Short hash of two pictures (H, W, C) as 8 bit files have them."""
    digest = hashlib.blake2b(digest_size=8)
    for picture in (a, b):
        digest.update((picture * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
    return digest.hexdigest()


def totals(found: list[Pair]) -> dict[str, Any]:
    """Means over pairs, the least PSNR, and its verdict as RAPID Report's."""
    least = min(pair.psnr for pair in found)
    perceptual = [pair.lpips for pair in found if pair.lpips is not None]
    return {
        "psnr": round(fmean(pair.psnr for pair in found), 2),
        "psnr_worst": least,
        "ssim": round(fmean(pair.ssim for pair in found), 5),
        "lpips": round(fmean(perceptual), 5) if perceptual else None,
        "verdict": verdict(least),
        "equal": all(pair.psnr == EQUAL for pair in found),
    }
