"""README's table of models, made from the table that the code goes by.

After rapid_core/architectures.py has changed: python -m devkit.readme"""

from __future__ import annotations

from devkit.base_folder import REPOSITORY
from rapid_core.architectures import ALL, Architecture

README = REPOSITORY / "README.md"
BEGIN, END = "<!-- models: made by `python -m devkit.readme` -->\n", "<!-- end of models -->\n"
WHOLE = {
    "guiding_frame_index": "image to video",
    "clip_fea": "image to video with CLIP vision",
    "ref_latent": "reference pictures",
    "reference_latent": "reference pictures",
    "ref_latents": "reference pictures",
    "ref_contexts": "reference pictures",
    "context_latents": "reference pictures",
    "clip_fea_ref": "reference pictures",
    "keyframe_idxs": "guide frames",
    "audio_embed": "sound",
    "face_pixel_values": "a face to follow",
    "reference_motion": "motion to go on from",
    "siglip_feats": "reference pictures",
    "ref_frames": "reference pictures",
    "txt_byt5": "quoted lettering",
}
HEAD = (
    "| models | RAPID Region Adaptive, Sparse Attention, reused blocks | how close pictures are |\n"
    "|---|---|---|\n"
)
OTHER = (
    "| [any other model that ComfyUI samples](docs/results/models.md) | no, computed in full "
    "| not measured |\n"
)


def table() -> str:
    """The table in Markdown: measured families first, then what others have in common."""
    groups: dict[tuple[str, str], list[Architecture]] = {}
    for architecture in sorted(ALL, key=lambda architecture: not architecture.measured):
        groups.setdefault(cells(architecture), []).append(architecture)
    return HEAD + "".join(row(of, *shared) for shared, of in groups.items()) + OTHER


def cells(architecture: Architecture) -> tuple[str, str]:
    """What happens inside of a family's models, and what is known of its quality."""
    full = sorted({WHOLE[name] for name in architecture.whole})
    tokens = f"exact; all tokens for {', '.join(full)}" if full else "exact"
    if architecture.all_tokens is not None:
        tokens = "exact, but always on all tokens"
    measured = "**measured** on a small model of this architecture"
    return tokens, measured if architecture.measured else "not measured"


def row(families: list[Architecture], tokens: str, quality: str) -> str:
    """The row of families that have these cells."""
    known_as = "; ".join(architecture.known_as for architecture in families)
    return f"| {known_as} | {tokens} | {quality} |\n"


def with_table(text: str) -> str:
    """A README with the table as it should be."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(
        with_table(README.read_text(encoding="utf-8")), encoding="utf-8", newline="\n"
    )
