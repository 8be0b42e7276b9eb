"""RAPID's nodes. One feature a file; this module only lists them."""

from comfy_api.latest import ComfyExtension, io

from ..rapid_core.comfy.routes import add_routes
from .accelerate import Accelerate
from .cache_reuse import CacheReuse
from .calibrate import Calibrate
from .compare import Compare
from .load_lumina_next import LoadLuminaNext
from .load_lumina_next_text import LoadLuminaNextText
from .load_policy import LoadPolicy, add_folders
from .policy_sampler import PolicySampler
from .region_adaptive import RegionAdaptive
from .report import Report
from .sparse_attention import SparseAttention

# The page's search shows nodes that match equally well in this order.
NODES: list[type[io.ComfyNode]] = [
    Accelerate,
    Report,
    Compare,
    Calibrate,
    RegionAdaptive,
    LoadPolicy,
    CacheReuse,
    SparseAttention,
    PolicySampler,
    LoadLuminaNext,
    LoadLuminaNextText,
]


class RapidExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes that ComfyUI registers."""
        return NODES


async def comfy_entrypoint() -> RapidExtension:
    """ComfyUI's V3 entry point."""
    add_folders()
    add_routes()
    return RapidExtension()
