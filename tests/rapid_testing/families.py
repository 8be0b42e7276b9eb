"""Tiny random models of every family whose blocks the pack knows, by family."""

from __future__ import annotations

from evaluation.host_models import TINY
from evaluation.random_models import FamilyModel

FROM_FILES = ("flux", "sd3", "sd35")  # the others are built without a file

# Video and audio in one packed latent; not among FAMILIES, since the pack knows no blocks of it.
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
FAMILIES: dict[str, FamilyModel] = {family: TINY[kind].model for family, kind in _CLASSES.items()}
BUILT = tuple(kind for kind in FAMILIES if kind not in FROM_FILES)
