"""Whether this machine has a GPU that torch in the environment can use."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path


@cache
def has_gpu(python: Path) -> bool:
    """True where torch, as installed beside `python`, can use a GPU."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    if not apple and shutil.which("nvidia-smi") is None:
        return False  # saves the seconds that importing torch takes
    code = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip() == "True"


def device_name(python: Path) -> str:
    """The device that ComfyUI will use."""
    return "GPU" if has_gpu(python) else "CPU"
