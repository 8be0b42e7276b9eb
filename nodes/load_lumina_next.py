"""Load Lumina-Next: the model of the paper on region-adaptive sampling, which ComfyUI does not have."""

from typing import Any

from comfy_api.latest import io

from .base import RapidNode, choice, words_first
from .weight_files import fitting, path_of, refusal, stamp_of

FOLDER = "diffusion_models"
GIVEN = "RAPID Load Lumina-Next: model_name"
FIRST_THREE, ALL_CHANNELS = GUIDED = ["first three", "all"]


class LoadLuminaNext(RapidNode):
    """Makes a MODEL of Lumina-Next-T2I's published files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_LoadLuminaNext",
            display_name="RAPID Load Lumina-Next",
            category="RAPID",
            is_experimental=True,
            description="Loads Lumina-Next-T2I, the second model of the paper on region-adaptive sampling, "
            "which ComfyUI itself does not load. Takes the files in the folder transformer of "
            "Alpha-VLLM/Lumina-Next-SFT-diffusers, put into models/diffusion_models.",
            search_aliases=[
                "lumina",
                "lumina next",
                "next-dit",
                "diffusers",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=fitting(FOLDER),
                    tooltip="A .safetensors file in models/diffusion_models, in diffusers' layout. Of a "
                    "model in several parts the first one is listed; all parts belong into one folder.",
                ),
                choice(
                    "guided_channels",
                    GUIDED,
                    default=FIRST_THREE,
                    optional=True,
                    advanced=True,
                    tooltip="first three: cfg acts on three of the four latent channels, as in the published "
                    "pipeline. all: on all four, as ComfyUI does it with other models.",
                ),
                io.Boolean.Input(
                    "proportional_attention",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Sharpen attention in pictures larger than 1024 x 1024 and soften it in smaller "
                    "ones, as published. Changes nothing at 1024 x 1024.",
                ),
                io.Float.Input(
                    "scaling_watershed",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the run (by noise) in which positions of other sizes than 1024 x 1024 "
                    "are interpolated; after it their frequencies are changed instead. 1 as published.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model, for RAPID's nodes and the sampler: euler, scheduler normal, 30 "
                    "steps and cfg 4 are the published settings.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: Any = None) -> bool | str:
        return refusal(FOLDER, model_name, GIVEN)

    @classmethod
    def fingerprint_inputs(cls, model_name: Any, **settings: Any) -> tuple:
        """Changes when the file does, so that the host reads it again."""
        return (*stamp_of(FOLDER, model_name), *sorted(settings.items()))

    @classmethod
    def execute(cls, model_name: str, **given: Any) -> io.NodeOutput:
        # Not with the pack: most users never load this model.
        from ..rapid_core.comfy.lumina_next.model import guide_first_channels, load

        values = cls.check(**given)
        path = path_of(FOLDER, model_name, GIVEN)
        with words_first():
            model = load(path, values["scaling_watershed"], values["proportional_attention"])
        if values["guided_channels"] == FIRST_THREE:
            model = guide_first_channels(model)
        return io.NodeOutput(model)
