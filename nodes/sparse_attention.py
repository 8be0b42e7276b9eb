"""Sparse Attention: image tokens attend to the parts of the picture that matter to them."""

from comfy_api.latest import io

from ..rapid_core.actions import Sparsity
from ..rapid_core.engine.sparse import BACKENDS, NAMES
from ..rapid_core.host.chain import attach
from ..rapid_core.policies.sparse import SparsePolicy
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
            search_aliases=["sparse attention", "sparge", "flex attention", "speed up", "accelerate", "block sparse"],
            inputs=[
                io.Model.Input("model"),
                io.Float.Input("density", default=0.5, min=0.01, max=1.0, step=0.01,
                               tooltip="Share of the picture that each part of it attends to. Lower is faster and less "
                               "exact; 1 turns the node off."),
                io.Float.Input("start_percent", default=0.15, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the sampling schedule after which attention may be sparse."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the sampling schedule after which attention is dense."),
                io.Int.Input("dense_first", default=1, min=0, max=1000,
                             tooltip="Blocks at the beginning of the model whose attention stays dense."),
                io.Int.Input("dense_last", default=0, min=0, max=1000,
                             tooltip="Blocks at the end of the model whose attention stays dense."),
                io.Combo.Input("backend", options=list(NAMES), default=NAMES[0],
                               tooltip="What computes it. auto: what was measured fastest for this size and kind of "
                               "device, dense attention included. gather: plain PyTorch, made for CPUs. flex: "
                               "PyTorch's own, compiled at first use. xformers, spargeattn: where installed."),
                io.Boolean.Input("compensate", default=True, optional=True,
                                 tooltip="Parts that are left out stand in as their means instead of not at all."),
                io.Combo.Input("tile", options=TILES, default=TILES[0], optional=True,
                               tooltip="Image tokens of a part: 64 are 8 x 8, or 128 x 128 pixels of most models. "
                               "Small ones choose more finely, and cost more to handle."),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, density, start_percent, end_percent, dense_first, dense_last, backend, compensate=True, tile="64"
    ) -> io.NodeOutput:
        check = Checks("RAPID Sparse Attention")
        check.range("density", density, 0.01, 1.0)
        check.window(start_percent, end_percent)
        check.range("dense_first", dense_first, 0, 1000)
        check.range("dense_last", dense_last, 0, 1000)
        check.choice("backend", backend, NAMES)
        check.choice("tile", tile, TILES)
        if density == 1.0:
            return io.NodeOutput(model)
        missing = None if backend == "auto" else BACKENDS[backend].missing(model.load_device.type)
        if missing:
            raise ValueError(f"RAPID Sparse Attention: backend = {backend!r} was given; {missing}. auto always works.")
        sparsity = Sparsity(backend, dense_first, dense_last, compensate, int(tile))
        return io.NodeOutput(attach(model, SparsePolicy(density, sparsity, start_percent, end_percent)))
