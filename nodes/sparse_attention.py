"""Sparse Attention: image tokens attend to the parts of the picture that matter to them."""

from comfy_api.latest import io

from ..rapid_core.comfy.chain import attach
from ..rapid_core.engine.sparse import BACKENDS, NAMES
from ..rapid_core.techniques.sparse_attention.policy import SparsePolicy
from ..rapid_core.types import LEFT_OUT, Sparsity
from .checks import Checks

TILES = ["64", "16", "128"]


class SparseAttention(io.ComfyNode):
    """Patches a model so that its attention looks at a share of the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_SparseAttention",
            display_name="RAPID Sparse Attention",
            category="RAPID",
            description="Image tokens attend to text and to the parts of the picture that matter to them, chosen anew "
            "in every block. Faster attention in big pictures and videos, less faithful pictures; where it would not "
            "be faster, attention stays dense and RAPID Report says why.",
            search_aliases=[
                "sparse attention",
                "sparge",
                "spargeattn",
                "flex attention",
                "block sparse",
                "attention",
                "speed up",
                "faster",
                "accelerate",
                "加速",
                "稀疏注意力",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model to speed up, with its LoRAs already on it.",
                ),
                io.Float.Input(
                    "density",
                    default=0.25,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the picture that each part of it attends to. Lower is faster and less "
                    "exact; 1 turns the node off.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.15,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling schedule (0 beginning, 1 end) after which attention may "
                    "be sparse. Higher is slower and more exact.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling schedule (0 beginning, 1 end) after which attention is "
                    "dense. Lower is slower and more exact.",
                ),
                io.Int.Input(
                    "dense_first",
                    default=1,
                    min=0,
                    max=1000,
                    tooltip="Blocks at the beginning of the model whose attention stays dense. Higher is "
                    "slower and more exact.",
                ),
                io.Int.Input(
                    "dense_last",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Blocks at the end of the model whose attention stays dense. Higher is slower and "
                    "more exact.",
                ),
                io.Combo.Input(
                    "backend",
                    options=list(NAMES),
                    default=NAMES[0],
                    tooltip="What computes it. auto: what was measured fastest for this size and kind of "
                    "device, dense attention included. gather: plain PyTorch, made for CPUs. flex: "
                    "PyTorch's own, compiled at first use. xformers, spargeattn: where installed.",
                ),
                io.Combo.Input(
                    "left_out",
                    options=list(LEFT_OUT),
                    default=LEFT_OUT[0],
                    optional=True,
                    tooltip="What stands in for the parts that are left out. dropped: nothing. means: the "
                    "mean of each part. hold: the means, and by how much they were off when attention was "
                    "dense last. forecast: that difference moves on; twice the memory of hold.",
                ),
                io.Int.Input(
                    "refresh_interval",
                    default=2,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="Evaluations with sparse attention between two with dense attention, which "
                    "measure what is left out. Higher is faster and less exact. For hold and forecast.",
                ),
                io.Float.Input(
                    "memory_limit",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    optional=True,
                    tooltip="Most GiB that the differences of hold and forecast may take. If they need "
                    "more, means stand in (less exact), and the report says so. 0: no limit.",
                ),
                io.Combo.Input(
                    "tile",
                    options=TILES,
                    default=TILES[0],
                    optional=True,
                    tooltip="Image tokens of a part, 16, 64 or 128: 64 are 8 x 8, or 128 x 128 pixels of "
                    "most models. Lower chooses more finely, and costs more to handle.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The patched model, for the sampler and RAPID Report. "
                    "At density 1 the model as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        density,
        start_percent,
        end_percent,
        dense_first,
        dense_last,
        backend,
        left_out=LEFT_OUT[0],
        refresh_interval=2,
        memory_limit=0.0,
        tile="64",
    ) -> io.NodeOutput:
        check = Checks("RAPID Sparse Attention")
        check.ranges(
            density=(density, 0.01, 1),
            dense_first=(dense_first, 0, 1000),
            dense_last=(dense_last, 0, 1000),
            refresh_interval=(refresh_interval, 1, 1000),
            memory_limit=(memory_limit, 0, 1024),
        )
        check.window(start_percent, end_percent)
        check.choices(backend=(backend, NAMES), left_out=(left_out, LEFT_OUT), tile=(tile, TILES))
        if density == 1.0:
            return io.NodeOutput(model)
        check_installed(backend, model.load_device.type)
        sparsity = Sparsity(backend, dense_first, dense_last, left_out, int(tile), memory_limit)
        policy = SparsePolicy(density, sparsity, refresh_interval, start_percent, end_percent)
        return io.NodeOutput(attach(model, policy, cls.hidden))


def check_installed(backend: str, device: str) -> None:
    """Raise ValueError for a backend that cannot run on this kind of device."""
    missing = None if backend == "auto" else BACKENDS[backend].missing(device)
    if missing:
        raise ValueError(
            f"RAPID Sparse Attention: backend = {backend!r} was given; {missing}. auto always works."
        )
