"""Region Adaptive: compute only the image tokens that matter."""

from typing import Any

from comfy_api.latest import io

from ..rapid_core.architectures import describe
from ..rapid_core.comfy.chain import attach
from ..rapid_core.engine.kv import missing
from ..rapid_core.reasons import text
from ..rapid_core.techniques.region.policy import INACTIVE, RegionPolicy
from ..rapid_core.techniques.region.presets import paper, per_token_error
from ..rapid_core.techniques.region.priority import DIRECTIONS, METRICS
from ..rapid_core.types import KVKind
from .base import RapidNode, choice

PER_TOKEN, CUSTOM, PAPER = PRESETS = ["per-token error", "custom", "paper"]
# What `custom` hands on by its name.
CUSTOM_SETTINGS = (
    "warm_up",
    "tail",
    "refresh_interval",
    "drift_threshold",
    "error_threshold",
    "metric",
    "direction",
    "starvation",
    "slope",
    "inactive",
)


class RegionAdaptive(RapidNode):
    """Patches a model so that most evaluations compute some of the image tokens (region-adaptive
    sampling)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        rarely: dict[str, Any] = dict(optional=True, advanced=True)
        share: dict[str, Any] = dict(min=0.0, max=1.0, step=0.01, **rarely)
        return io.Schema(
            node_id="RAPID_RegionAdaptive",
            display_name="RAPID Region Adaptive",
            category="RAPID",
            description="Most steps compute only some parts of the picture (image tokens); the others are "
            "predicted, and their keys and values stay cached. Works with any sampler. Needs extra memory. "
            "Where it cannot do so, everything is computed, and RAPID Report says why.",
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
                    tooltip="The diffusion model to speed up, with its LoRAs already applied.",
                ),
                io.Float.Input(
                    "keep_ratio",
                    default=0.75,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="per-token error: where more than this share of the tokens has to be computed, "
                    "all are; leave it at 0.75. custom and paper: share of the tokens that is computed; "
                    "lower is faster and less exact. 1 turns the node off.",
                ),
                choice(
                    "preset",
                    PRESETS,
                    default=PER_TOKEN,
                    optional=True,
                    tooltip="per-token error: compute a token when its own estimated error reaches "
                    "error_threshold; recommended. custom: all inputs count. paper: as published (a fixed "
                    "share of tokens, old values for the others); of the other inputs only keep_ratio, "
                    "memory_limit and mask count.",
                ),
                io.Float.Input(
                    "warm_up",
                    default=0.15,
                    **share,
                    tooltip="custom only. Share of the steps at the beginning that compute all tokens. "
                    "Higher is slower and more exact.",
                ),
                io.Float.Input(
                    "tail",
                    default=0.05,
                    **share,
                    tooltip="custom only. Share of the steps at the end that compute all tokens. Higher is "
                    "slower and more exact.",
                ),
                io.Int.Input(
                    "refresh_interval",
                    default=3,
                    min=0,
                    max=1000,
                    **rarely,
                    tooltip="custom only. Evaluations on some tokens between two on all tokens. Higher is "
                    "faster and less exact; 0 never refreshes.",
                ),
                io.Float.Input(
                    "drift_threshold",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    **rarely,
                    tooltip="custom only. When the prediction of the computed tokens was wrong by more than "
                    "this (0.1 is 10 %), the next evaluation computes all tokens. Lower is slower and more "
                    "exact; 0 is off.",
                ),
                choice(
                    "metric",
                    list(METRICS),
                    default="change",
                    **rarely,
                    tooltip="custom with error_threshold 0. Which tokens matter. change: those that changed "
                    "most. std, l2: by the spread or the size of their derivative. attention: those that "
                    "receive most of it. random, rounds (in turn): for comparison. Does not change how many "
                    "are computed.",
                ),
                choice(
                    "direction",
                    list(DIRECTIONS),
                    default="high",
                    **rarely,
                    tooltip="custom with error_threshold 0. Whether tokens with low or with high values of "
                    "the metric are computed first. Does not change how many are computed.",
                ),
                io.Float.Input(
                    "starvation",
                    default=0.3,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    **rarely,
                    tooltip="custom with error_threshold 0. How fast tokens that were not computed gain "
                    "priority. Higher spreads the work over the picture. Does not change how many are "
                    "computed.",
                ),
                choice(
                    "inactive",
                    list(INACTIVE),
                    default="predict",
                    **rarely,
                    tooltip="custom only. What happens to tokens that are not computed. predict: they follow "
                    "their trend. last value: they keep their last derivative. interpolate: as predict, and "
                    "they follow their computed neighbours.",
                ),
                io.Float.Input(
                    "slope",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    **rarely,
                    tooltip="custom with error_threshold 0. How the share of tokens changes over the run, "
                    "from keep_ratio x (1 + slope) to keep_ratio x (1 - slope). Higher computes more of "
                    "them early, below 0 more of them late.",
                ),
                choice(
                    "kv_cache",
                    [kind.value for kind in KVKind],
                    default=KVKind.PREDICT.value,
                    **rarely,
                    tooltip="How keys and values of tokens that are not computed are kept. predict: from "
                    "their last two values; twice the memory, far more exact. last value: the last one. 8 "
                    "bit: the last one in one byte. host memory: the last one, copied from RAM each time. "
                    "none: not at all, for comparison.",
                ),
                io.Float.Input(
                    "memory_limit",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    **rarely,
                    tooltip="Most GiB that cached keys and values may take. 0: a quarter of the device's "
                    "memory. Above the limit less is cached or all tokens are computed, and RAPID Report "
                    "says so.",
                ),
                io.Float.Input(
                    "error_threshold",
                    default=0.04,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    optional=True,
                    tooltip="A token is computed when the estimated error of its predictions adds up to this "
                    "(0.04 is 4 %). Higher is faster and less exact. 0 turns the node off; in custom, 0 "
                    "computes a fixed share of the tokens.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White: parts to compute more often, such as faces, hands or lettering. Any "
                    "size; it is scaled to the latent.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "Where the node is off, it is the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # see node_of
        )

    @classmethod
    def validate_inputs(
        cls, preset: Any = PER_TOKEN, inactive: Any = "predict", kv_cache: Any = "predict"
    ) -> bool | str:
        return cls.refusal(preset=preset, inactive=inactive, kv_cache=kv_cache)

    @classmethod
    def execute(cls, model: Any, mask: Any = None, **given: Any) -> io.NodeOutput:
        values = cls.check(**given)
        if values["preset"] == CUSTOM and "error_threshold" not in given:
            values["error_threshold"] = 0.0  # API workflows older than this input had none
        by_token = values["preset"] == PER_TOKEN
        if values["keep_ratio"] == 1.0 or (by_token and not values["error_threshold"]):
            return io.NodeOutput(model)
        policy = policy_of(values, model, mask)
        check_kept(policy.kv, model.load_device.type)
        return io.NodeOutput(attach(model, policy, cls.hidden))


def policy_of(values: dict[str, Any], model: Any, mask: Any) -> RegionPolicy:
    """The policy of checked values. mask: (H, W) or (B, H, W), or None."""
    share = values["keep_ratio"]
    limit = values["memory_limit"]
    if values["preset"] == PAPER:
        architecture = describe(model.model.diffusion_model)
        family = architecture.family if architecture else ""
        return paper(family=family, keep_ratio=share, memory_limit=limit, focus=mask)
    kept: dict[str, Any] = dict(kv=KVKind(values["kv_cache"]), memory_limit=limit, focus=mask)
    if values["preset"] == PER_TOKEN:
        return per_token_error(threshold=values["error_threshold"], keep_ratio=share, **kept)
    custom = {name: values[name] for name in CUSTOM_SETTINGS}
    return RegionPolicy(keep_ratio=share, **custom, **kept)


def check_kept(kind: KVKind, device: str) -> None:
    """Raise ValueError for keys and values that cannot be kept so on this kind of device."""
    reason = missing(kind, device)
    if reason is not None:
        raise ValueError(
            f"RAPID Region Adaptive: kv_cache = {kind.value!r} was given; {text(reason)}. Take "
            f"last value or predict."
        )
