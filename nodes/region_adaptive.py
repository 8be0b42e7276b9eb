"""Region Adaptive: only the image tokens that matter pass the model."""

from comfy_api.latest import io

from ..rapid_core.architectures import describe
from ..rapid_core.comfy.chain import attach
from ..rapid_core.techniques.region.policy import (
    DIRECTIONS,
    INACTIVE,
    METRICS,
    PRECISIONS,
    RegionPolicy,
    paper,
    per_token_error,
)
from .checks import Checks

PRESETS = ["clocks", "custom", "paper"]
ERROR = 0.04  # error_threshold, where clocks are on and nothing else is given


class RegionAdaptive(io.ComfyNode):
    """Patches a model so that most evaluations compute some of the image tokens (region-adaptive
    sampling)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        share = dict(min=0.0, max=1.0, step=0.01)
        return io.Schema(
            node_id="RAPID_RegionAdaptive",
            display_name="RAPID Region Adaptive",
            category="RAPID",
            description="Computes only some image tokens in most evaluations; the others keep moving on a forecast and "
            "their keys and values stay cached. Works with any sampler; what cannot be split is computed densely.",
            search_aliases=[
                "ras",
                "region adaptive sampling",
                "region",
                "token",
                "token cache",
                "kv cache",
                "cache",
                "speed up",
                "faster",
                "accelerate",
                "加速",
                "区域",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model to speed up, with its LoRAs already on it.",
                ),
                io.Float.Input(
                    "keep_ratio",
                    default=0.75,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="custom and paper: share of the image tokens computed in a sparse evaluation; "
                    "lower is faster and less exact. clocks: where more of them than this are due, all are "
                    "computed; lower is slower and more exact. 1 is off.",
                ),
                io.Combo.Input(
                    "preset",
                    options=PRESETS,
                    default=PRESETS[0],
                    tooltip="clocks: every token is computed when its own forecast is no longer good enough "
                    "(error_threshold); of the other inputs only keep_ratio, kv_cache, memory_limit and "
                    "mask count. custom: all inputs count; a fixed share of tokens only where "
                    "error_threshold is 0. paper: the published schedule, metric and stale "
                    "values; only keep_ratio, memory_limit and mask count.",
                ),
                io.Float.Input(
                    "warm_up",
                    default=0.15,
                    **share,
                    tooltip="Share of the steps at the beginning that "
                    "compute all tokens. Higher is slower and more exact.",
                ),
                io.Float.Input(
                    "tail",
                    default=0.05,
                    **share,
                    tooltip="Share of the steps at the end that compute all "
                    "tokens. Higher is slower and more exact.",
                ),
                io.Int.Input(
                    "refresh_interval",
                    default=3,
                    min=0,
                    max=1000,
                    tooltip="Sparse evaluations between two that compute all tokens. Higher is faster and "
                    "less exact; 0 = no refresh.",
                ),
                io.Float.Input(
                    "drift_threshold",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="When the forecast of the computed tokens was worse than this relative error, "
                    "the next evaluation computes all of them. Lower is slower and more exact; 0 = off.",
                ),
                io.Combo.Input(
                    "metric",
                    options=list(METRICS),
                    default="change",
                    tooltip="What makes a token matter. std: spread of its derivative over the channels. "
                    "l2: its size. change: how much it had changed when last computed. attention: what it "
                    "receives. random and rounds (in turn) are for comparison. Does not change how many are "
                    "computed.",
                ),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default="high",
                    tooltip="Whether tokens with low or with high values of the metric come first. Does not "
                    "change how many are computed.",
                ),
                io.Float.Input(
                    "starvation",
                    default=0.3,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How fast a token that was left out gains priority, per evaluation. Higher "
                    "spreads the work over the picture, lower follows the metric. Does not change how many "
                    "are computed.",
                ),
                io.Combo.Input(
                    "inactive",
                    options=list(INACTIVE),
                    default="forecast",
                    tooltip="What tokens that are left out do. hold: keep their last derivative. forecast: "
                    "move on with its trend. interpolate: forecast, and follow what their computed "
                    "neighbours did.",
                ),
                io.Float.Input(
                    "slope",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of tokens over time, from keep_ratio x (1 + slope) to keep_ratio x "
                    "(1 - slope): 0 constant, above 0 more of them early, below 0 more of them late.",
                ),
                io.Combo.Input(
                    "kv_cache",
                    options=list(PRECISIONS),
                    default=PRECISIONS[0],
                    optional=True,
                    tooltip="How keys and values of tokens that are left out are kept. forecast: from two "
                    "earlier ones, twice the memory of model and far more exact. model: as last computed. "
                    "8 bit: one byte each. pooled: means over 2 x 2 tokens, a quarter of the memory. host "
                    "memory: as model, copied to the device each time. none: not at all.",
                ),
                io.Float.Input(
                    "memory_limit",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    optional=True,
                    tooltip="Most GiB that cached keys and values may take; where they would take more, "
                    "no evaluation computes single tokens (all or none) and the report says so. 0 = no "
                    "limit.",
                ),
                io.Float.Input(
                    "error_threshold",
                    default=ERROR,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    optional=True,
                    tooltip="Every token has its own clock: it is computed when the estimated relative "
                    "error of its forecasts (0.04 is 4 %), added up, reaches this. Higher is faster and "
                    "less exact; 0 turns clocks off. In custom, above 0, metric, direction, starvation "
                    "and slope do not count.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White: tokens that come first, for faces, hands or "
                    "lettering: with clocks they are due at half of error_threshold, else they are chosen "
                    "before all others. Any size; it is scaled to the latent.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "Where the node is off, the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        keep_ratio,
        preset=PRESETS[0],
        kv_cache=PRECISIONS[0],
        memory_limit=0.0,
        mask=None,
        **settings,
    ) -> io.NodeOutput:
        settings.setdefault("error_threshold", ERROR if preset == "clocks" else 0.0)
        policy = checked(model, keep_ratio, preset, kv_cache, memory_limit, settings)
        off = keep_ratio == 1.0 or (preset == "clocks" and not policy.error_threshold)
        return io.NodeOutput(model if off else attach(model, policy.focused(mask), cls.hidden))


def checked(model, keep_ratio, preset, kv_cache, memory_limit, settings) -> RegionPolicy:
    """The policy of these settings. Raises ValueError for one out of range."""
    check = Checks("RAPID Region Adaptive")
    check.range("keep_ratio", keep_ratio, 0.01, 1.0)
    check.choice("preset", preset, PRESETS)
    check.choice("kv_cache", kv_cache, PRECISIONS)
    check.range("memory_limit", memory_limit, 0.0, 1024.0)
    cache = dict(kv_cache=kv_cache, memory_limit=memory_limit)
    if preset == "paper":
        found = describe(model.model.diffusion_model)
        return paper(found.family if found else "", keep_ratio, memory_limit)
    if preset == "clocks":
        check.range("error_threshold", settings["error_threshold"], 0.0, 10.0)
        return per_token_error(settings["error_threshold"], keep_ratio, **cache)
    for name, low, high in (
        ("warm_up", 0.0, 1.0),
        ("tail", 0.0, 1.0),
        ("refresh_interval", 0, 1000),
        ("drift_threshold", 0.0, 10.0),
        ("error_threshold", 0.0, 10.0),
        ("starvation", 0.0, 10.0),
        ("slope", -1.0, 1.0),
    ):
        check.range(name, settings[name], low, high)
    for name, choices in (("metric", METRICS), ("direction", DIRECTIONS), ("inactive", INACTIVE)):
        check.choice(name, settings[name], choices)
    order = 0 if settings["inactive"] == "hold" else 1
    return RegionPolicy(keep_ratio, forecast_order=order, **settings, **cache)
