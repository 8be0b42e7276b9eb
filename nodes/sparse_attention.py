"""Sparse Attention: image tokens attend to the parts of the picture that matter to them."""

from typing import Any

from comfy_api.latest import io

from ..rapid_core.comfy.chain import attach
from ..rapid_core.engine.sparse import AUTO, BACKENDS, NAMES, wrong_tile
from ..rapid_core.reasons import text
from ..rapid_core.techniques.sparse_attention.policy import SparsePolicy
from ..rapid_core.types import COMPENSATIONS, Sparsity
from .base import RapidNode, choice

TILES = ["64", "16", "128"]


class SparseAttention(RapidNode):
    """Patches a model so that its attention looks at a share of the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        rarely: dict[str, Any] = dict(optional=True, advanced=True)
        return io.Schema(
            node_id="RAPID_SparseAttention",
            display_name="RAPID Sparse Attention",
            category="RAPID",
            description="Experimental. Each part of the picture attends to the text and to the parts that "
            "matter to it, instead of to everything. For videos and very large pictures; not measured on "
            "GPUs, where attention stays dense unless you choose a backend.",
            search_aliases=[
                "sparse attention",
                "sparge",
                "spargeattn",
                "flex attention",
                "block sparse",
                "attention",
                "稀疏注意力",
            ],
            is_experimental=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model to speed up, with its LoRAs already applied.",
                ),
                io.Float.Input(
                    "density",
                    default=0.25,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Share of the picture that each part of it attends to. Lower is faster and less "
                    "exact; 1 turns the node off.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.15,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    **rarely,
                    tooltip="Sparse attention only after this part of the sampling (0 is its beginning, 1 "
                    "its end). Higher is slower and more exact.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    **rarely,
                    tooltip="Sparse attention only before this part of the sampling (0 is its beginning, 1 "
                    "its end). Lower is slower and more exact.",
                ),
                io.Int.Input(
                    "dense_first",
                    default=1,
                    min=0,
                    max=1000,
                    **rarely,
                    tooltip="Blocks at the beginning of the model whose attention stays dense. Higher is "
                    "slower and more exact.",
                ),
                io.Int.Input(
                    "dense_last",
                    default=0,
                    min=0,
                    max=1000,
                    **rarely,
                    tooltip="Blocks at the end of the model whose attention stays dense. Higher is slower and "
                    "more exact.",
                ),
                choice(
                    "backend",
                    list(NAMES),
                    default="auto",
                    optional=True,
                    tooltip="What computes it. auto: what was measured fastest on your kind of device, which "
                    "may be dense attention. gather: plain PyTorch, for CPUs. flex: PyTorch's FlexAttention, "
                    "compiled at first use. xformers: if it is installed.",
                ),
                choice(
                    "left_out",
                    list(COMPENSATIONS),
                    default="predict",
                    **rarely,
                    tooltip="What stands in for the rest of the picture. none: nothing. means: the mean of "
                    "each part. last value: the means, corrected by the last dense attention. predict: that "
                    "correction follows its trend; twice the memory of last value.",
                ),
                io.Int.Input(
                    "refresh_interval",
                    default=2,
                    min=1,
                    max=1000,
                    **rarely,
                    tooltip="Sparse evaluations between two dense ones, which measure the correction. For "
                    "left_out = last value and predict. Higher is faster and less exact.",
                ),
                io.Float.Input(
                    "memory_limit",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    **rarely,
                    tooltip="Most GiB that the corrections (left_out = last value and predict) may take. "
                    "Above it the means stand in, which is less exact, and RAPID Report says so. 0 is no "
                    "limit.",
                ),
                choice(
                    "tile",
                    TILES,
                    default=TILES[0],
                    **rarely,
                    tooltip="Image tokens in a part: 16, 64 or 128. 64 is 8 x 8 tokens, 128 x 128 pixels in "
                    "most models. Lower chooses more finely and costs more to manage.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "At density 1 it is the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # see node_of
        )

    @classmethod
    def validate_inputs(
        cls,
        backend: Any = "auto",
        left_out: Any = "predict",
        start_percent: Any = 0.15,
        end_percent: Any = 1.0,
    ) -> bool | str:
        return cls.refusal(
            backend=backend,
            left_out=left_out,
            start_percent=start_percent,
            end_percent=end_percent,
        )

    @classmethod
    def execute(cls, model: Any, **given: Any) -> io.NodeOutput:
        values = cls.check(**given)
        if values["density"] == 1.0:
            return io.NodeOutput(model)
        check_backend(values["backend"], int(values["tile"]), model.load_device.type)
        sparsity = Sparsity(
            backend=values["backend"],
            dense_first=values["dense_first"],
            dense_last=values["dense_last"],
            compensation=values["left_out"],
            tile=int(values["tile"]),
            memory_limit=values["memory_limit"],
        )
        policy = SparsePolicy(
            density=values["density"],
            sparsity=sparsity,
            refresh_interval=values["refresh_interval"],
            start_percent=values["start_percent"],
            end_percent=values["end_percent"],
        )
        return io.NodeOutput(attach(model, policy, cls.hidden))


def check_backend(backend: str, tile: int, device: str) -> None:
    """Raise ValueError for a backend that cannot run on this kind of device, or not with tiles of
    this size."""
    if backend == AUTO:
        return
    chosen = BACKENDS[backend]
    missing = chosen.missing(device)
    if missing is not None:
        raise ValueError(
            f"RAPID Sparse Attention: backend = {backend!r} was given; {text(missing)}. auto always "
            f"works."
        )
    wrong = wrong_tile(chosen, tile)
    if wrong is not None:
        raise ValueError(
            f"RAPID Sparse Attention: tile = '{tile}' was given; {text(wrong)}. Change tile, or the "
            f"backend."
        )
