"""What all tests share: import paths, and the same random numbers every time."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "tests"))  # for rapid_testing
# Last, never first: the folder `nodes` here must not hide ComfyUI's module `nodes`.
sys.path.append(str(ROOT))
settings.register_profile(
    "busy", deadline=None
)  # how long an example takes says how busy the machine is
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often trainings are killed, and where screenshots and outcomes go."""
    parser.addoption(
        "--kills", type=int, default=2, help="kills of test_training_kills.py (default 2)"
    )
    parser.addoption(
        "--pictures", help="keep screenshots of tests/browser in this folder: `.` for the docs'"
    )
    parser.addoption(
        "--outcomes", type=Path, help="append what becomes of each test to this file, as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Write outcomes down where that is asked for."""
    if config.getoption("--outcomes") is not None:
        from rapid_testing.outcomes import Outcomes

        config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a browser come last: Playwright keeps an event loop in this thread, beside which
    ComfyUI cannot load a pack."""
    items.sort(key=lambda item: "browser" in item.path.relative_to(ROOT).parts)


def pytest_report_header() -> str:
    """Which ComfyUI the integration tests use."""
    return f"ComfyUI: {os.environ.get('RAPID_HOST_TREE', 'none; integration tests need `python3 dev.py test`')}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """ComfyUI as a process of its own, with this pack and the demo models; one for all tests."""
    from devkit.base_folder import make_base_folder
    from devkit.comfy_process import host_tree
    from devkit.server import ComfyServer

    base = make_base_folder(tmp_path_factory.mktemp("server"))
    with ComfyServer(host_tree(), base, threads=1) as running:
        yield running


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Seed torch where it is loaded, so that a test does not depend on those before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
