"""Nodes of the demo: text to CONDITIONING for the demo models, and loaders for the Lumina-like and
the Lumina-Next-like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import folder_paths
from comfy_api.latest import ComfyExtension, io

from . import lumina_next, nextdit, word_table
from .language import LANGUAGES, SHAPES


class DemoPrompt(io.ComfyNode):
    """Words of the demo models' scenes to CONDITIONING, one line an image of the batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        worlds = ". ".join(f"Models of {one.name}: {one.about}" for one in LANGUAGES)
        return io.Schema(
            node_id="RAPIDDemoPrompt",
            display_name="Demo Prompt",
            category="RAPID/demo",
            description=(
                "Prompt of the demo models, one line an image of the batch: a background, then objects, "
                f"separated by commas. {worlds}. Empty: unconditional."
            ),
            inputs=[
                io.String.Input(
                    "text", multiline=True, default=example(), tooltip="One line an image."
                ),
                io.Combo.Input(
                    "model",
                    options=list(word_table.MODELS),
                    tooltip="The model whose word table is used.",
                ),
                io.Int.Input(
                    "tokens",
                    default=0,
                    min=0,
                    max=word_table.MAX_TOKENS,
                    optional=True,
                    tooltip="Length of the context; 0: as in training, more appends empty tokens.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str, model: str, tokens: int = 0) -> io.NodeOutput:
        """The host meets B lines with its latents row by row: it repeats or cuts them to the
        batch."""
        return io.NodeOutput(
            word_table.conditioning(text, word_table.load(table_path(model)), tokens)
        )


class DemoLoader(io.ComfyNode):
    """Loads a demo model that the host's own loader does not know."""

    node_id: ClassVar[str]
    title: ClassVar[str]
    model: ClassVar[str]
    """What it loads, in words."""

    @classmethod
    def load(cls, path: str) -> Any:
        """The model of a file."""
        raise NotImplementedError

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.node_id,
            display_name=cls.title,
            category="RAPID/demo",
            description=f"Loads {cls.model}; for demo models and tests only.",
            inputs=[
                io.Combo.Input(
                    "unet_name", options=folder_paths.get_filename_list("diffusion_models")
                )
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, unet_name: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        return io.NodeOutput(cls.load(path))


class DemoLumina(DemoLoader):
    """The host's classes in a size that its detection does not know."""

    node_id = "RAPIDDemoLumina"
    title = "Demo Lumina Loader"
    model = "the Lumina-like demo model (NextDiT)"

    @classmethod
    def load(cls, path: str) -> Any:
        return nextdit.load(path)


class DemoLuminaNext(DemoLoader):
    """RAPID's classes, with the latents of the demo's world."""

    node_id = "RAPIDDemoLuminaNext"
    title = "Demo Lumina-Next Loader"
    model = "the Lumina-Next-like demo model"

    @classmethod
    def load(cls, path: str) -> Any:
        return lumina_next.load(path)


def table_path(model: str) -> Path:
    """The table in one of the host's model folders, else in the demo's own."""
    name = word_table.file_name(model)
    own = Path(__file__).resolve().parent.parent / "models" / "diffusion_models" / name
    return Path(folder_paths.get_full_path("diffusion_models", name) or own)


def example() -> str:
    """A prompt that the first model reads."""
    try:
        return word_table.language_of(table_path(word_table.MODELS[0])).example
    except word_table.WordTableError:  # which running the node tells
        return SHAPES.example


class DemoExtension(ComfyExtension):
    """What the demo pack brings."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [DemoPrompt, DemoLumina, DemoLuminaNext]
