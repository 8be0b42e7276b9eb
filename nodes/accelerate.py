"""Accelerate: one dial for speed."""

from dataclasses import fields, replace
from typing import Any

from comfy_api.latest import io

from ..rapid_core.comfy.chain import attach
from ..rapid_core.policy_file.format import MAX_SPEEDUP, PolicyFile, read
from ..rapid_core.policy_file.policies import check_base, policy_of
from ..rapid_core.reasons import ReasonCode
from ..rapid_core.techniques.step_skip.schedule import CLOSENESS, SchedulePolicy
from ..rapid_core.types import Aim, Reason
from ..rapid_core.types import Policy as Technique
from .base import RapidNode, words_first
from .found_policy import found_policy, stamp
from .load_policy import Policy, names, path_of, stamp_of

SPEED, QUALITY, OFF = "speed", "quality", "off"
DECIBELS = "decibels"
AUTO, NONE = "auto", "none"  # of policy_file, beside names of files


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
                    "noise (ancestral, SDE but for er_sde, lcm), with cfg_pp, lms, ipndm, ipndm_v, dpm_fast and "
                    "dpm_adaptive, and in runs of 6 steps and fewer. Pictures may suffer.",
                ),
                io.Boolean.Input(
                    "learn",
                    default=False,
                    **rarely,
                    tooltip="For mode speed. The first four pictures of a model are computed in full, and show "
                    "which of its steps matter; later ones go by them. Kept in "
                    "models/rapid_policies/learned. A policy stands in for it.",
                ),
                io.Combo.Input(
                    "policy_file",
                    options=[AUTO, NONE, *names()],
                    default=AUTO,
                    **rarely,
                    tooltip="For mode speed. auto: where a file in models/rapid_policies was made for this "
                    "very model, the steps are chosen by it, and the report names it. none: by no file. Or "
                    "the name of one. What is connected to policy comes first.",
                ),
                Policy.Input(
                    "policy",
                    optional=True,
                    tooltip="For mode speed. From RAPID Load Policy, made for this model: which steps are "
                    "computed and how the others are predicted. Without one, policy_file says.",
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
            not_idempotent=True,  # see node_of
        )

    @classmethod
    def validate_inputs(
        cls,
        start_percent: Any = 0.0,
        end_percent: Any = 1.0,
        policy_file: Any = AUTO,
        mode: Any = SPEED,
    ) -> bool | str:
        try:
            if is_name(policy_file):
                path_of(str(policy_file), "RAPID Accelerate: policy_file")
                refuse_beside(mode, None, policy_file)
        except ValueError as error:
            return str(error)
        return cls.refusal(start_percent=start_percent, end_percent=end_percent, mode=mode)

    @classmethod
    def fingerprint_inputs(cls, policy_file: Any = AUTO, mode: Any = SPEED, **_: Any) -> Any:
        """Changes with the files that may be gone by, so that the host runs the node again. None
        stands for what comes over a link."""
        speed = mode in (SPEED, None)
        if policy_file is None and speed:
            return stamp_of(None)
        if policy_file == AUTO and speed:
            return stamp()
        return stamp_of(str(policy_file)) if is_name(policy_file) else policy_file

    @classmethod
    def execute(
        cls, model: Any, policy: Any = None, policy_file: Any = AUTO, **given: Any
    ) -> io.NodeOutput:
        values = cls.check(**given)
        full = values["mode"] == SPEED and values["speedup"] == 1.0
        if values["mode"] == OFF or (full and not values["learn"]):
            return io.NodeOutput(model)
        with words_first():
            file = chosen_file(policy, policy_file, values["mode"])
            technique: Technique | None = None
            said: list[Reason] = []
            if file is not None:
                check_base(file, model.model)
                if full:  # its lowest speed-up would be taken, and nothing is learned beside a file
                    return io.NodeOutput(model)
                technique = policy_of(file, values["speedup"])
                if not isinstance(technique, SchedulePolicy):  # whose run says so itself
                    said = [Reason(ReasonCode.POLICY_GIVEN, file=file.name)]
            elif policy_file == AUTO and values["mode"] == SPEED and not full:
                technique, said = found_policy(model, values["speedup"])
        learn = values["learn"] and values["mode"] == SPEED
        if technique is None:
            technique = SchedulePolicy(**dial_of(values), learn=learn)
        elif learn:
            source = file.name if file is not None else getattr(technique, "source", "")
            said = [*said, Reason(ReasonCode.LEARN_BESIDE_FILE, file=source)]
        return io.NodeOutput(attach(model, with_window(technique, values), cls.hidden, said))


def is_name(policy_file: Any) -> bool:
    """Whether it names a file; None stands for a value that comes over a link and is not known
    yet."""
    return policy_file not in (None, AUTO, NONE)


def chosen_file(policy: PolicyFile | None, policy_file: Any, mode: str) -> PolicyFile | None:
    """What is connected, or else the file that is named. Raises ValueError."""
    named = is_name(policy_file)
    if policy is not None and not hasattr(policy, "metadata"):
        raise ValueError(
            f"RAPID Accelerate: policy = {policy!r} was given; accepted is what RAPID Load Policy "
            "puts out. Connect that, or give a file's name to policy_file."
        )
    refuse_beside(mode, policy, policy_file)
    if policy is None and named:
        return read(path_of(str(policy_file), "RAPID Accelerate: policy_file"))
    return policy


def refuse_beside(mode: str, policy: PolicyFile | None, policy_file: Any) -> None:
    """Raise ValueError for a policy or the name of a file in a mode that does not go by files."""
    if mode == QUALITY and (policy is not None or is_name(policy_file)):
        given = "a policy" if policy is not None else f"policy_file = {policy_file!r}"
        instead = "connect nothing to policy" if policy is not None else "policy_file to auto"
        raise ValueError(
            f"RAPID Accelerate: mode = 'quality' was given with {given}; a policy file says what "
            f"to compute at a speedup. Set mode to speed, or {instead}."
        )


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
