"""From the host to the model's device, without waiting for what the device is doing."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` on a device. A plain copy from the host would have it wait until the device has done all
    that it was given; this one is queued behind it. Apple's devices would read the host's memory later,
    when it may be free: there the copy waits. So does one from a device, which the host would read before
    it is there."""
    queued = values.device.type == "cpu" and device.type != "mps"
    return values.to(device, non_blocking=queued)
