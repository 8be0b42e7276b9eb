"""Cache Reuse: skip the evaluations whose result can be predicted."""

from typing import Any

from comfy_api.latest import io

from ..rapid_core.comfy.chain import attach
from ..rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from ..rapid_core.types import Mode
from .base import RapidNode, choice


class CacheReuse(RapidNode):
    """Patches a model so that its sampling runs skip what they can predict."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_CacheReuse",
            display_name="RAPID Cache Reuse",
            category="RAPID",
            description="For setting step skipping by hand; otherwise take RAPID Accelerate. Skips steps "
            "whose result can be predicted from earlier ones, while the estimated error stays below a "
            "threshold, as TeaCache and EasyCache do. Where it cannot skip, RAPID Report says why.",
            search_aliases=[
                "teacache",
                "easycache",
                "lazycache",
                "fbcache",
                "first block cache",
                "magcache",
                "cache",
                "speed up",
                "faster",
                "accelerate",
                "skip steps",
                "加速",
                "缓存",
                "跳步",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model to speed up, with its LoRAs already applied.",
                ),
                io.Float.Input(
                    "reuse_threshold",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.005,
                    optional=True,
                    tooltip="Skip until the estimated error of the skipped steps adds up to this (0.1 is "
                    "10 %). Higher is faster and less exact; 0 turns the node off. Start at 0.05 with cfg "
                    "1 (FLUX), at 0.1 with higher cfg.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Skip only after this part of the sampling (0 is its beginning, 1 its end). "
                    "Higher is slower and more exact.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Skip only before this part of the sampling (0 is its beginning, 1 its end). "
                    "Lower is slower and more exact.",
                ),
                io.Int.Input(
                    "max_consecutive",
                    default=3,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="Most evaluations skipped in a row. Higher is faster and less exact.",
                ),
                io.Int.Input(
                    "forecast_order",
                    default=1,
                    min=0,
                    max=2,
                    optional=True,
                    advanced=True,
                    tooltip="How skipped steps are predicted: 0 keeps the last value, 1 follows a line, 2 "
                    "a parabola. Higher is closer on smooth runs and worse on rough ones (high cfg, few "
                    "steps). The first order + 2 evaluations are always computed.",
                ),
                choice(
                    "level",
                    [Mode.SKIP.value, Mode.REUSE.value],
                    default=Mode.SKIP.value,
                    optional=True,
                    advanced=True,
                    tooltip="skip: the model is not called; works with any model and saves most. reuse: "
                    "the first and last layers run, and only the blocks between them are predicted; works "
                    "with models that RAPID knows (FLUX, SD3 and others).",
                ),
                io.Float.Input(
                    "guard",
                    default=0.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Safety check. When a computed step shows that predicting it would have been "
                    "wrong by more than this (0.5 is 50 %), the next step is computed, too. Lower is "
                    "slower and more exact; 0 turns the check off.",
                ),
                io.Boolean.Input(
                    "even_so",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Skip even where RAPID would rather compute everything: with samplers that add "
                    "noise (ancestral, SDE but for er_sde, lcm), with cfg_pp, lms, ipndm, ipndm_v, dpm_fast and "
                    "dpm_adaptive, and in runs of 6 steps and fewer. Pictures may suffer.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "At reuse_threshold 0 it is the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # see node_of
        )

    @classmethod
    def validate_inputs(
        cls, level: Any = "skip", start_percent: Any = 0.0, end_percent: Any = 1.0
    ) -> bool | str:
        return cls.refusal(level=level, start_percent=start_percent, end_percent=end_percent)

    @classmethod
    def execute(cls, model: Any, **given: Any) -> io.NodeOutput:
        values = cls.check(**given)
        if not values["reuse_threshold"]:
            return io.NodeOutput(model)
        policy = ThresholdPolicy(
            threshold=values["reuse_threshold"],
            start_percent=values["start_percent"],
            end_percent=values["end_percent"],
            max_consecutive=values["max_consecutive"],
            prediction_order=values["forecast_order"],
            mode=Mode(values["level"]),
            guard=values["guard"],
            safe=not values["even_so"],
        )
        return io.NodeOutput(attach(model, policy, cls.hidden))
