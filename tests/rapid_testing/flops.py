"""FLOPs as torch counts them."""

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops_of(function: Callable[..., Any], *args: Any, **named: Any) -> int:
    """FLOPs of a call; attention by plain matrix products, or they would not be counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*args, **named)
    return counter.get_total_flops()
