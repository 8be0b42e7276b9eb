"""Copies to a device are queued only where nobody can see them unfinished."""

from types import SimpleNamespace

import pytest
import torch

from rapid_core.transfer import to_device


@pytest.mark.parametrize(
    ("start", "end", "queued"),
    [("cpu", "cuda", True), ("cpu", "mps", False), ("cuda", "cpu", False), ("cuda", "cuda", False)],
)
def test_a_copy_waits_but_from_the_host_to_a_device_that_keeps_its_place(start, end, queued):
    calls = []
    values = SimpleNamespace(
        device=torch.device(start), to=lambda device, **named: calls.append((device.type, named))
    )
    to_device(values, torch.device(end))
    assert calls == [(end, {"non_blocking": queued})]
