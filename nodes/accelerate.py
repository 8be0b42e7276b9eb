"""Accelerate: one dial for speed."""

from comfy_api.latest import io

from ..rapid_core.comfy.chain import attach
from ..rapid_core.policy_file.format import MOST_SPEEDUP
from ..rapid_core.policy_file.policies import check_base, policy_of
from ..rapid_core.techniques.step_skip.schedule import SchedulePolicy
from .checks import Checks
from .load_policy import Policy


class Accelerate(io.ComfyNode):
    """Patches a model so that its sampling runs spend a budget of evaluations."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_Accelerate",
            display_name="RAPID Accelerate",
            category="RAPID",
            description="Samples as many times faster as you ask for: computes that share of the model evaluations and "
            "forecasts the others from them. Works with any model and sampler; best with euler.",
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
                    tooltip="The diffusion model to speed up, with its LoRAs already on it.",
                ),
                io.Float.Input(
                    "speedup",
                    default=2.0,
                    min=1.0,
                    max=MOST_SPEEDUP,
                    step=0.1,
                    tooltip="Times faster than computing every step. 20 steps at 2.0 compute 10 of them. "
                    "Higher is faster and less exact; 1 turns the node off.",
                ),
                Policy.Input(
                    "policy",
                    optional=True,
                    tooltip="From RAPID Load Policy, made for this model: which steps are computed and how "
                    "the others are forecast from them. Without one they are evenly spaced.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "At speedup 1 the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, speedup, policy=None) -> io.NodeOutput:
        Checks("RAPID Accelerate").ranges(speedup=(speedup, 1.0, MOST_SPEEDUP))
        if speedup == 1.0:
            return io.NodeOutput(model)
        if policy is None:
            return io.NodeOutput(attach(model, SchedulePolicy(speedup), cls.hidden))
        check_base(policy, model.model)
        return io.NodeOutput(attach(model, policy_of(policy, speedup), cls.hidden))
