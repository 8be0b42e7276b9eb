"""Tiny random models of every family whose blocks the pack knows, by family."""

from __future__ import annotations

from evaluation.host_models import TINY
from evaluation.random_models import FamilyModel
from rapid_core.comfy.lumina_next.config import LuminaNextConfig
from rapid_testing import CONTEXT

FROM_FILES = ("flux", "sd3", "sd35")  # the others are built without a file

# Video and audio in one packed latent; not among FAMILIES, whose latents are one tensor.
LTX_AUDIO = TINY["LTXAV"].model

_CLASSES = {
    "flux": "Flux",
    "flux2": "Flux2",
    "chroma": "Chroma",
    "hunyuan_video": "HunyuanVideo",
    "wan": "WAN21_T2V",
    "wan22": "WAN22_T2V",
    "qwen_image": "QwenImage",
    "lumina2": "Lumina2",
    "z_image": "ZImage",
}
LUMINA_NEXT = FamilyModel(  # the pack's own, not the host's
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
)
FAMILIES: dict[str, FamilyModel] = {
    **{family: TINY[kind].model for family, kind in _CLASSES.items()},
    "lumina_next": LUMINA_NEXT,
}
BUILT = tuple(kind for kind in FAMILIES if kind not in FROM_FILES)
