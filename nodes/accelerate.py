"""Accelerate: one dial for speed."""

from dataclasses import fields, replace
from typing import Any

from comfy_api.latest import io

from ..rapid_core.comfy.chain import attach
from ..rapid_core.policy_file.format import MAX_SPEEDUP
from ..rapid_core.policy_file.policies import check_base, policy_of
from ..rapid_core.techniques.step_skip.schedule import CLOSENESS, SchedulePolicy
from ..rapid_core.types import Aim
from ..rapid_core.types import Policy as Technique
from .base import RapidNode, words_first
from .load_policy import Policy

SPEED, QUALITY, OFF = "speed", "quality", "off"
DECIBELS = "decibels"


class Accelerate(RapidNode):
    """Patches a model so that its sampling runs compute only a share of the steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        rarely: dict[str, Any] = dict(optional=True, advanced=True)
        return io.Schema(
            node_id="RAPID_Accelerate",
            display_name="RAPID Accelerate",
            category="RAPID",
            description="Faster sampling with one dial. At 2 it computes half of the steps and predicts "
            "the others from them. Works with any DiT model. Best with euler, dpmpp_2m and res_multistep; "
            "with samplers that add noise, but for er_sde, it computes everything and says so.",
            search_aliases=[
                "speed up",
                "faster",
                "accelerate",
                "teacache",
                "easycache",
                "fbcache",
                "magcache",
                "cache",
                "skip steps",
                "rapid3",
                "加速",
                "跳步",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model to speed up, with its LoRAs already applied.",
                ),
                io.Float.Input(
                    "speedup",
                    default=2.0,
                    min=1.0,
                    max=MAX_SPEEDUP,
                    step=0.1,
                    optional=True,
                    tooltip="For mode speed. How many times fewer steps are computed: 20 steps at 2.0 "
                    "compute 10. Higher is faster and less exact. 1 turns the node off.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[SPEED, QUALITY, OFF],
                    default=SPEED,
                    optional=True,
                    tooltip="speed: every picture takes the same share of the steps, set by speedup. "
                    "quality: every picture takes as many steps as closeness needs. off: the model as it "
                    "came.",
                ),
                io.Combo.Input(
                    "closeness",
                    options=[*CLOSENESS, DECIBELS],
                    default="balanced",
                    optional=True,
                    tooltip="For mode quality. How close each picture has to come to the one that all "
                    f"steps would make: {_presets()}, or what is set in decibels. Closer is slower.",
                ),
                io.Float.Input(
                    "decibels",
                    default=40.0,
                    min=20.0,
                    max=80.0,
                    step=0.5,
                    **rarely,
                    tooltip="For mode quality with closeness = decibels. PSNR to the picture that all steps "
                    "would make. Higher is slower and more exact.",
                ),
                io.Combo.Input(
                    "aim",
                    options=[aim.value for aim in Aim],
                    default=Aim.FULL_PICTURE.value,
                    **rarely,
                    tooltip="full picture: as near as possible to what all steps would make. best picture: "
                    "as near as possible to what many more steps would make, which may differ from it.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    **rarely,
                    tooltip="Skip only after this part of the sampling (0 is its beginning, 1 its end). "
                    "Higher is slower and more exact.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    **rarely,
                    tooltip="Skip only before this part of the sampling (0 is its beginning, 1 its end). "
                    "Lower is slower and more exact.",
                ),
                io.Boolean.Input(
                    "even_so",
                    default=False,
                    **rarely,
                    tooltip="Skip even where RAPID would rather compute everything: with samplers that add "
                    "noise (ancestral, SDE but for er_sde, lcm) and in runs of 6 steps and fewer. Pictures "
                    "may suffer.",
                ),
                io.Boolean.Input(
                    "learn",
                    default=False,
                    **rarely,
                    tooltip="For mode speed. The first picture of a model is computed in full, and shows "
                    "which of its steps matter; later ones go by it. Kept in models/rapid_policies/learned. "
                    "A policy stands in for it.",
                ),
                Policy.Input(
                    "policy",
                    optional=True,
                    tooltip="For mode speed. From RAPID Load Policy, made for this model: which steps are "
                    "computed and how the others are predicted. Without one, RAPID chooses them.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "At speedup 1 and in mode off it is the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, start_percent: Any = 0.0, end_percent: Any = 1.0) -> bool | str:
        return cls.refusal(start_percent=start_percent, end_percent=end_percent)

    @classmethod
    def execute(cls, model: Any, policy: Any = None, **given: Any) -> io.NodeOutput:
        values = cls.check(**given)
        if values["mode"] == OFF or (values["mode"] == SPEED and values["speedup"] == 1.0):
            return io.NodeOutput(model)
        if policy is not None and values["mode"] == QUALITY:
            raise ValueError(
                "RAPID Accelerate: mode = 'quality' was given with a policy; a policy file says what "
                "to compute at a speedup. Set mode to speed, or connect nothing to policy."
            )
        if policy is None:
            learn = values["learn"] and values["mode"] == SPEED
            technique: Technique = SchedulePolicy(**dial_of(values), learn=learn)
        else:
            with words_first():
                check_base(policy, model.model)
                technique = policy_of(policy, values["speedup"])
        return io.NodeOutput(attach(model, with_window(technique, values), cls.hidden))


def dial_of(values: dict[str, Any]) -> dict[str, float]:
    """What checked values ask of a policy: a speed-up or a closeness in dB."""
    if values["mode"] == SPEED:
        return {"speedup": values["speedup"]}
    return {"closeness": CLOSENESS.get(values["closeness"], values["decibels"])}


def with_window(technique: Technique, values: dict[str, Any]) -> Technique:
    """The technique with those of the other settings that it has; heads of a file have none."""
    settings = {
        "aim": Aim(values["aim"]),
        "start_percent": values["start_percent"],
        "end_percent": values["end_percent"],
        "safe": not values["even_so"],
    }
    known = {field.name for field in fields(technique)}
    return replace(technique, **{n: value for n, value in settings.items() if n in known})


def _presets() -> str:
    return ", ".join(f"{name} ({decibels:g} dB)" for name, decibels in CLOSENESS.items())
