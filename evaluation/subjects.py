"""A demo model inside ComfyUI, in this process: prompts in, float pictures, seconds and computed
evaluations out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rapid_core.types import Policy

STEPS = 28
CACHE_REUSE = dict(
    start_percent=0.0, end_percent=1.0, max_consecutive=3, forecast_order=1, level="skip", guard=0.5
)


@dataclass(frozen=True)
class Family:
    """How a demo model is sampled."""

    kind: str
    """flux, sd3, lumina or lumina_next."""
    vae: str
    """Name by which the host's VAELoader knows its decoder."""
    cfg: float
    guided: bool = False
    """Whether FLUX's embedding tells it a strength of guidance: the one that its file names."""
    steps: int = STEPS
    scheduler: str = "simple"


FAMILIES = {"flux": Family("flux", "taef1", 1.0, guided=True), "sd3": Family("sd3", "taesd3", 2.5)}
# As in the paper's table; never tuned on, only reported.
LUMINA = Family("lumina", "shapes.safetensors", 2.5, steps=30)
# With the sigmas of the published pipeline, which are not shifted.
LUMINA_NEXT = Family("lumina_next", "shapes.safetensors", 2.5, steps=30, scheduler="normal")
ALL_FAMILIES = {**FAMILIES, "lumina": LUMINA, "lumina_next": LUMINA_NEXT}
FIRST_BLOCKS = {
    "flux": "double_blocks",
    "sd3": "joint_blocks",
    "lumina": "layers",
    "lumina_next": "layers",
}
LOADERS = {"lumina": "RAPIDDemoLumina", "lumina_next": "RAPIDDemoLuminaNext"}


def guidance_of(weights: Path) -> float:
    """Strength of guidance by which a FLUX-like model draws best, as its file names it; 1 is none."""
    with safe_open(weights, framework="pt") as file:
        return float((file.metadata() or {}).get("guidance", 1))


@dataclass(frozen=True)
class Sampled:
    """One run."""

    latent: Tensor
    """(B, 16, h, w)."""
    seconds: float
    """Of the sampling loop."""
    computed: float
    """Rows that passed the blocks, over the conds of an evaluation."""


class Subject:
    """One demo model, its VAE and its prompts, loaded by the host's own nodes."""

    def __init__(self, comfy: Any, family: Family):
        import folder_paths

        self.comfy = comfy
        self.family = family
        name = f"{family.kind}.safetensors"
        self.weights = Path(folder_paths.get_full_path_or_raise("diffusion_models", name))
        self.guidance = guidance_of(self.weights) if family.guided else None
        if family.kind in LOADERS:
            (self.model,) = comfy.run_node(LOADERS[family.kind], unet_name=name)
        else:
            (self.model,) = comfy.run_node("UNETLoader", unet_name=name, weight_dtype="default")
        (self.vae,) = comfy.run_node("VAELoader", vae_name=family.vae)
        self.rows = 0  # that passed the blocks in the latest run
        blocks = getattr(self.model.model.diffusion_model, FIRST_BLOCKS[family.kind])
        blocks[0].register_forward_hook(self._count)

    def _count(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.rows += (output if isinstance(output, Tensor) else output[1]).shape[0]

    def conditioning(self, prompt: str) -> list:
        """CONDITIONING of a prompt, or of several, one a line."""
        (out,) = self.comfy.run_node("RAPIDDemoPrompt", text=prompt, model=self.family.kind)
        if self.guidance is not None and prompt:
            (out,) = self.comfy.run_node("FluxGuidance", conditioning=out, guidance=self.guidance)
        return out

    def sample(
        self,
        model: Any,
        prompt: str,
        seed: int,
        size: int,
        steps: int = STEPS,
        sampler: str = "euler",
    ) -> Sampled:
        """One picture."""
        return self.sample_many(model, [prompt], [seed], size, steps, sampler)

    def sample_many(
        self,
        model: Any,
        prompts: list[str],
        seeds: list[int],
        size: int,
        steps: int = STEPS,
        sampler: str = "euler",
        width: int | None = None,
    ) -> Sampled:
        """A batch by KSampler's own call, one prompt and seed an image; each image's noise is that of
        its seed alone. size: pixels, the height alone where a width is given."""
        import comfy.sample

        one = torch.zeros(1, 16, size // 8, (width or size) // 8)
        noise = torch.cat([comfy.sample.prepare_noise(one, seed) for seed in seeds])
        positive = self.conditioning("\n".join(prompts))
        negative = self.conditioning("")
        self.rows = 0
        start = time.perf_counter()
        latent = comfy.sample.sample(
            model,
            noise,
            steps,
            self.family.cfg,
            sampler,
            self.family.scheduler,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=seeds[0],
        )
        seconds = time.perf_counter() - start
        conds = 1 if self.family.cfg == 1.0 else 2
        return Sampled(latent, seconds, self.rows / conds)

    def picture(self, latent: Tensor) -> Tensor:
        """Decoded picture (3, H, W) in 0 .. 1, float32."""
        return self.vae.decode(latent)[0].movedim(-1, 0).float()

    def full_flops(self, size: int) -> int:
        """FLOPs of one evaluation of one image, all conds, by torch's counter."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.sample(self.model, "", seed=0, size=size, steps=1)
        return counter.get_total_flops()


def patcher(comfy: Any, method: str, threshold: float, **settings: Any) -> Callable[[Any], Any]:
    """The model patch of a method, applied by its node."""
    if method == "cache_reuse":
        inputs = {**CACHE_REUSE, **settings}
        return lambda model: comfy.run_node(
            "RAPID_CacheReuse", model=model, reuse_threshold=threshold, **inputs
        )[0]
    node = {"easycache": "EasyCache", "lazycache": "LazyCache"}[method]
    inputs = dict(start_percent=0.15, end_percent=0.95, verbose=False)
    return lambda model: comfy.run_node(
        node, model=with_own_input(model), reuse_threshold=threshold, **inputs
    )[0]


def attached(policy: Policy) -> Callable[[Any], Any]:
    """The patch that puts a policy on a model."""
    from rapid_core.comfy.chain import attach  # here: the host is imported after this module

    return lambda model: attach(model, policy)


def with_own_input(model: Any) -> Any:
    """A clone whose DIFFUSION_MODEL wrappers get a copy of x.

    EasyCache adds to its input in place. In half precision that is a copy; in float32, as here, it
    is the tensor that the denoised picture is computed from, which would ruin EasyCache's pictures
    and flatter every comparison."""
    from comfy.patcher_extension import WrappersMP

    def copied(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return executor(x.clone(), *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "own_input", copied)
    return clone
