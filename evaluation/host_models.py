"""Every diffusion model class of the host, tiny and with random weights.

`TINY` has an entry for each class of comfy.supported_models; `NOT_SAMPLED` names those that no
sampler draws with. A class that is in neither is `unnamed`: a newer host has it, and an entry here
tells what makes it tiny."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.supported_models
import torch

from evaluation.random_models import FamilyModel

CHANNELS = 16
CONTEXT = 64  # width of most tiny models' text
POOLED = 64


@dataclass(frozen=True)
class HostModel:
    """A class of the host. known_as: models by the names that people use; kind: image, video,
    audio, 3D or UNet; note: what the row does not exercise."""

    known_as: str
    kind: str
    model: FamilyModel
    note: str = ""


_STREAMS: dict[str, Any] = dict(
    vec_in_dim=POOLED,
    context_in_dim=CONTEXT,
    hidden_size=128,
    mlp_ratio=4.0,
    num_heads=1,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[16, 56, 56],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
)
_FLUX = dict(
    image_model="flux",
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    guidance_embed=True,
    txt_ids_dims=[],
    **_STREAMS,
)
_FLUX2 = dict(
    image_model="flux2",
    in_channels=128,
    out_channels=128,
    guidance_embed=True,
    txt_ids_dims=[3],
    global_modulation=True,
    mlp_silu_act=True,
    ops_bias=False,
    default_ref_method="index",
    ref_index_scale=10.0,
    **{
        **_STREAMS,
        "vec_in_dim": None,
        "axes_dim": [32] * 4,
        "theta": 2000,
        "patch_size": 1,
        "qkv_bias": False,
        "mlp_ratio": 3.0,
    },
)
_CHROMA = dict(
    image_model="chroma",
    in_channels=64,
    out_channels=64,
    txt_ids_dims=[],
    in_dim=64,
    out_dim=128,
    hidden_dim=64,
    n_layers=1,
    **_STREAMS,
)
_RADIANCE = {
    **_CHROMA,
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 1,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 0,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
_HUNYUAN = dict(
    image_model="hunyuan_video",
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    guidance_embed=True,
    byt5=False,
    meanflow=False,
    use_cond_type_embedding=False,
    vision_in_dim=None,
    meanflow_sum=False,
    **{**_STREAMS, "patch_size": [1, 2, 2], "theta": 256},
)
_HUNYUAN_15 = {
    **_HUNYUAN,
    "in_channels": 65,
    "out_channels": 32,
    "vec_in_dim": None,
    "guidance_embed": False,
    "patch_size": [1, 1, 1],
    "byt5": True,
    "vision_in_dim": 1152,
    "use_cond_type_embedding": True,
    "meanflow_sum": True,
}
_WAN = dict(
    image_model="wan2.1",
    model_type="t2v",
    dim=128,
    ffn_dim=256,
    freq_dim=64,
    text_dim=CONTEXT,
    num_heads=1,
    num_layers=3,
)
_LUMINA = dict(
    image_model="lumina2",
    patch_size=2,
    in_channels=CHANNELS,
    dim=192,
    n_layers=3,
    n_refiner_layers=2,
    n_heads=2,
    n_kv_heads=1,
    multiple_of=64,
    ffn_dim_multiplier=2.0,
    qk_norm=True,
    cap_feat_dim=CONTEXT,
    axes_dims=[32, 32, 32],
    axes_lens=[300, 512, 512],
    rope_theta=10000.0,
)
_Z_IMAGE = {
    **_LUMINA,
    "dim": 288,
    "n_heads": 3,
    "n_kv_heads": 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_COSMOS = dict(
    image_model="cosmos",
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    patch_spatial=2,
    patch_temporal=1,
    model_channels=128,
    num_blocks=3,
    num_heads=2,
    crossattn_emb_channels=CONTEXT,
    concat_padding_mask=True,
    block_config="FA-CA-MLP",
    pos_emb_cls="rope3d",
    pos_emb_learnable=False,
    pos_emb_interpolation="crop",
    block_x_format="THWBD",
    affline_emb_norm=True,
    use_adaln_lora=True,
    adaln_lora_dim=16,
    extra_per_block_abs_pos_emb=True,
    extra_per_block_abs_pos_emb_type="learnable",
)
_PREDICT2 = dict(
    image_model="cosmos_predict2",
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    patch_spatial=2,
    patch_temporal=1,
    concat_padding_mask=True,
    model_channels=128,
    num_blocks=3,
    num_heads=2,
    crossattn_emb_channels=CONTEXT,
    pos_emb_cls="rope3d",
    pos_emb_learnable=True,
    pos_emb_interpolation="crop",
    use_adaln_lora=True,
    adaln_lora_dim=16,
    extra_per_block_abs_pos_emb=False,
    rope_enable_fps_modulation=False,
)
_COGVIDEO = dict(
    image_model="cogvideox",
    num_attention_heads=2,
    attention_head_dim=64,
    time_embed_dim=64,
    text_embed_dim=CONTEXT,
    num_layers=3,
    in_channels=CHANNELS,
    use_rotary_positional_embeddings=True,
)
_KANDINSKY = dict(
    image_model="kandinsky5",
    in_text_dim=CONTEXT,
    in_text_dim2=POOLED,
    time_dim=64,
    model_dim=128,
    ff_dim=256,
    num_text_blocks=1,
    num_visual_blocks=3,
)
_LTX = dict(
    image_model="ltxv",
    in_channels=128,
    cross_attention_dim=64,
    attention_head_dim=32,
    num_attention_heads=2,
    caption_channels=CONTEXT,
    num_layers=3,
)
_LTX_AUDIO = dict(
    image_model="ltxav",
    in_channels=128,
    audio_in_channels=128,
    cross_attention_dim=64,
    audio_cross_attention_dim=64,
    attention_head_dim=32,
    audio_attention_head_dim=32,
    num_attention_heads=2,
    audio_num_attention_heads=2,
    caption_channels=CONTEXT,
    connector_attention_head_dim=32,
    connector_num_attention_heads=2,
    num_layers=2,
)
_UNET = dict(
    image_size=32,
    use_checkpoint=False,
    use_spatial_transformer=True,
    legacy=False,
    in_channels=4,
    out_channels=4,
    model_channels=64,
    num_res_blocks=[1, 1],
    channel_mult=[1, 2],
    transformer_depth=[1, 1],
    transformer_depth_output=[1, 1, 1, 1],
    transformer_depth_middle=1,
    use_linear_in_transformer=True,
    context_dim=CONTEXT,
    adm_in_channels=None,
    use_temporal_resblock=False,
    use_temporal_attention=False,
)
_VIDEO_UNET = {
    **_UNET,
    "in_channels": 8,
    "num_classes": "sequential",
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
    "use_temporal_resblock": True,
    "use_temporal_attention": True,
    "disable_temporal_crossattention": False,
}
_IMAGE = (4, 16, 24)
_FRAMES = (CHANNELS, 3, 8, 12)


def _sdxl(name: str, width: int) -> FamilyModel:
    config = {**_UNET, "num_classes": "sequential", "adm_in_channels": width}
    pooled = width - 256 * (5 if name == "SDXLRefiner" else 6)
    if name == "SDXL_instructpix2pix":
        config["in_channels"] = 8
    return FamilyModel(name, config, _IMAGE, pooled=pooled)


def _wan(name: str, model_type: str = "t2v", latent: tuple = _FRAMES, **config: Any) -> FamilyModel:
    given = config.pop("given", dict)
    return FamilyModel(name, {**_WAN, "model_type": model_type, **config}, latent, given=given)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _seconds(*names: str, kind: str = "learned") -> dict[str, torch.Tensor]:
    """The embeddings of a song's seconds in a file of Stable Audio."""
    from comfy.ldm.audio.embedders import NumberConditioner

    out = {}
    for name in names:
        embedder = NumberConditioner(768, max_val=512, fourier_features_type=kind)
        for key, tensor in embedder.state_dict().items():
            out[f"conditioner.conditioners.{name}.{key}"] = _noise(*tensor.shape) * 0.05
    return out


def _zero123() -> dict[str, torch.Tensor]:
    return {"cc_projection.weight": _noise(768, 772), "cc_projection.bias": _noise(768)}


def _mask() -> dict[str, torch.Tensor]:
    return {"attention_mask": torch.ones(1, 16, dtype=torch.long)}


def _hidream_o1() -> dict[str, torch.Tensor]:
    return {"text_input_ids": torch.arange(3, 15)[None]}


def _hydit() -> dict[str, torch.Tensor]:
    return {
        "conditioning_mt5xl": _noise(1, 16, CONTEXT),
        "attention_mask": torch.ones(1, 16),
        "attention_mask_mt5xl": torch.ones(1, 16),
    }


_HYDIT = dict(
    hidden_size=128,
    depth=4,
    num_heads=2,
    text_states_dim=CONTEXT,
    text_states_dim_t5=CONTEXT,
    text_len=16,
    text_len_t5=16,
)

TINY: dict[str, HostModel] = {
    # Image.
    "Flux": HostModel("FLUX.1 dev, Krea, Kontext", "image", FamilyModel("Flux", _FLUX)),
    "FluxInpaint": HostModel(
        "FLUX.1 Fill", "image", FamilyModel("FluxInpaint", {**_FLUX, "in_channels": 96})
    ),
    "FluxSchnell": HostModel(
        "FLUX.1 schnell", "image", FamilyModel("FluxSchnell", {**_FLUX, "guidance_embed": False})
    ),
    "LongCatImage": HostModel(
        "LongCat-Image",
        "image",
        FamilyModel(
            "LongCatImage",
            {**_FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]},
        ),
    ),
    "Flux2": HostModel(
        "FLUX.2 dev, klein",
        "image",
        FamilyModel("Flux2", _FLUX2, latent=(128, 8, 12)),
        "sparse attention, for which 96 image tokens beside 512 of text are too few",
    ),
    "SD3": HostModel(
        "SD3, SD3.5",
        "image",
        FamilyModel(
            "SD3",
            dict(
                input_size=None,
                in_channels=CHANNELS,
                patch_size=2,
                depth=2,
                adm_in_channels=POOLED,
                context_embedder_config={
                    "target": "torch.nn.Linear",
                    "params": {"in_features": CONTEXT, "out_features": 128},
                },
                num_patches=1024,
                pos_embed_max_size=32,
                pos_embed_scaling_factor=None,
                qk_norm="rms",
                x_block_self_attn_layers=[],
            ),
        ),
    ),
    "Chroma": HostModel("Chroma", "image", FamilyModel("Chroma", _CHROMA)),
    "ChromaRadiance": HostModel(
        "Chroma Radiance", "image", FamilyModel("ChromaRadiance", _RADIANCE, latent=(3, 128, 192))
    ),
    "QwenImage": HostModel(
        "Qwen-Image, Qwen-Image-Edit, Layered",
        "image",
        FamilyModel(
            "QwenImage",
            dict(
                image_model="qwen_image",
                in_channels=64,
                num_layers=3,
                num_attention_heads=1,
                joint_attention_dim=CONTEXT,
            ),
            latent=(CHANNELS, 1, 16, 24),
        ),
    ),
    "Lumina2": HostModel(
        "Lumina Image 2.0, NetaYume, NewBie", "image", FamilyModel("Lumina2", _LUMINA)
    ),
    "ZImage": HostModel(
        "Z-Image, Z-Image-Turbo",
        "image",
        FamilyModel("ZImage", _Z_IMAGE, latent=(CHANNELS, 16, 20)),
    ),
    "ZImagePixelSpace": HostModel(
        "Z-Image in pixel space",
        "image",
        FamilyModel(
            "ZImagePixelSpace",
            {
                **_Z_IMAGE,
                "image_model": "zimage_pixel",
                "patch_size": 16,
                "in_channels": 3,
                "decoder_hidden_size": 32,
                "decoder_num_res_blocks": 1,
                "decoder_max_freqs": 4,
            },
            latent=(3, 128, 160),
        ),
    ),
    "HunyuanImage21": HostModel(
        "HunyuanImage 2.1",
        "image",
        FamilyModel(
            "HunyuanImage21",
            {
                **_HUNYUAN,
                "in_channels": 64,
                "out_channels": 64,
                "vec_in_dim": None,
                "patch_size": [1, 1],
                "axes_dim": [64, 64],
                "byt5": True,
                "meanflow": True,
            },
            latent=(64, 8, 12),
        ),
    ),
    "HunyuanImage21Refiner": HostModel(
        "HunyuanImage 2.1 refiner",
        "image",
        FamilyModel(
            "HunyuanImage21Refiner",
            {
                **_HUNYUAN,
                "in_channels": 128,
                "out_channels": 64,
                "vec_in_dim": None,
                "patch_size": [1, 1, 1],
                "guidance_embed": False,
            },
            latent=(64, 1, 8, 12),
        ),
    ),
    "AuraFlow": HostModel(
        "AuraFlow, Pony V7",
        "image",
        FamilyModel(
            "AuraFlow",
            dict(
                cond_seq_dim=CONTEXT,
                dim=256,
                n_heads=1,
                n_layers=4,
                n_double_layers=2,
                max_seq=256,
                global_conddim=256,
            ),
            latent=_IMAGE,
        ),
    ),
    "PixArtAlpha": HostModel(
        "PixArt-alpha",
        "image",
        FamilyModel(
            "PixArtAlpha",
            dict(
                image_model="pixart_alpha",
                hidden_size=128,
                num_heads=2,
                depth=3,
                caption_channels=CONTEXT,
                micro_condition=False,
                input_size=64,
                pe_interpolation=1,
            ),
            latent=(4, 64, 64),  # the host divides by zero on smaller ones
        ),
    ),
    "PixArtSigma": HostModel(
        "PixArt-Sigma",
        "image",
        FamilyModel(
            "PixArtSigma",
            dict(
                image_model="pixart_sigma",
                hidden_size=128,
                num_heads=2,
                depth=3,
                caption_channels=CONTEXT,
                micro_condition=False,
                input_size=64,
                pe_interpolation=1,
            ),
            latent=(4, 64, 64),  # the host divides by zero on smaller ones
        ),
    ),
    "HunyuanDiT": HostModel(
        "HunyuanDiT 1.2",
        "image",
        FamilyModel(
            "HunyuanDiT",
            dict(image_model="hydit", **_HYDIT),
            latent=_IMAGE,
            given=_hydit,
        ),
    ),
    "HunyuanDiT1": HostModel(
        "HunyuanDiT 1.0, 1.1",
        "image",
        FamilyModel(
            "HunyuanDiT1",
            dict(image_model="hydit1", size_cond=True, use_style_cond=True, **_HYDIT),
            latent=_IMAGE,
            given=_hydit,
        ),
    ),
    "CosmosT2IPredict2": HostModel(
        "Cosmos Predict2 text to image",
        "image",
        FamilyModel("CosmosT2IPredict2", _PREDICT2, latent=(CHANNELS, 1, 16, 24)),
    ),
    "Anima": HostModel(
        "Anima",
        "image",
        FamilyModel(
            "Anima",
            {**_PREDICT2, "image_model": "anima", "crossattn_emb_channels": 1024},
            latent=(CHANNELS, 1, 16, 24),
            text=(16, 1024),
        ),
    ),
    "PixelDiTT2I": HostModel(
        "PixelDiT",
        "image",
        FamilyModel(
            "PixelDiTT2I",
            dict(
                image_model="pixeldit_t2i",
                hidden_size=128,
                num_groups=2,
                pixel_hidden_size=16,
                pixel_attn_hidden_size=64,
                pixel_num_groups=1,
                patch_depth=2,
                pixel_depth=1,
                txt_embed_dim=CONTEXT,
            ),
            latent=(3, 64, 96),
        ),
    ),
    "PiD": HostModel(
        "PiD (pixel decoder)",
        "image",
        FamilyModel(
            "PiD",
            dict(
                image_model="pid",
                hidden_size=128,
                num_groups=2,
                pixel_hidden_size=16,
                pixel_attn_hidden_size=64,
                pixel_num_groups=1,
                patch_depth=2,
                pixel_depth=1,
                txt_embed_dim=CONTEXT,
                lq_hidden_dim=32,
                lq_num_res_blocks=1,
                lq_interval=1,
            ),
            latent=(3, 64, 96),
            given=lambda: {
                "lq_latent": _noise(1, 16, 2, 3),
                "degrade_sigma": torch.zeros(1),
            },
        ),
    ),
    "HiDream": HostModel(
        "HiDream I1, E1",
        "image",
        FamilyModel(
            "HiDream",
            dict(
                image_model="hidream",
                patch_size=2,
                in_channels=CHANNELS,
                out_channels=CHANNELS,
                num_layers=2,
                num_single_layers=1,
                attention_head_dim=64,
                num_attention_heads=2,
                caption_channels=[CONTEXT, CONTEXT],
                text_emb_dim=POOLED,
                axes_dims_rope=[32, 16, 16],
                llama_layers=[0, 1, 1],
            ),
            given=lambda: {"conditioning_llama3": _noise(1, 2, 16, CONTEXT)},
        ),
    ),
    "HiDreamO1": HostModel(
        "HiDream O1",
        "image",
        FamilyModel(
            "HiDreamO1",
            dict(
                image_model="hidream_o1",
                text_config_overrides=dict(
                    hidden_size=128,
                    intermediate_size=128,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    head_dim=128,
                ),
                vision_config_overrides=dict(
                    hidden_size=64, num_heads=1, intermediate_size=64, depth=1
                ),
            ),
            latent=(3, 128, 192),
            given=_hidream_o1,
        ),
    ),
    "Omnigen2": HostModel(
        "OmniGen 2",
        "image",
        FamilyModel(
            "Omnigen2",
            dict(
                image_model="omnigen2",
                hidden_size=192,
                num_layers=3,
                num_refiner_layers=1,
                num_attention_heads=2,
                num_kv_heads=1,
                multiple_of=64,
                text_feat_dim=CONTEXT,
                timestep_scale=1000.0,
            ),
            given=_mask,
        ),
    ),
    "Boogu": HostModel(
        "Boogu-Image",
        "image",
        FamilyModel(
            "Boogu",
            dict(
                image_model="boogu",
                hidden_size=240,
                num_layers=2,
                num_double_stream_layers=1,
                num_refiner_layers=1,
                num_attention_heads=2,
                num_kv_heads=1,
                multiple_of=64,
                instruction_feat_dim=CONTEXT,
            ),
            given=_mask,
        ),
    ),
    "Ideogram4": HostModel(
        "Ideogram 4",
        "image",
        FamilyModel(
            "Ideogram4",
            dict(
                image_model="ideogram4",
                num_layers=3,
                num_attention_heads=1,
                attention_head_dim=128,
                intermediate_size=256,
                adaln_dim=64,
                llm_features_dim=CONTEXT,
                mrope_section=[24, 20, 20],
            ),
            latent=(128, 8, 12),
        ),
    ),
    "Krea2": HostModel(
        "Krea 2, Krea 2 Turbo",
        "image",
        FamilyModel(
            "Krea2",
            dict(
                image_model="krea2",
                features=128,
                tdim=32,
                txtdim=CONTEXT,
                heads=2,
                kvheads=1,
                layers=3,
                txtlayers=1,
                txtheads=1,
                txtkvheads=1,
            ),
            latent=(CHANNELS, 1, 16, 24),
        ),
    ),
    "MageFlow": HostModel(
        "Mage-Flow",
        "image",
        FamilyModel(
            "MageFlow",
            dict(
                image_model="mage_flow",
                num_layers=3,
                num_attention_heads=1,
                joint_attention_dim=CONTEXT,
            ),
            latent=(128, 8, 12),
        ),
    ),
    "JoyImage": HostModel(
        "JoyImage Edit",
        "image",
        FamilyModel(
            "JoyImage",
            dict(
                image_model="joyimage",
                hidden_size=128,
                num_attention_heads=1,
                num_layers=3,
                text_dim=CONTEXT,
            ),
            latent=(CHANNELS, 1, 16, 24),
        ),
    ),
    "Lens": HostModel(
        "Lens",
        "image",
        FamilyModel(
            "Lens",
            dict(
                image_model="lens",
                num_layers=3,
                num_attention_heads=1,
                attention_head_dim=64,
                enc_hidden_dim=CONTEXT,
                multi_layer_encoder_feature=False,
                selected_layer_index=(0,),
            ),
            latent=(128, 8, 12),
        ),
    ),
    "Kandinsky5Image": HostModel(
        "Kandinsky 5 image",
        "image",
        FamilyModel(
            "Kandinsky5Image", {**_KANDINSKY, "visual_embed_dim": 64, "axes_dims": (16, 24, 24)}
        ),
    ),
    "ErnieImage": HostModel(
        "ERNIE-Image",
        "image",
        FamilyModel(
            "ErnieImage",
            dict(
                image_model="ernie",
                hidden_size=128,
                num_attention_heads=1,
                num_layers=3,
                ffn_hidden_size=256,
                text_in_dim=CONTEXT,
            ),
            latent=(128, 8, 12),
        ),
    ),
    # Video.
    "WAN21_T2V": HostModel("Wan 2.1 and 2.2 text to video", "video", _wan("WAN21_T2V")),
    "WAN21_I2V": HostModel(
        "Wan 2.1 and 2.2 image to video, Fun inpaint",
        "video",
        _wan("WAN21_I2V", "i2v", in_dim=36),
    ),
    "WAN22_T2V": HostModel(
        "Wan 2.2 5B", "video", _wan("WAN22_T2V", latent=(48, 3, 8, 12), in_dim=48, out_dim=48)
    ),
    "WAN21_CausalAR_T2V": HostModel(
        "Wan causal (Self Forcing)", "video", _wan("WAN21_CausalAR_T2V")
    ),
    "WAN21_FunControl2V": HostModel(
        "Wan Fun Control", "video", _wan("WAN21_FunControl2V", "i2v", in_dim=48)
    ),
    "WAN21_Vace": HostModel(
        "Wan VACE", "video", _wan("WAN21_Vace", "vace", vace_layers=1, vace_in_dim=96)
    ),
    "WAN21_Camera": HostModel(
        "Wan Camera",
        "video",
        _wan("WAN21_Camera", "camera", in_dim=32),
        "without a camera's path",
    ),
    "WAN22_Camera": HostModel(
        "Wan 2.2 Camera",
        "video",
        _wan("WAN22_Camera", "camera_2.2", in_dim=36),
        "without a camera's path",
    ),
    "WAN22_S2V": HostModel(
        "Wan 2.2 S2V",
        "video",
        _wan("WAN22_S2V", "s2v", audio_inject_layers=[0, 2]),
        "without sound",
    ),
    "WAN21_HuMo": HostModel("HuMo", "video", _wan("WAN21_HuMo", "humo"), "without sound"),
    "WAN22_Animate": HostModel(
        "Wan 2.2 Animate",
        "video",
        _wan("WAN22_Animate", "animate", in_dim=36, num_layers=5),
        "without a pose",
    ),
    "WAN21_FlowRVS": HostModel("FlowRVS", "video", _wan("WAN21_FlowRVS", "flow_rvs")),
    "WAN21_SCAIL": HostModel("SCAIL", "video", _wan("WAN21_SCAIL", "scail"), "without a pose"),
    "WAN21_SCAIL2": HostModel("SCAIL-2", "video", _wan("WAN21_SCAIL2", "scail2"), "without a pose"),
    "WAN22_WanDancer": HostModel(
        "WanDancer",
        "video",
        _wan("WAN22_WanDancer", "wandancer", in_dim=36, audio_inject_layers=[0, 2]),
        "without music",
    ),
    "HunyuanVideo": HostModel(
        "HunyuanVideo", "video", FamilyModel("HunyuanVideo", _HUNYUAN, latent=_FRAMES)
    ),
    "HunyuanVideoI2V": HostModel(
        "HunyuanVideo image to video",
        "video",
        FamilyModel("HunyuanVideoI2V", {**_HUNYUAN, "in_channels": 33}, latent=_FRAMES),
    ),
    "HunyuanVideoSkyreelsI2V": HostModel(
        "SkyReels image to video",
        "video",
        FamilyModel("HunyuanVideoSkyreelsI2V", {**_HUNYUAN, "in_channels": 32}, latent=_FRAMES),
    ),
    "HunyuanVideo15": HostModel(
        "HunyuanVideo 1.5",
        "video",
        FamilyModel("HunyuanVideo15", _HUNYUAN_15, latent=(32, 2, 8, 12)),
    ),
    "HunyuanVideo15_SR_Distilled": HostModel(
        "HunyuanVideo 1.5 super-resolution",
        "video",
        FamilyModel(
            "HunyuanVideo15_SR_Distilled",
            {**_HUNYUAN_15, "in_channels": 98, "meanflow": True},
            latent=(32, 2, 8, 12),
        ),
    ),
    "Kandinsky5": HostModel(
        "Kandinsky 5 video",
        "video",
        FamilyModel("Kandinsky5", {**_KANDINSKY, "visual_embed_dim": 132}, latent=_FRAMES),
    ),
    "LTXV": HostModel(
        "LTX-Video", "video", FamilyModel("LTXV", _LTX, latent=(128, 3, 4, 6), given=_mask)
    ),
    "LTXAV": HostModel(
        "LTX-2 (video and audio)",
        "video",
        FamilyModel(
            "LTXAV",
            _LTX_AUDIO,
            latent=(128, 3, 4, 6),
            others=((8, 30, 16),),
            text=(8, 2 * CONTEXT),
        ),
    ),
    "MiniMaxH3": HostModel(
        "MiniMax H3 (video and audio)",
        "video",
        FamilyModel(
            "MiniMaxH3",
            dict(
                image_model="minimax_h3",
                hidden_size=128,
                num_layers=3,
                token_refiner_num_layers=1,
                num_attention_heads=1,
                attention_head_dim=128,
                ffn_hidden_size=256,
                text_dim=CONTEXT,
                timestep_input_dim=64,
                time_embed_hidden_size=128,
                time_embed_dim=64,
            ),
            latent=(24, 2, 12, 16),
            others=((32, 2, 12),),
            images=1,
        ),
    ),
    "GenmoMochi": HostModel(
        "Mochi 1",
        "video",
        FamilyModel(
            "GenmoMochi",
            dict(
                image_model="mochi_preview",
                depth=3,
                patch_size=2,
                num_heads=2,
                hidden_size_x=128,
                hidden_size_y=64,
                mlp_ratio_x=96.0,  # the host takes 12,288 channels alone
                mlp_ratio_y=4.0,
                learn_sigma=False,
                in_channels=12,
                qk_norm=True,
                qkv_bias=False,
                out_bias=True,
                attn_drop=0.0,
                patch_embed_bias=True,
                posenc_preserve_area=True,
                timestep_mlp_bias=True,
                attend_to_padding=False,
                timestep_scale=1000.0,
                use_t5=True,
                t5_feat_dim=CONTEXT,
                t5_token_length=256,
                rope_theta=10000.0,
            ),
            latent=(12, 3, 8, 12),
            text=(256, CONTEXT),
            given=lambda: {"attention_mask": torch.ones(1, 256, dtype=torch.long)},
        ),
    ),
    "CosmosT2V": HostModel(
        "Cosmos 1 text to video", "video", FamilyModel("CosmosT2V", _COSMOS, latent=_FRAMES)
    ),
    "CosmosI2V": HostModel(
        "Cosmos 1 image to video",
        "video",
        FamilyModel("CosmosI2V", {**_COSMOS, "in_channels": 17}, latent=_FRAMES),
    ),
    "CosmosI2VPredict2": HostModel(
        "Cosmos Predict2 image to video",
        "video",
        FamilyModel("CosmosI2VPredict2", {**_PREDICT2, "in_channels": 17}, latent=_FRAMES),
    ),
    "CogVideoX_T2V": HostModel(
        "CogVideoX text to video",
        "video",
        FamilyModel("CogVideoX_T2V", _COGVIDEO, latent=_FRAMES),
    ),
    "CogVideoX_I2V": HostModel(
        "CogVideoX image to video",
        "video",
        FamilyModel("CogVideoX_I2V", {**_COGVIDEO, "in_channels": 32}, latent=_FRAMES),
    ),
    "CogVideoX_Inpaint": HostModel(
        "CogVideoX Fun inpaint",
        "video",
        FamilyModel("CogVideoX_Inpaint", {**_COGVIDEO, "in_channels": 48}, latent=_FRAMES),
    ),
    "SeedVR2": HostModel(
        "SeedVR2",
        "video",
        FamilyModel(
            "SeedVR2",
            dict(
                image_model="seedvr2",
                norm_eps=1e-5,
                num_layers=2,
                mlp_type="swiglu",
                vid_dim=128,
                heads=1,
                vid_out_norm=True,
                mm_layers=1,
            ),
            latent=(16, 2, 8, 12),
            text=(58, 5120),
            given=lambda: {"condition": _noise(1, 17, 2, 8, 12)},
        ),
    ),
    # Audio.
    "StableAudio": HostModel(
        "Stable Audio Open",
        "audio",
        FamilyModel(
            "StableAudio",
            dict(
                audio_model="dit1.0",
                embed_dim=128,
                num_heads=2,
                depth=3,
                cond_token_dim=768,
                global_cond_dim=1536,
                project_cond_tokens=True,
            ),
            latent=(64, 96),
            text=(16, 768),
            file=lambda: _seconds("seconds_start", "seconds_total"),
        ),
    ),
    "StableAudio3": HostModel(
        "Stable Audio 3",
        "audio",
        FamilyModel(
            "StableAudio3",
            dict(
                audio_model="dit1.0",
                io_channels=256,
                embed_dim=128,
                num_heads=2,
                depth=3,
                cond_token_dim=768,
                global_cond_dim=768,
                project_cond_tokens=True,
                global_cond_shared_embed=True,
                global_cond_type="adaLN",
                timestep_features_type="expo",
                local_add_cond_dim=257,
            ),
            latent=(256, 96),
            text=(16, 768),
            file=lambda: _seconds("seconds_total", kind="expo"),
        ),
    ),
    "ACEStep": HostModel(
        "ACE-Step 1",
        "audio",
        FamilyModel(
            "ACEStep",
            dict(
                audio_model="ace",
                num_layers=3,
                inner_dim=128,
                attention_head_dim=64,
                num_attention_heads=2,
                mlp_ratio=2.5,
                text_embedding_dim=CONTEXT,
                lyric_hidden_size=1024,
                lyric_encoder_vocab_size=128,
                ssl_encoder_depths=[1, 1],
                ssl_latent_dims=[64, 64],
            ),
            latent=(8, 16, 48),
            given=lambda: {"conditioning_lyrics": torch.arange(1, 9)[None]},
        ),
    ),
    "ACEStep15": HostModel(
        "ACE-Step 1.5",
        "audio",
        FamilyModel(
            "ACEStep15",
            dict(
                audio_model="ace1.5",
                hidden_size=128,
                text_hidden_dim=CONTEXT,
                num_dit_layers=2,
                num_lyric_layers=1,
                num_timbre_layers=1,
                num_tokenizer_layers=1,
                num_heads=1,
                num_kv_heads=1,
                head_dim=128,
                intermediate_size=256,
                fsq_dim=128,
                encoder_hidden_size=128,
                encoder_intermediate_size=256,
                encoder_num_heads=1,
            ),
            latent=(64, 100),
            given=lambda: {"conditioning_lyrics": _noise(1, 8, CONTEXT)},
        ),
    ),
    # 3D.
    "Hunyuan3Dv2": HostModel(
        "Hunyuan3D 2.0",
        "3D",
        FamilyModel(
            "Hunyuan3Dv2",
            dict(
                image_model="hunyuan3d2",
                context_in_dim=CONTEXT,
                hidden_size=128,
                num_heads=2,
                depth=2,
                depth_single_blocks=2,
            ),
            latent=(64, 96),
        ),
    ),
    "Hunyuan3Dv2mini": HostModel(
        "Hunyuan3D 2 mini",
        "3D",
        FamilyModel(
            "Hunyuan3Dv2mini",
            dict(
                image_model="hunyuan3d2",
                context_in_dim=CONTEXT,
                hidden_size=128,
                num_heads=2,
                depth=2,
                depth_single_blocks=2,
                guidance_embed=True,
            ),
            latent=(64, 96),
        ),
    ),
    "Hunyuan3Dv2_1": HostModel(
        "Hunyuan3D 2.1",
        "3D",
        FamilyModel(
            "Hunyuan3Dv2_1",
            dict(
                image_model="hunyuan3d2_1",
                hidden_size=128,
                context_dim=CONTEXT,
                depth=3,
                num_heads=2,
                num_moe_layers=1,
                num_experts=2,
                guidance_cond_proj_dim=None,
            ),
            latent=(64, 96),
        ),
    ),
    "TripoSplat": HostModel(
        "TripoSplat",
        "3D",
        FamilyModel(
            "TripoSplat",
            dict(
                image_model="triposplat",
                q_token_length=64,
                model_channels=128,
                cond_channels=CONTEXT,
                num_blocks=2,
                num_refiner_blocks=1,
            ),
            latent=(64, 16),
            others=((1, 5),),
        ),
    ),
    # UNet.
    "SD15": HostModel("SD 1.5", "UNet", FamilyModel("SD15", _UNET, _IMAGE)),
    "SD20": HostModel("SD 2.0, 2.1", "UNet", FamilyModel("SD20", _UNET, _IMAGE)),
    "SD21UnclipL": HostModel(
        "SD 2.1 unCLIP L",
        "UNet",
        FamilyModel(
            "SD21UnclipL",
            {**_UNET, "num_classes": "sequential", "adm_in_channels": 1536},
            _IMAGE,
        ),
    ),
    "SD21UnclipH": HostModel(
        "SD 2.1 unCLIP H",
        "UNet",
        FamilyModel(
            "SD21UnclipH",
            {**_UNET, "num_classes": "sequential", "adm_in_channels": 2048},
            _IMAGE,
        ),
    ),
    "SDXL": HostModel("SDXL, Illustrious, Pony V6", "UNet", _sdxl("SDXL", 2816)),
    "SDXLRefiner": HostModel("SDXL refiner", "UNet", _sdxl("SDXLRefiner", 2560)),
    "SSD1B": HostModel("SSD-1B", "UNet", _sdxl("SSD1B", 2816)),
    "Segmind_Vega": HostModel("Segmind Vega", "UNet", _sdxl("Segmind_Vega", 2816)),
    "KOALA_700M": HostModel("KOALA 700M", "UNet", _sdxl("KOALA_700M", 2816)),
    "KOALA_1B": HostModel("KOALA 1B", "UNet", _sdxl("KOALA_1B", 2816)),
    "SDXL_instructpix2pix": HostModel(
        "SDXL InstructPix2Pix", "UNet", _sdxl("SDXL_instructpix2pix", 2816)
    ),
    "SD15_instructpix2pix": HostModel(
        "InstructPix2Pix",
        "UNet",
        FamilyModel("SD15_instructpix2pix", {**_UNET, "in_channels": 8}, _IMAGE),
    ),
    "LotusD": HostModel(
        "Lotus depth",
        "UNet",
        FamilyModel("LotusD", {**_UNET, "num_classes": "sequential", "adm_in_channels": 4}, _IMAGE),
    ),
    "Stable_Zero123": HostModel(
        "Stable Zero123",
        "UNet",
        FamilyModel(
            "Stable_Zero123",
            {**_UNET, "in_channels": 8, "context_dim": 768},
            _IMAGE,
            text=(1, 768),
            file=_zero123,
        ),
    ),
    "SD_X4Upscaler": HostModel(
        "SD x4 upscaler",
        "UNet",
        FamilyModel(
            "SD_X4Upscaler",
            {
                **_UNET,
                "in_channels": 7,
                "num_classes": 1000,
                "disable_self_attentions": [True, False],
            },
            _IMAGE,
        ),
    ),
    "SVD_img2vid": HostModel(
        "Stable Video Diffusion",
        "UNet",
        FamilyModel("SVD_img2vid", {**_VIDEO_UNET, "adm_in_channels": 768}, _IMAGE),
        "a batch is one video",
    ),
    "SV3D_u": HostModel(
        "SV3D u",
        "UNet",
        FamilyModel("SV3D_u", {**_VIDEO_UNET, "adm_in_channels": 256}, _IMAGE),
        "a batch is one video",
    ),
    "SV3D_p": HostModel(
        "SV3D p",
        "UNet",
        FamilyModel("SV3D_p", {**_VIDEO_UNET, "adm_in_channels": 1280}, _IMAGE),
        "a batch is one video",
    ),
    "Stable_Cascade_C": HostModel(
        "Stable Cascade C",
        "UNet",
        FamilyModel(
            "Stable_Cascade_C",
            dict(
                stable_cascade_stage="c",
                c_cond=64,
                c_hidden=[64, 64],
                nhead=[1, 1],
                blocks=[[1, 1], [1, 1]],
                c_clip_text=CONTEXT,
                c_clip_text_pooled=POOLED,
            ),
            latent=(16, 16, 24),
            pooled=POOLED,
        ),
    ),
    "Stable_Cascade_B": HostModel(
        "Stable Cascade B",
        "UNet",
        FamilyModel(
            "Stable_Cascade_B",
            dict(
                stable_cascade_stage="b",
                c_cond=64,
                c_hidden=[32, 32, 64, 64],
                nhead=[-1, -1, 1, 1],
                blocks=[[1, 1, 1, 1], [1, 1, 1, 1]],
                block_repeat=[[1, 1, 1, 1], [1, 1, 1, 1]],
                c_clip=POOLED,
            ),
            latent=(4, 32, 48),
        ),
    ),
}

# Classes that the host lists beside its diffusion models, though no sampler draws with them.
NOT_SAMPLED = {
    "RT_DETR_v4": "finds objects",
    "DepthAnything3": "estimates depth",
    "SAM3": "segments pictures",
    "SAM31": "segments pictures",
}


def host_classes() -> list[str]:
    """Names of all model classes of the host, in its order."""
    listed = (kind.__name__ for kind in comfy.supported_models.models)
    return list(dict.fromkeys(listed))


def unnamed() -> list[str]:
    """Classes of the host that are in neither table: a newer host has them."""
    return [name for name in host_classes() if name not in TINY and name not in NOT_SAMPLED]


def here() -> list[str]:
    """Classes of `TINY` that this host has; an older one lacks some."""
    return [name for name in TINY if hasattr(comfy.supported_models, name)]
