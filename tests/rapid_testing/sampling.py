"""Conditioning without a text encoder, and one call that samples as KSampler does."""

from __future__ import annotations

from typing import Any

import torch

from rapid_testing import CHANNELS, CONTEXT, POOLED

Conditioning = list[list[Any]]


def make_conditioning(
    seed: int = 0,
    *,
    tokens: int = 16,
    batch: int = 1,
    context: int = CONTEXT,
    pooled: int = POOLED,
    **extra: Any,
) -> Conditioning:
    """Random CONDITIONING of `tokens` text tokens; `extra` goes into its dictionary (e.g.
    guidance=3.5)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    text = torch.randn(batch, tokens, context, generator=generator)
    return [[text, {"pooled_output": torch.randn(batch, pooled, generator=generator), **extra}]]


def empty_latent(
    batch: int = 1, height: int = 16, width: int = 16, channels: int = CHANNELS
) -> torch.Tensor:
    """An empty latent; 16 x 16 is a picture of 128 px, 64 image tokens."""
    return torch.zeros(batch, channels, height, width)


def sample(
    model: Any,
    *,
    sampler: str = "euler",
    scheduler: str = "simple",
    steps: int = 4,
    cfg: float = 1.0,
    positive: Conditioning | None = None,
    negative: Conditioning | None = None,
    latent: torch.Tensor | None = None,
    seed: int = 0,
    denoise: float = 1.0,
    batch_index: list[int] | None = None,
    **options: Any,
) -> torch.Tensor:
    """Latents as the KSampler node gives them; batch_index: of the noises; `options` go on to
    comfy.sample.sample (noise_mask, ...)."""
    import comfy.sample  # not at the top: test modules import this one before ComfyUI is on the path

    positive = make_conditioning(0) if positive is None else positive
    negative = make_conditioning(1) if negative is None else negative
    latent = comfy.sample.fix_empty_latent_channels(
        model, empty_latent() if latent is None else latent
    )
    noise = comfy.sample.prepare_noise(latent, seed, batch_index)
    with torch.inference_mode():  # as the host's executor does
        result = comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            latent,
            denoise=denoise,
            disable_pbar=True,
            seed=seed,
            **options,
        )
    return result.clone()  # an ordinary tensor again, for the test to do with as it likes


def sigmas_of(model: Any, steps: int = 8) -> torch.Tensor:
    """Sigmas of a model under the scheduler `simple`."""
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple", steps
    )


def custom(
    model: Any,
    sampler: Any,
    sigmas: torch.Tensor,
    *,
    cfg: float = 1.0,
    latent: torch.Tensor | None = None,
    guider: Any = None,
    latents_seed: int = 0,
) -> torch.Tensor:
    """A run of a SAMPLER or of a sampler function of one's own; guider: of a model, CFGGuider where
    it is None."""
    import comfy.sample
    import comfy.samplers

    latent = empty_latent() if latent is None else latent
    guider = (guider or comfy.samplers.CFGGuider)(model)
    guider.set_conds(make_conditioning(0), make_conditioning(1))
    guider.set_cfg(cfg)
    noise = comfy.sample.prepare_noise(latent, latents_seed)
    if not hasattr(sampler, "sample"):
        sampler = comfy.samplers.KSAMPLER(sampler)
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=0).clone()
