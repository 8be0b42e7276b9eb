"""Policy Sampler: RAPID3's Step-Skip off the sampler's grid."""

from comfy_api.latest import io

from ..rapid_core.comfy.policy_sampler import policy_sampler
from ..rapid_core.policy_file.format import MOST_SPEEDUP
from .checks import Checks
from .load_policy import Policy


class PolicySampler(io.ComfyNode):
    """A SAMPLER whose noise levels a policy's step head chooses. Its record is found by RAPID
    Report on the MODEL that was sampled with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_PolicySampler",
            display_name="RAPID Policy Sampler",
            category="RAPID",
            description="Euler with steps as long as a trained policy asks for: after every step its step head looks "
            "at the model's output and chooses the next noise level. For SamplerCustom and SamplerCustomAdvanced.",
            search_aliases=[
                "rapid3",
                "adaptive steps",
                "skip steps",
                "sampler",
                "speed up",
                "faster",
                "加速",
                "采样器",
            ],
            inputs=[
                Policy.Input(
                    "policy",
                    tooltip="Trained heads with a step head, made for the model you sample with. "
                    "Other policies go into RAPID Accelerate.",
                ),
                io.Float.Input(
                    "speedup",
                    default=1.0,
                    min=1.0,
                    max=MOST_SPEEDUP,
                    step=0.1,
                    optional=True,
                    tooltip="A ceiling, times faster than computing every step: at 2.0 at most 10 of 20 "
                    "steps are computed. Higher is faster and less exact. At 1 the policy is bounded by "
                    "the number of steps only.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="For the sampler input of SamplerCustom or SamplerCustomAdvanced.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, policy, speedup=1.0) -> io.NodeOutput:
        Checks("RAPID Policy Sampler").ranges(speedup=(speedup, 1.0, MOST_SPEEDUP))
        return io.NodeOutput(policy_sampler(policy, speedup, cls.hidden))
