"""Cache Reuse: leave out model evaluations whose result can be forecast."""

from comfy_api.latest import io

from ..rapid_core.comfy.chain import attach
from ..rapid_core.engine.history import ORDERS
from ..rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from ..rapid_core.types import Mode
from .checks import Checks

LEVELS = [Mode.SKIP.value, Mode.REUSE.value]


class CacheReuse(io.ComfyNode):
    """Patches a model so that its sampling runs skip what they can forecast."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_CacheReuse",
            display_name="RAPID Cache Reuse",
            category="RAPID",
            description="Leaves out model evaluations whose result can be forecast from earlier ones. "
            "Works with any sampler; what cannot be accelerated is computed densely and RAPID Report says why.",
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
                    tooltip="The diffusion model to speed up, with its LoRAs already on it.",
                ),
                io.Float.Input(
                    "reuse_threshold",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.005,
                    tooltip="Estimated relative error (0.1 is 10 %), added up over left-out evaluations, at "
                    "which the model is computed again. Higher is faster and less exact; 0 turns the node "
                    "off. Begin at 0.05 with cfg 1 (as FLUX), at 0.1 with guidance.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling schedule (0 beginning, 1 end) after which evaluations "
                    "may be left out. Higher is slower and more exact.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling schedule (0 beginning, 1 end) after which all "
                    "evaluations are computed. Lower is slower and more exact.",
                ),
                io.Int.Input(
                    "max_consecutive",
                    default=3,
                    min=1,
                    max=100,
                    tooltip="Most evaluations left out in a row. Higher allows more speed and longer, less "
                    "exact forecasts.",
                ),
                io.Int.Input(
                    "forecast_order",
                    default=1,
                    min=min(ORDERS),
                    max=max(ORDERS),
                    tooltip="0 holds the last value, 1 extrapolates a line, 2 a parabola. Higher is nearer to "
                    "dense on smooth trajectories and wilder on rough ones (guidance, few steps); the first "
                    "order + 2 evaluations are always computed.",
                ),
                io.Combo.Input(
                    "level",
                    options=LEVELS,
                    default=LEVELS[0],
                    tooltip="hold: the model is not called at all; any model, saves most. reuse: patch "
                    "embedding and final layer run, the blocks' contribution is forecast; architectures "
                    "that RAPID knows (FLUX, SD3 and others).",
                ),
                io.Float.Input(
                    "guard",
                    default=0.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    tooltip="Where a computed evaluation shows that its forecast would have been worse than "
                    "this relative error (0.5 is 50 %), the next one is computed too. Lower is slower and "
                    "more exact; 0 turns the guard off.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "At reuse_threshold 0 the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        reuse_threshold,
        start_percent,
        end_percent,
        max_consecutive,
        forecast_order,
        level,
        guard=0.5,
    ) -> io.NodeOutput:
        check = Checks("RAPID Cache Reuse")
        check.range("reuse_threshold", reuse_threshold, 0.0, 10.0)
        check.window(start_percent, end_percent)
        check.range("max_consecutive", max_consecutive, 1, 100)
        check.choice("forecast_order", forecast_order, ORDERS)
        check.choice("level", level, LEVELS)
        check.range("guard", guard, 0.0, 10.0)
        settings = (
            reuse_threshold,
            start_percent,
            end_percent,
            max_consecutive,
            forecast_order,
            Mode(level),
            guard,
        )
        if not reuse_threshold:
            return io.NodeOutput(model)
        return io.NodeOutput(attach(model, ThresholdPolicy(*settings), cls.hidden))
