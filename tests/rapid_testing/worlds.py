"""Folders of demo models, as a model finds them that changes its world (`demo.switch`)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from demo.pack.word_table import file_name
from demo.world import EMOJI, World, weights_of


def emoji_world(folder: Path) -> World:
    """The world of real drawings with the FLUX-like model in its folder, ready to be switched to."""
    (folder / "diffusion_models").mkdir(parents=True)
    weights = weights_of("flux")
    for file in (weights, weights.with_name(file_name("flux"))):
        shutil.copyfile(file, folder / "diffusion_models" / file.name)
    return replace(EMOJI, folder=folder)
