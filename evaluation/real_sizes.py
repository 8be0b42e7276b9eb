"""Published models in the sizes that people run them in, without their weights: what a card would
have to hold, and, with random weights, how long it would take."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from torch import Tensor

from evaluation.random_models import FamilyModel

AUDIO = (8, 16)  # channels and bins of LTX-2's audio latent
_LUMINA = dict(
    image_model="lumina2",
    patch_size=2,
    in_channels=16,
    n_refiner_layers=2,
    qk_norm=True,
    z_image_modulation=True,
    time_scale=1000.0,
    pad_tokens_multiple=32,
    rope_theta=256.0,
    axes_lens=[1536, 512, 512],
)


@dataclass(frozen=True)
class RealModel:
    """A model and the run that is usual with it."""

    title: str
    family: FamilyModel
    text: int
    """Tokens of a prompt."""
    width: int
    """Channels of a token of the prompt."""
    steps: int
    cfg: float
    pooled: int = 0
    """Channels of the pooled prompt."""
    audio: int = 0
    """Length of the audio latent beside the video's; 0 for none."""

    def latent(self, batch: int = 1) -> Any:
        """An empty latent; of video and audio a nested one."""
        video = torch.zeros(batch, *self.family.latent)
        if not self.audio:
            return video
        from comfy.nested_tensor import NestedTensor

        channels, bins = AUDIO
        return NestedTensor((video, torch.zeros(batch, channels, self.audio, bins)))

    def conditioning(self, seed: int) -> list:
        """Random CONDITIONING."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, self.text, self.width, generator=generator)
        pooled = torch.randn(1, self.pooled, generator=generator)
        return [[text, {"pooled_output": pooled} if self.pooled else {}]]

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """MODEL with random weights, made on the device and never moved from it."""
        patcher = self.empty(device, dtype)
        generator = torch.Generator(device).manual_seed(0)
        for tensor in patcher.model.diffusion_model.state_dict().values():
            if not tensor.is_floating_point():
                continue
            if tensor.ndim >= 2:
                tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator)
            else:
                tensor.fill_(1.0)
        return patcher

    def empty(
        self,
        device: torch.device,
        dtype: torch.dtype,
        mode: AbstractContextManager | None = None,
    ) -> Any:
        """MODEL whose weights are allocated and no more. mode: of fake tensors, for weights that are
        not even that."""
        settings = getattr(comfy.supported_models, self.family.kind)(dict(self.family.config))
        settings.set_inference_dtype(dtype, None)
        with mode or nullcontext():
            model = settings.get_model({}, "", device=device)
        model.model_sampling = comfy.model_base.model_sampling(settings, model.model_type)
        model.eval()
        patcher = comfy.model_patcher.ModelPatcher(model, device, device)
        # All of it is there already: or the host would want the room for it once more.
        model.model_loaded_weight_memory = patcher.model_size()
        return patcher


def free(device: torch.device) -> None:
    """Let go of models that nobody has any more."""
    comfy.model_management.unload_all_models()
    comfy.model_management.current_loaded_models.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def samples(out: Any) -> Tensor:
    """The video of what was sampled, or all of it."""
    return out.unbind()[0] if getattr(out, "is_nested", False) else out


def _flux(hidden: int = 3072, double: int = 19, single: int = 38, width: int = 4096) -> FamilyModel:
    config = dict(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=width,
        hidden_size=hidden,
        mlp_ratio=4.0,
        num_heads=hidden // 128,
        depth=double,
        depth_single_blocks=single,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
    )
    return FamilyModel("Flux", config, latent=(16, 128, 128))


def _sd3(depth: int = 38, width: int = 4096) -> FamilyModel:
    embedder = {
        "target": "torch.nn.Linear",
        "params": {"in_features": width, "out_features": 64 * depth},
    }
    config = dict(
        in_channels=16,
        out_channels=16,
        patch_size=2,
        depth=depth,
        input_size=None,
        adm_in_channels=2048,
        context_embedder_config=embedder,
        num_patches=192 * 192,
        pos_embed_max_size=192,
        qk_norm="rms",
        x_block_self_attn_layers=[],
    )
    return FamilyModel("SD3", config, latent=(16, 128, 128))


def _qwen(layers: int = 60, heads: int = 24, width: int = 3584) -> FamilyModel:
    config = dict(
        image_model="qwen_image",
        in_channels=64,
        num_layers=layers,
        num_attention_heads=heads,
        joint_attention_dim=width,
    )
    return FamilyModel("QwenImage", config, latent=(16, 1, 166, 166))


def _z_image(dim: int = 3840, layers: int = 30, width: int = 2560) -> FamilyModel:
    heads = dim // 128
    config = dict(
        **_LUMINA,
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=heads,
        axes_dims=[32, 48, 48],
        ffn_dim_multiplier=8 / 3,
        cap_feat_dim=width,
    )
    return FamilyModel("ZImage", config, latent=(16, 128, 128))


def _wan(dim: int = 5120, ffn: int = 13824, layers: int = 40, width: int = 4096) -> FamilyModel:
    config = dict(
        image_model="wan2.1",
        model_type="t2v",
        dim=dim,
        ffn_dim=ffn,
        freq_dim=256,
        text_dim=width,
        num_heads=dim // 128,
        num_layers=layers,
    )
    return FamilyModel("WAN21_T2V", config, latent=(16, 21, 60, 104))


def _ltx(
    layers: int = 48, heads: int = 32, size: int = 128, caption: int = 3840, **more: int
) -> FamilyModel:
    config = dict(
        image_model="ltxav",
        in_channels=128,
        audio_in_channels=128,
        cross_attention_dim=heads * size,
        audio_cross_attention_dim=heads * size // 2,
        attention_head_dim=size,
        audio_attention_head_dim=size // 2,
        num_attention_heads=heads,
        audio_num_attention_heads=heads,
        caption_channels=caption,
        num_layers=layers,
        **more,
    )
    return FamilyModel("LTXAV", config, latent=(128, 16, 22, 40))


# The smallest first, so that a budget of time is spent on as many as possible.
REAL: dict[str, RealModel] = {
    "z_image": RealModel("Z-Image, 1024 px", _z_image(), 128, 2560, 28, 4.0),
    "flux_dev": RealModel("FLUX.1 dev, 1024 px", _flux(), 512, 4096, 28, 1.0, pooled=768),
    "sd35_large": RealModel("SD3.5 Large, 1024 px", _sd3(), 154, 4096, 28, 4.5, pooled=2048),
    "qwen_image": RealModel("Qwen-Image, 1328 px", _qwen(), 128, 3584, 20, 2.5),
    "ltx2": RealModel(
        "LTX-2 19B, 1280 x 704, 121 frames, audio", _ltx(), 1024, 7680, 20, 4.0, audio=126
    ),
    "wan_14b": RealModel("Wan 2.1 / 2.2 14B, 832 x 480, 81 frames", _wan(), 512, 4096, 20, 5.0),
}


def _tiny(name: str, family: FamilyModel, latent: tuple[int, ...], **changed: Any) -> RealModel:
    small = {"text": 16, "steps": 10, **changed}
    return replace(REAL[name], family=replace(family, latent=latent), **small)


# The same classes, small enough for a test.
TINY: dict[str, RealModel] = {
    "z_image": _tiny("z_image", _z_image(256, 2, 64), (16, 16, 16), width=64),
    "flux_dev": _tiny("flux_dev", _flux(128, 1, 2, 64), (16, 16, 16), width=64),
    "sd35_large": _tiny("sd35_large", _sd3(2, 64), (16, 16, 16), width=64),
    "qwen_image": _tiny("qwen_image", _qwen(2, 1, 64), (16, 1, 16, 16), width=64),
    "ltx2": _tiny(
        "ltx2",
        _ltx(
            2,
            2,
            32,
            64,
            connector_attention_head_dim=32,
            connector_num_attention_heads=2,
            connector_num_layers=1,
        ),
        (128, 3, 4, 6),
        width=128,
        audio=5,
    ),
    "wan_14b": _tiny("wan_14b", _wan(128, 256, 2, 64), (16, 3, 8, 12), width=64),
}
