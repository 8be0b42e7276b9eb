"""Calibrate: the best policy file for one model and workflow, made in ComfyUI."""

from typing import Any

from comfy_api.latest import io

from ..rapid_core.calibration.plans import EFFORTS
from ..rapid_core.calibration.plot import draw
from ..rapid_core.comfy.calibrate.accepted import checked_name
from ..rapid_core.comfy.calibrate.calibrate import calibrate
from ..rapid_core.comfy.calibrate.card import about
from ..rapid_core.comfy.calibrate.workflow import Workflow
from ..rapid_core.comfy.chain import node_of
from ..rapid_core.policy_file.names import SUFFIX, plain_name
from .base import RapidNode, words_first
from .load_policy import Policy, stamp_of

ANOTHER = (
    "Another such prompt; the seeds are drawn with all of them in turn. With three and more, "
    "schedules that follow the pictures more closely are tried, too."
)
POSITIVES = ("positive", "positive_2", "positive_3", "positive_4")


class Calibrate(RapidNode):
    """Draws pictures of a workflow, finds which steps matter in them, and writes a policy file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_Calibrate",
            display_name="RAPID Calibrate",
            category="RAPID",
            description="Finds which steps matter for one model and workflow, and writes a policy file for "
            "RAPID Accelerate into models/rapid_policies. Draws pictures for minutes to hours; once is "
            "enough. Connect it like SamplerCustom.",
            search_aliases=[
                "calibrate",
                "tune",
                "train policy",
                "make policy",
                "schedule",
                "校准",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model as you sample with it, LoRAs applied, before any RAPID node.",
                ),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    optional=True,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of the first picture; the others follow from it, one by one.",
                ),
                io.Float.Input(
                    "cfg",
                    default=8.0,
                    optional=True,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale that you sample with.",
                ),
                io.Conditioning.Input("positive", tooltip="A prompt like those that you use."),
                io.Conditioning.Input("positive_2", optional=True, tooltip=ANOTHER),
                io.Conditioning.Input("positive_3", optional=True, tooltip=ANOTHER),
                io.Conditioning.Input("positive_4", optional=True, tooltip=ANOTHER),
                io.Conditioning.Input("negative", tooltip="The negative prompt that you use."),
                io.Sampler.Input(
                    "sampler",
                    tooltip="The sampler that you use; one that adds no noise, such as euler or dpmpp_2m.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The sigmas that you use, of 7 steps and more. On others the file's schedules "
                    "are moved to where they fit.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="A latent of the size that you draw. A batch costs more and shows more.",
                ),
                io.String.Input(
                    "name",
                    default="my model",
                    optional=True,
                    tooltip="Name of the file in models/rapid_policies. A file of that name is replaced only "
                    "if it is a calibration of the same model.",
                ),
                io.Combo.Input(
                    "effort",
                    options=list(EFFORTS),
                    default="few",
                    optional=True,
                    tooltip="How long it takes at the most: few as long as 10 full pictures, normal 40, long "
                    "150. few takes its schedules unseen, normal compares them, long looks for better "
                    "ones.",
                ),
            ],
            outputs=[
                Policy.Output(
                    display_name="policy",
                    tooltip="The file that was written, for RAPID Accelerate.",
                ),
                io.String.Output(
                    display_name="about",
                    tooltip="What each speed-up computes, how close it comes to the full picture, and what "
                    "the calibration cost.",
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Closeness to the full picture by speed-up, with the file and without a policy.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # see node_of
        )

    @classmethod
    def validate_inputs(cls, name: Any = None, effort: Any = None) -> bool | str:
        try:
            if name is not None:
                checked_name(str(name))
        except ValueError as error:
            return str(error)
        return cls.refusal(effort=effort)

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, **_: Any) -> Any:
        """Changes with the file, so that one that was removed is made again; one that is there is
        only read."""
        plain = None if name is None else plain_name(str(name))
        return name if plain is None else stamp_of(f"{plain}{SUFFIX}")

    @classmethod
    def execute(cls, model: Any, latent_image: dict[str, Any], **given: Any) -> io.NodeOutput:
        values = cls.check(**given)
        workflow = Workflow(
            model,
            values["noise_seed"],
            values["cfg"],
            [given[name] for name in POSITIVES if given.get(name) is not None],
            values["negative"],
            values["sampler"],
            values["sigmas"],
            latent_image,
        )
        with words_first():
            made = calibrate(workflow, values["name"], values["effort"], node_of(cls.hidden))
        said = about(made)
        return io.NodeOutput(
            made.file, said, draw(made.chosen, made.file.name), ui={"text": (said,)}
        )
