"""What all tests share: import paths, and the same random numbers every time."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "tests"))  # for rapid_testing
# Last, never first: the folder `nodes` here must not hide ComfyUI's module `nodes`.
sys.path.append(str(ROOT))
settings.register_profile("busy", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often trainings are killed."""
    parser.addoption("--kills", type=int, default=2, help="kills of test_training_kills.py (default 2)")


def pytest_report_header() -> str:
    """Which ComfyUI the integration tests use."""
    return f"ComfyUI: {os.environ.get('RAPID_HOST_TREE', 'none; integration tests need `python3 dev.py test`')}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Seed torch where it is loaded, so that a test does not depend on those before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
