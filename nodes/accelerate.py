"""Accelerate: one dial for speed."""

from typing import Any

from comfy_api.latest import io

from ..rapid_core.comfy.chain import attach
from ..rapid_core.policy_file.format import MAX_SPEEDUP
from ..rapid_core.policy_file.policies import check_base, policy_of
from ..rapid_core.techniques.step_skip.schedule import SchedulePolicy
from .base import RapidNode, words_first
from .load_policy import Policy


class Accelerate(RapidNode):
    """Patches a model so that its sampling runs compute only a share of the steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_Accelerate",
            display_name="RAPID Accelerate",
            category="RAPID",
            description="Faster sampling with one dial. At 2 it computes half of the steps and predicts "
            "the others from them. Works with any model. Best with euler; poor with samplers that add "
            "noise (ancestral, SDE, lcm) and with runs of very few steps.",
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
                    tooltip="How many times fewer steps are computed: 20 steps at 2.0 compute 10. "
                    "Higher is faster and less exact. 1 turns the node off.",
                ),
                Policy.Input(
                    "policy",
                    optional=True,
                    tooltip="From RAPID Load Policy, made for this model: which steps are computed and "
                    "how the others are predicted. Without one, the computed steps are evenly spaced.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "At speedup 1 it is the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, policy: Any = None, **given: Any) -> io.NodeOutput:
        speedup = cls.check(**given)["speedup"]
        if speedup == 1.0:
            return io.NodeOutput(model)
        if policy is None:
            technique = SchedulePolicy(speedup=speedup)
        else:
            with words_first():
                check_base(policy, model.model)
                technique = policy_of(policy, speedup)
        return io.NodeOutput(attach(model, technique, cls.hidden))
