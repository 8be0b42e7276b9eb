"""Tiny random models of every family that the pack knows."""

from __future__ import annotations

from evaluation.random_models import FamilyModel
from rapid_core.comfy.lumina_next.config import LuminaNextConfig
from rapid_testing import CHANNELS, CONTEXT, POOLED

_STREAMS = dict(
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

FROM_FILES = ("flux", "sd3", "sd35")  # the others are built without a file

# Video and audio in one packed latent; not among FAMILIES, since the pack knows no blocks of it.
LTX_AUDIO = FamilyModel(
    "LTXAV",
    dict(
        image_model="ltxav",
        in_channels=128,
        audio_in_channels=128,
        cross_attention_dim=64,
        audio_cross_attention_dim=64,
        attention_head_dim=32,
        audio_attention_head_dim=32,
        num_attention_heads=2,
        audio_num_attention_heads=2,
        caption_channels=3840,
        num_layers=2,
    ),
    latent=(128, 3, 4, 6),
)

FAMILIES: dict[str, FamilyModel] = {
    "flux": FamilyModel(
        "Flux",
        dict(
            image_model="flux",
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            guidance_embed=True,
            txt_ids_dims=[],
            **_STREAMS,
        ),
    ),
    "flux2": FamilyModel(
        "Flux2",
        dict(
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
        ),
        latent=(128, 8, 12),
    ),
    "chroma": FamilyModel(
        "Chroma",
        dict(
            image_model="chroma",
            in_channels=64,
            out_channels=64,
            txt_ids_dims=[],
            in_dim=64,
            out_dim=128,
            hidden_dim=64,
            n_layers=1,
            **_STREAMS,
        ),
    ),
    "hunyuan_video": FamilyModel(
        "HunyuanVideo",
        dict(
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
        ),
        latent=(CHANNELS, 3, 8, 12),
    ),
    "wan": FamilyModel(
        "WAN21_T2V",
        dict(
            image_model="wan2.1",
            model_type="t2v",
            dim=128,
            ffn_dim=256,
            freq_dim=64,
            text_dim=CONTEXT,
            num_heads=1,
            num_layers=3,
        ),
        latent=(CHANNELS, 3, 8, 12),
    ),
    "wan22": FamilyModel(
        "WAN22_T2V",
        dict(
            image_model="wan2.1",
            model_type="t2v",
            dim=128,
            ffn_dim=256,
            freq_dim=64,
            text_dim=CONTEXT,
            num_heads=1,
            num_layers=3,
            in_dim=48,
            out_dim=48,
        ),
        latent=(48, 3, 8, 12),
    ),
    "qwen_image": FamilyModel(
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
    "lumina2": FamilyModel("Lumina2", _LUMINA),
    "z_image": FamilyModel(
        "ZImage",
        {
            **_LUMINA,
            "dim": 288,
            "n_heads": 3,
            "n_kv_heads": 3,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        latent=(CHANNELS, 16, 20),
    ),
    "lumina_next": FamilyModel(
        "rapid_core.comfy.lumina_next.model.LuminaNext",
        dict(
            config=LuminaNextConfig(
                hidden_size=128,
                layers=3,
                heads=4,
                kv_heads=2,
                feed_forward=256,
                text_width=CONTEXT,
                sample_size=32,
            )
        ),
        latent=(4, 16, 24),
    ),
}
BUILT = tuple(kind for kind in FAMILIES if kind not in FROM_FILES)
