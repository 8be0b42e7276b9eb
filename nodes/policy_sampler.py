"""Policy Sampler: RAPID3's Step-Skip off the sampler's grid."""

from typing import Any

from comfy_api.latest import io

from ..rapid_core.comfy.policy_sampler import policy_sampler
from ..rapid_core.policy_file.format import MAX_SPEEDUP
from .base import RapidNode, words_first
from .load_policy import Policy


class PolicySampler(RapidNode):
    """A SAMPLER whose sigmas a policy's step head chooses. Its record is found by RAPID Report on
    the MODEL that was sampled with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_PolicySampler",
            display_name="RAPID Policy Sampler",
            category="RAPID",
            description="Euler with steps as long as a trained policy asks for. After every step its "
            "step head looks at the model's output and chooses the next sigma. For SamplerCustom and "
            "SamplerCustomAdvanced. Needs a policy file with trained heads.",
            search_aliases=[
                "rapid3",
                "adaptive steps",
                "heads",
                "policy",
            ],
            is_experimental=True,
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
                    max=MAX_SPEEDUP,
                    step=0.1,
                    optional=True,
                    tooltip="Computes at most this share of the steps: at 2.0, at most 10 of 20. "
                    "Higher is faster and less exact. At 1 only the number of steps is a limit.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="For the sampler input of SamplerCustom or SamplerCustomAdvanced.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # see node_of
        )

    @classmethod
    def execute(cls, policy: Any, **given: Any) -> io.NodeOutput:
        speedup = cls.check(**given)["speedup"]
        with words_first():
            return io.NodeOutput(policy_sampler(policy, speedup, cls.hidden))
