"""Prompts of tests that draw with demo models, whatever their world is."""

from __future__ import annotations

from demo.world import weights_of, world_of

TEXTS = {
    "shapes": {
        "red": "flat red background, big blue plain circle center",
        "blue": "flat blue background, big red plain square center",
        "grid": "grid blue background, big red striped circle top left",
        "striped": "flat blue background, big red striped circle center",
        "small": "flat yellow background, small blue plain cross top right",
        "green": "flat green background, big blue ring center",
    },
    "emoji": {
        "red": "flat red background, big dolphin center",
        "blue": "flat blue background, big apple center",
        "grid": "grid blue background, big lobster top left",
        "striped": "flat blue background, big lobster center",
        "small": "flat yellow background, small guitar top right",
        "green": "flat green background, big dolphin center",
    },
}


def text(name: str, kind: str = "flux") -> str:
    """A prompt that a demo model can read. name: of `TEXTS`."""
    return TEXTS[world_of(weights_of(kind)).name][name]
