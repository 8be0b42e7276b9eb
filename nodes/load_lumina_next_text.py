"""Load Lumina-Next Text Encoder: Gemma 2B, version 1, which ComfyUI does not have."""

from typing import Any

from comfy_api.latest import io

from .base import RapidNode, words_first
from .weight_files import fitting, path_of, refusal, stamp_of

FOLDER = "text_encoders"
GIVEN = "RAPID Load Lumina-Next Text Encoder: text_encoder"


class LoadLuminaNextText(RapidNode):
    """Makes a CLIP of Gemma 2B's published files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_LoadLuminaNextText",
            display_name="RAPID Load Lumina-Next Text Encoder",
            category="RAPID",
            is_experimental=True,
            description="Loads Gemma 2B of version 1, the text encoder of Lumina-Next-T2I, from "
            "transformers' files: google/gemma-2b, or the folder text_encoder of "
            "Alpha-VLLM/Lumina-Next-SFT-diffusers, put into models/text_encoders with tokenizer.model.",
            search_aliases=[
                "lumina",
                "lumina next",
                "gemma",
                "gemma 2b",
                "text encoder",
            ],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=fitting(FOLDER),
                    tooltip="A .safetensors file in models/text_encoders. Of a model in several parts the "
                    "first one is listed; all parts and Gemma's tokenizer.model belong into one folder.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="clip",
                    tooltip="For CLIP Text Encode, once for each prompt. Prompts are lower-cased and cut "
                    "after 256 tokens, as published.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, text_encoder: Any = None) -> bool | str:
        return refusal(FOLDER, text_encoder, GIVEN)

    @classmethod
    def fingerprint_inputs(cls, text_encoder: Any) -> tuple:
        """Changes when the file does, so that the host reads it again."""
        return stamp_of(FOLDER, text_encoder)

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        # Not with the pack: most users never load this model.
        from ..rapid_core.comfy.lumina_next.text import load

        path = path_of(FOLDER, text_encoder, GIVEN)
        with words_first():
            return io.NodeOutput(load(path))
